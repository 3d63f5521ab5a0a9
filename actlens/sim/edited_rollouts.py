"""Edited policies in closed loop: what an edit of weights does where it was made, and elsewhere.

    edit_at = offset_edits(model, metric, Offset({"shoulder_pan.pos": 10.0}))
    found = edited_rollouts(model, edit_at, draw_cases(20))
    found.summary()

Every case is an edit of its own, made for what the policy sees at the start of a rollout, and three
rollouts with it beside three without: from that very start, with the cube near by, and with the
cube far away. The case is the sampling unit.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from actlens.errors import InterventionError
from actlens.kinematics import SO101_SIMULATED
from actlens.model.act import HookedACT
from actlens.notebook import DrawnAsTable
from actlens.rome import (
    EditOptions,
    Jitter,
    JointLimits,
    KeyMetric,
    Offset,
    Request,
    WeightEdit,
    make_edit,
)
from actlens.scene import Scene
from actlens.sim.closed_loop import ClosedLoop, compare, pooled_columns
from actlens.sim.conditions import UNDISTURBED, Condition
from actlens.sim.controlled import Episode, simulator_for
from actlens.sim.edit_cases import Case, Place, scene_at
from actlens.sim.environment import PickCube
from actlens.sim.kinematics import JOINT_HIGH, JOINT_LOW
from actlens.sim.paired_success import paired_success
from actlens.statistics import wilson

EDITED = "edited"
"""The condition's name."""
ARM_LIMITS = JointLimits(
    tuple(JOINT_LOW.tolist()), tuple(JOINT_HIGH.tolist()), "the simulated arm reaches"
)
EditAt = Callable[[Scene], WeightEdit]
"""Makes the edit for what is seen at a start: of one request, in that scene."""


def offset_edits(
    model: HookedACT,
    metric: KeyMetric,
    offset: Offset,
    *,
    options: EditOptions | None = None,
    jitter: Jitter | None = None,
    limits: JointLimits = ARM_LIMITS,
) -> EditAt:
    """Edits that add an offset to what the policy does first from a start (`make_edit`)."""
    return lambda scene: make_edit(
        model, [Request(scene, offset)], metric, options=options, jitter=jitter, limits=limits
    )


