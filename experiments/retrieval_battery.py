"""The battery itself: everything that is measured of a policy, from one run of every scene."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from actlens.errors import SceneError
from actlens.kinematics import known_arm
from actlens.mechanism import (
    MechanismAxis,
    Part,
    Tail,
    Vectored,
    between_at,
    mechanism_axis,
    some_executed,
    tried,
    tried_frame,
)
from actlens.mechanism.axis import interval_by_group
from actlens.model.act import HookedACT
from actlens.planted import PlantError
from actlens.retrieval import (
    Demonstrations,
    FunctionAxis,
    RetrievalError,
    TaskState,
    Undefined,
    Value,
    Yardstick,
    function_frames,
)
from actlens.scene import Scene, episode_numbers
from actlens.scenes.dataset import Dataset
from actlens.statistics import Interval
from actlens.verdict import Verdict, index_of, judge
from experiments.retrieval_scenes import BETWEEN, BEYOND, STREAM, Known
from experiments.retrieval_tables import (
    AT_FRAME_0,
    DEMONSTRATIONS,
    UNSEEN,
    Options,
    Unseen,
    capacity_table,
    function_axes,
    ladder_table,
    monitor_table,
    scene_table,
)


@dataclass(frozen=True)
class Battery:
    """Everything that was found."""

    tables: dict[str, pd.DataFrame]
    axes: dict[str, FunctionAxis]
    """Function, by the name of the unseen scenes; empty without them."""
    mechanism: MechanismAxis | None
    verdict: Verdict | None
    at_start: Verdict | None
    """The same from frame 0 alone, where the arm does not yet give the object away."""
    missing: tuple[str, ...]
    """What could not be measured, and what it would take."""

    @property
    def indices(self) -> dict[str, Value]:
        """The generalisation index between and beyond the demonstrations, and at frame 0 alone."""
        names = [BETWEEN, BEYOND, *(AT_FRAME_0.format(name) for name in (BETWEEN, BEYOND))]
        return {name: index_of(self.axes[name]) for name in names if name in self.axes}


def measure(
    model: HookedACT,
    dataset: Dataset,
    known: Known,
    unseen: Unseen | None,
    options: Options,
    say: Callable[[str], None],
) -> Battery:
    """All tables, and the verdict; `say` is told what is being done."""
    ran, missing = known.ran, []
    origin = model.checkpoint.source if model.checkpoint is not None else ""
    arm = known_arm(model.config.joints, origin)
    yardstick = Yardstick.of(ran.actions, ran.counted, joints=model.config.joints, arm=arm)
    labelled = set(options.place) <= set(ran.labels)
    labelled &= unseen is None or set(options.place) <= set(unseen.known.ran.labels)
    labels = ", ".join(options.place)
    if not labelled:
        missing.append(f"scenes need labels that say where the object is ({labels}; --place)")
    if unseen is None:
        missing.append("unseen scenes whose expert is known (--unseen.root, --unseen.episodes)")
    task = TaskState.of(ran, yardstick) if labelled else None
    say("retrieval at every site")
    tables = {"ladder": ladder_table(ran, unseen, yardstick, task, options)}
    axes: dict[str, FunctionAxis] = {}
    if unseen is not None and labelled:
        say("function")
        axes = function_axes(ran, unseen, yardstick, options)
        tables |= function_frames(axes)
        tables["scenes"] = scene_table(unseen, axes[UNSEEN], options.place)
    say("substitution")
    tables["substitution"] = _substitution(model, ran, unseen)
    say("capacity")
    tables["capacity"] = capacity_table(model, dataset, options.tolerances)
    if unseen is not None:
        say("monitor")
        try:
            tables["monitor"] = monitor_table(model, ran, unseen, yardstick, options)
        except RetrievalError as error:
            missing.append(f"a monitor: {error}")
    say("mechanism")
    mechanism, parts = None, {}
    try:
        mechanism, parts = _mechanism(model, known, unseen, options, say)
        tables["mechanism"] = mechanism.frame().assign(
            rule_error=mechanism.rule_error, memoriser_error=mechanism.memoriser_error
        )
    except (PlantError, SceneError) as error:
        missing.append(f"the mechanism axis: {error}")
    verdict = at_start = None
    if mechanism is not None:
        lacking = Undefined(f"it takes {' and '.join(missing)}" if missing else "no such scene")

        def judged(between: str, beyond: str) -> Verdict:
            inside: Value = index_of(axes[between]) if between in axes else lacking
            outside = index_of(axes[beyond]) if beyond in axes else None
            return judge(inside, mechanism, beyond=outside, parts=parts or None)

        verdict = judged(BETWEEN, BEYOND)
        tables["verdict"] = verdict.frame()
        if AT_FRAME_0.format(UNSEEN) in axes:
            at_start = judged(AT_FRAME_0.format(BETWEEN), AT_FRAME_0.format(BEYOND))
    return Battery(tables, axes, mechanism, verdict, at_start, tuple(missing))


def vectored(model: HookedACT, ran: Demonstrations, positions: Sequence[int]) -> Vectored:
    """The tail's inputs in scenes that were run, with no forward."""
    name = STREAM if model.config.pre_norm else "action vector"
    keys = torch.from_numpy(ran.keys[name][:, list(positions)])
    tail, x = Tail(model), keys.to(next(model.parameters()))
    with torch.no_grad():
        return Vectored(tail, x, tail(x), tuple(positions))


