"""What the usual disturbances of the picture, the joint readings and the light do to a policy.

`python -m actlens.sim.perturb` shows for each, in rising severity, how far it moves the predicted
actions (open loop, over moments of undisturbed rollouts) and what it does to success and aim in
closed loop, against undisturbed rollouts from the same starts.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import Progress
from rich.text import Text
from torch import Tensor

from actlens.errors import ActlensError, InterventionError
from actlens.interventions.corruptions import Instant
from actlens.interventions.perturbations import Perturbation, PerturbedView
from actlens.metrics import rms
from actlens.model.act import HookedACT
from actlens.notebook import DrawnAsTable
from actlens.provenance import provenance, write_json
from actlens.report.perturbations import render_suite
from actlens.report.plain import plain
from actlens.report.styles import BAD
from actlens.scene import Observation
from actlens.sim.closed_loop import ClosedLoop
from actlens.sim.conditions import UNDISTURBED, Condition, Start, draw_starts
from actlens.sim.controlled import Episode, roll_out, simulator_for
from actlens.sim.disturbances import Disturbance, chosen, suite
from actlens.sim.environment import PickCube
from actlens.sim.look import Look
from actlens.sim.regions import Region
from actlens.sim.rollout import as_observation
from actlens.statistics import pooled_ratio


@dataclass(frozen=True, eq=False)
class SuiteResult(DrawnAsTable):
    """The suite over all starts; `frame()` is the table people read."""

    disturbances: tuple[Disturbance, ...]
    closed_loop: ClosedLoop
    """Rollouts by the disturbance's name; the undisturbed ones first."""
    open_loop: Mapping[str, Float[np.ndarray, " start"]]
    """Mean square change of the predicted chunks, in squared dataset units, by name and start."""
    moments: tuple[int, ...]
    """The control steps of the undisturbed rollouts at which `open_loop` was measured."""

    def frame(self) -> pd.DataFrame:
        """One row per disturbance, the undisturbed rollouts first, with 95 % intervals over starts.

        `action_rms` is the root mean square change of the predicted action chunk in joint units,
        over moments, chunk positions and joints, with a bootstrap over starts (`_low`, `_high`;
        none below five). All other columns are those of `ClosedLoop.summary`.
        """
        rows = {}
        for one in self.disturbances:
            squares = self.open_loop[one.name]
            pooled = pooled_ratio(squares, np.ones_like(squares), seed=self.closed_loop.seed)
            low, estimate, high = np.sqrt([pooled.low, pooled.estimate, pooled.high])
            rows[one.name] = {
                "kind": one.kind,
                "severity": one.severity,
                "action_rms": estimate,
                "action_rms_low": low,
                "action_rms_high": high,
            }
        effects = pd.DataFrame.from_dict(rows, orient="index")
        table = self.closed_loop.summary().join(effects, on="condition")
        table["kind"] = table.kind.fillna(UNDISTURBED.name)
        return table.astype({"severity": "Int64"})