def edited_rollouts(
    model: HookedACT,
    edit_at: EditAt,
    cases: Sequence[Case],
    *,
    env: PickCube | None = None,
    steps: int = 90,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> "EditedRollouts":
    """Make every case's edit, and roll out from its three starts with and without.

    The policy's weights are changed during a rollout alone; every bit is restored afterwards,
    whatever happens.

    Args:
        edit_at: `offset_edits(…)`, or any function.
        env: the simulator; made for the policy if not given.
        steps: control steps of a rollout, 40 ms each.
        seed: of the bootstrap.
        progress: called with (rollouts done, rollouts in all).

    Raises:
        SceneError: if the simulator does not fit the policy.
        EditError: if an edit cannot be made.
        InterventionError: if there is no case, two share a start, the rollouts are too short, or
            an edit is not of one request for what is carried out first.
    """
    different = min(len({case.at(place) for case in cases}) for place in Place)
    if not cases or different < len(cases):
        raise InterventionError(
            f"{len(cases)} cases begin at {different} different starts: give at least one, and "
            "each starts of its own."
        )
    executed = model.config.n_action_steps
    if steps < executed:
        raise InterventionError(
            f"{steps} control steps end before the policy has carried out what it decides first, "
            f"{executed} steps."
        )
    if env is None:
        with closing(simulator_for(model)) as own:
            return edited_rollouts(
                model, edit_at, cases, env=own, steps=steps, seed=seed, progress=progress
            )
    edits = tuple(edit_at(scene_at(env, case.there)) for case in cases)
    asked = tuple(Asked.by(edit, executed) for edit in edits)
    each = 2 * len(cases)  # without and with
    found = {}
    for done, place in enumerate(Place):
        starts = [case.at(place) for case in cases]
        of = dict(zip(starts, edits, strict=True))
        condition = Condition(EDITED, within=lambda policy, start, of=of: of[start].apply(policy))
        found[place] = compare(
            model, env, starts, [condition], steps=steps, repeated=False, seed=seed,
            progress=lambda n, _, done=done: progress(done * each + n, len(Place) * each),
        )  # fmt: skip
    return EditedRollouts(tuple(cases), edits, asked, found)


@dataclass(frozen=True, eq=False)
class Asked:
    """What an edit asks for in the steps that follow the first inference, as a change."""

    steps: tuple[int, ...]
    """Control steps, which are chunk positions there."""
    change: Float[np.ndarray, "step joint"]
    """In dataset units."""

    @classmethod
    def by(cls, edit: WeightEdit, n_action_steps: int) -> "Asked":
        """What an edit's request asks for.

        Raises:
            InterventionError: if it is not one request, or asks for nothing that is carried out.
        """
        requests = edit.record.requests
        positions = requests[0].positions if len(requests) == 1 else ()
        rows = [row for row, k in enumerate(positions) if k < n_action_steps]
        change = np.zeros((0, 0))
        if rows:
            change = np.subtract(requests[0].target, requests[0].before)[rows]
        if not change.any():
            raise InterventionError(
                f"An edit of {len(requests)} requests at chunk positions {positions} cannot be "
                f"followed: it takes one, which asks for something at positions below "
                f"{n_action_steps}, the steps that are carried out before the policy looks again."
            )
        return cls(tuple(positions[row] for row in rows), change)


@dataclass(frozen=True, eq=False)
class EditedRollouts(DrawnAsTable):
    """The rollouts of all cases; `frame()` and `summary()` are the tables."""

    cases: tuple[Case, ...]
    edits: tuple[WeightEdit, ...]
    """By case."""
    asked: tuple[Asked, ...]
    """By case."""
    closed_loops: Mapping[Place, ClosedLoop]
    """By case, undisturbed and edited."""

    def frame(self) -> pd.DataFrame:
        """One row per case and place: what became of the request there, and of the episode.

        Shares are of what was asked for: `commanded`, of the change in what the policy commands
        before it looks again; `drift`, the length of that change in any direction; `moved`, of the
        change in where the joints then are, with the last request; `afterwards`, of the change in
        what is commanded from the second inference on, its mean over steps (missing if there is
        none). 1: as asked; 0: nothing of it. `off_deg` is the largest difference between the change
        commanded and that asked for. `tip_mm` is how far the gripper then is from the undisturbed
        one, `asked_tip_mm` how far it would be if the joints stood as asked, `path_mm` the mean
        distance over the rollout. `distance_mm` lies between the edit's cube and this one.
        """
        rows = []
        for place, found in self.closed_loops.items():
            pairs = zip(found.episodes[EDITED], found.episodes[UNDISTURBED.name], strict=True)
            for case, (episode, plain) in enumerate(pairs):
                row = {
                    "place": place.value,
                    "case": case,
                    "distance_mm": 1000 * self.cases[case].distance(place),
                    "success_undisturbed": plain.result.success,
                    "success": episode.result.success,
                    "relative_norm": self.edits[case].relative_norm,
                    "changed": episode.acted[0].receipts[0].changed,
                }
                rows.append(row | followed(episode, plain, self.asked[case]))
        return pd.DataFrame(rows)

    def summary(self) -> pd.DataFrame:
        """One row per place, with 95 % intervals over cases.

        `successes_undisturbed` and `successes` of `cases`, with Wilson's interval of the rate;
        starts `lost` and `gained`, `success_change` with Tango's interval and `p` (exact McNemar).
        `commanded`, `drift`, `moved`, `afterwards`, `path_mm`, `tip_mm` and `asked_tip_mm` of
        `frame()` as means with a bootstrap (no interval below five cases); `within_1_deg` counts
        cases in which every commanded joint target is that close to what was asked for.
        """
        rows = []
        frame = self.frame()
        for place, mine in frame.groupby("place", sort=False):
            paired = paired_success(mine.success_undisturbed.to_numpy(), mine.success.to_numpy())
            n, successes = len(mine), int(mine.success.sum())
            low, high = wilson(successes, n)
            row = {
                "place": place,
                "cases": n,
                "distance_mm_min": float(mine.distance_mm.min()),
                "distance_mm_max": float(mine.distance_mm.max()),
                "successes_undisturbed": int(mine.success_undisturbed.sum()),
                "successes": successes,
                "success_low": low,
                "success_high": high,
                "lost": paired.lost,
                "gained": paired.gained,
                "success_change": paired.change,
                "success_change_low": paired.low,
                "success_change_high": paired.high,
                "p": paired.p,
                "within_1_deg": int((mine.off_deg <= 1).sum()),
            }
            for name in _MEANS:
                values = mine[name].to_numpy()
                row |= pooled_columns(name, values, np.ones(n), seed=self._seed)
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def _seed(self) -> int:
        return self.closed_loops[Place.THERE].seed


_MEANS = ("commanded", "drift", "moved", "afterwards", "path_mm", "tip_mm", "asked_tip_mm")


def followed(episode: Episode, undisturbed: Episode, asked: Asked) -> dict[str, float]:
    """How a rollout follows a request, by the names of `EditedRollouts.frame`."""
    here, there = episode.result, undisturbed.result
    commanded = here.actions.astype(np.float64) - there.actions
    then = episode.inferences[1].control_step if len(episode.inferences) > 1 else len(commanded)
    last, after = asked.change[-1], asked.steps[-1] + 1
    stood = there.states[after].astype(np.float64)
    of_request = lambda change: float((change * asked.change).sum() / (asked.change**2).sum())
    of_last = lambda change: change @ last / (last @ last)
    apart = 1000 * np.linalg.norm(here.tip - there.tip, axis=1)
    goal = SO101_SIMULATED.tip(np.stack([stood, stood + last]))
    first, later = commanded[list(asked.steps)], commanded[then:]
    return {
        "commanded": of_request(first),
        "drift": float(np.linalg.norm(first) / np.linalg.norm(asked.change)),
        "off_deg": float(np.abs(first - asked.change).max()),
        "moved": float(of_last(here.states[after] - stood)),
        "afterwards": float(of_last(later).mean()) if len(later) else np.nan,
        "tip_mm": float(apart[after]),
        "asked_tip_mm": float(1000 * np.linalg.norm(goal[1] - goal[0])),
        "path_mm": float(apart[1:].mean()),
    }