def _substitution(model: HookedACT, ran: Demonstrations, unseen: Unseen | None) -> pd.DataFrame:
    positions = list(some_executed(model))
    own = vectored(model, ran, positions)
    parts = [
        tried_frame(
            tried(own, ran.episodes),
            ran.actions[:, positions],
            ran.counted[:, positions],
            ran.episodes,
        ).assign(scenes=DEMONSTRATIONS)
    ]
    if unseen is not None:
        for name, rows in ((BETWEEN, ~unseen.beyond), (BEYOND, unseen.beyond)):
            if rows.any():
                new = unseen.known.ran.at(rows)
                made = tried(own, ran.episodes, vectored(model, new, positions))
                expert, counted = new.actions[:, positions], new.counted[:, positions]
                found = tried_frame(made, expert, counted, new.episodes)
                parts.append(found.assign(scenes=name))
    table = pd.concat(parts, ignore_index=True)
    return table[["scenes", *table.columns.drop("scenes")]]


def _already_run(
    model: HookedACT, known: Sequence[Known], positions: Sequence[int]
) -> Callable[[Sequence[Scene]], Vectored]:
    """Looks scenes' vectors up among those that were run."""
    name = lambda scene: (scene.source, scene.episode, scene.frame)
    runs = [vectored(model, one.ran, positions) for one in known]
    x = torch.cat([run.x for run in runs])
    actions = torch.cat([run.actions for run in runs])
    row = {name(scene): i for i, scene in enumerate(s for one in known for s in one.scenes)}

    def of(scenes: Sequence[Scene]) -> Vectored:
        rows = [row[name(scene)] for scene in scenes]
        return replace(runs[0], x=x[rows], actions=actions[rows])

    return of


def _mechanism(
    model: HookedACT,
    known: Known,
    unseen: Unseen | None,
    options: Options,
    say: Callable[[str], None],
) -> tuple[MechanismAxis, dict[Part, Interval]]:
    """The axis, and where a policy without cameras jumps in front of its decoder's MLP."""
    ran = known.ran
    shown = known.scenes
    if options.quick:
        shown = [known.scenes[i] for i in np.flatnonzero(ran.frames == ran.frames.min())]
    held_out: list[Scene] = [] if unseen is None else unseen.known.scenes
    if options.quick:
        held_out = [scene for scene in held_out if scene.frame == shown[0].frame]
    positions = some_executed(model)
    runs = [known] if unseen is None else [known, unseen.known]
    axis = mechanism_axis(
        model,
        shown,
        held_out,
        positions=positions,
        memoriser=not options.quick,
        seed=options.seed,
        vectors=_already_run(model, runs, positions),
        progress=lambda what: say(f"mechanism, {what}"),
    )
    if model.config.cameras:
        return axis, {}
    groups = episode_numbers(shown)
    found = {}
    for part in (Part.ENCODER, Part.CROSS_ATTENTION):
        way, pairs = between_at(model, part, shown, some_executed(model), seed=options.seed)
        bounds = interval_by_group(way.jump, groups[pairs.first], np.nanmedian, options.seed)
        found[part] = Interval(*map(np.asarray, bounds))
    return axis, found