def run_suite(
    model: HookedACT,
    env: PickCube,
    starts: Sequence[Start],
    disturbances: Sequence[Disturbance],
    *,
    steps: int = 90,
    n_moments: int = 3,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SuiteResult:
    """Every start undisturbed and under every disturbance.

    Noise differs from start to start. A disturbance lasts from the first control step to the last.

    Args:
        env: with pictures if the policy looks at them (`simulator_for`).
        steps: control steps of a rollout, 40 ms each; a demonstration has 75.
        n_moments: at how many control steps, evenly spread, the open-loop change is measured.
        seed: of the bootstrap.
        progress: called with (rollouts done, rollouts in all).

    Raises:
        InterventionError: if there is no start, or n_moments is not in 1..steps.
    """
    if not starts or not 1 <= n_moments <= steps:
        raise InterventionError(
            f"The suite needs starts ({len(starts)} given) and from 1 to {steps} moments, not "
            f"{n_moments}."
        )
    moments = tuple(i * steps // n_moments for i in range(n_moments))
    looks = [one.what for one in disturbances if isinstance(one.what, Look)]
    episodes: dict[str, list[Episode]] = {UNDISTURBED.name: []}
    squares: dict[str, list[float]] = {}
    total = len(starts) * (1 + len(disturbances))
    for number, start in enumerate(starts):
        plain = roll_out(model, env, start, steps=steps)
        episodes[UNDISTURBED.name].append(plain)
        seen = seen_again(env, plain, moments, looks)
        chunks = predicted(model, seen[env.look])
        for place, one in enumerate(disturbances):
            shown = seen[one.what] if isinstance(one.what, Look) else seen[env.look]
            if isinstance(one.what, Perturbation):
                shown = [
                    one.what.apply(observation, Instant(step, number, shown[0]))
                    for step, observation in zip(moments, shown, strict=True)
                ]
            change = rms(predicted(model, shown) - chunks).square().mean().item()
            squares.setdefault(one.name, []).append(change)
            episodes.setdefault(one.name, []).append(
                disturbed(model, env, start, one, number=number, steps=steps)
            )
            progress(number * (1 + len(disturbances)) + place + 2, total)
    return SuiteResult(
        tuple(disturbances),
        ClosedLoop({name: tuple(found) for name, found in episodes.items()}, seed),
        {name: np.array(found) for name, found in squares.items()},
        moments,
    )


def disturbed(
    model: HookedACT,
    env: PickCube,
    start: Start,
    disturbance: Disturbance,
    *,
    number: int,
    steps: int,
) -> Episode:
    """One rollout under a disturbance; the environment looks as before afterwards."""
    if isinstance(disturbance.what, Perturbation):
        view = PerturbedView(disturbance.what, episode=number)
        return roll_out(model, env, start, Condition(disturbance.name, perturb=view), steps=steps)
    usual, env.look = env.look, disturbance.what
    try:
        episode = roll_out(model, env, start, steps=steps)
    finally:
        env.look = usual
    return replace(episode, condition=disturbance.name)


def seen_again(
    env: PickCube, episode: Episode, moments: Sequence[int], looks: Sequence[Look]
) -> dict[Look, list[Observation]]:
    """What a rollout showed at some control steps, and what it would have shown in other looks.

    The rollout is played again: the same start and actions give the same episode.
    """
    found: dict[Look, list[Observation]] = {look: [] for look in (env.look, *looks)}
    start = episode.start
    observation, _ = env.reset(seed=start.seed, options={"cube_xy": np.asarray(start.cube_xy)})
    for step, action in enumerate(episode.result.actions):
        if step in moments:
            for look, seen in found.items():
                now = observation if look == env.look else env.seen_as(look)
                seen.append(as_observation(now))
        observation, *_ = env.step(action)
    return found


def predicted(
    model: HookedACT, observations: Sequence[Observation]
) -> Float[Tensor, "moment chunk joint"]:
    """The action chunks for several observations, in dataset units."""
    keys = observations[0].keys()
    batch = {key: torch.stack([seen[key] for seen in observations]) for key in keys}
    return model.predict_action_chunk(batch).double()


@dataclass(frozen=True)
class PerturbConfig:
    """What to disturb."""

    policy: str = "so101-pick-cube"
    """A bundled policy's name, a LeRobot folder, or a hub id."""
    rollouts: int = 10
    """Starts; every disturbance is rolled out from each of them."""
    region: Region = Region.TRAIN
    """Where the cubes stand."""
    kinds: tuple[str, ...] = ()
    """Only these kinds of disturbances, such as `blur` or `green cube`."""
    severities: tuple[int, ...] = ()
    """Only these severities, from 1 to 3."""
    steps: int = 90
    """Control steps of a rollout (40 ms each); a demonstration has 75."""
    moments: int = 3
    """Control steps of each undisturbed rollout at which the open-loop change is measured."""
    seed: int = 0
    """Of the starts and the bootstrap."""
    threads: int = 0
    """Threads that torch computes with; 0 leaves it to torch."""
    output: Path | None = None
    """A JSON file for the table, every rollout and the disturbances as values."""


def run(config: PerturbConfig, console: Console) -> tuple[SuiteResult, dict[str, Any]]:
    """The suite that the options ask for, and its provenance; `console` shows progress."""
    began = time.monotonic()
    model = HookedACT.from_pretrained(config.policy)
    cameras = [camera.name for camera in model.config.cameras]
    disturbances = chosen(suite(cameras), config.kinds, config.severities)
    starts = draw_starts(config.rollouts, region=config.region, seed=config.seed)
    env = simulator_for(model)
    try:
        with Progress(console=console) as bars:
            task = bars.add_task("rollouts")
            result = run_suite(
                model,
                env,
                starts,
                disturbances,
                steps=config.steps,
                n_moments=config.moments,
                seed=config.seed,
                progress=lambda done, total: bars.update(task, completed=done, total=total),
            )
    finally:
        env.close()
    options = asdict(config) | {"region": config.region.value}
    facts = {"moments": result.moments}
    return result, provenance(model, options, seconds=time.monotonic() - began, facts=facts)


def main(argv: list[str] | None = None) -> int:
    """Parse, run, print the table, write the figures."""
    import tyro

    config = tyro.cli(
        PerturbConfig, prog="python -m actlens.sim.perturb", description=__doc__, args=argv
    )
    if config.threads:
        torch.set_num_threads(config.threads)
    progress = Console(stderr=True)
    try:
        result, origin = run(config, progress)
    except ActlensError as error:
        progress.print(Text(plain(f"{type(error).__name__}: {error}"), style=BAD))
        return 3
    frame = result.frame()
    Console().print(render_suite(frame, policy=config.policy))
    if config.output is not None:
        records = lambda table: json.loads(table.to_json(orient="records"))
        content = {
            "summary": records(frame),
            "rollouts": records(result.closed_loop.frame()),
            "disturbances": [one.to_json() for one in result.disturbances],
            "provenance": origin,
        }
        config.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(config.output, content)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
