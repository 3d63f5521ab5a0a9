"""Closed-loop success of a policy, by where the cube stands: `python -m actlens.sim.evaluate`.

Rollouts are independent: each has its own cube position, heading and arm start. Success is the cube
held more than 4 cm up at the end; beside it stands the distance from gripper to cube when the
gripper closes, since a generous gripper forgives 20 mm.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from actlens.model.act import HookedACT
from actlens.scenes.dataset import Dataset, open_dataset
from actlens.sim.environment import PickCube
from actlens.sim.regions import FIVE_POSITIONS, Region, sample
from actlens.sim.rollout import as_observation, rollout
from actlens.statistics import wilson


@dataclass(frozen=True)
class EvaluateConfig:
    """What to roll out."""

    policy: str = "so101-pick-cube"
    """A bundled policy's name, a LeRobot folder, or a hub id."""
    dataset: str | None = None
    """The demonstrations: adds rollouts at exactly the demonstrated cube positions."""
    rollouts: int = 100
    """For each kind of cube position."""
    steps: int = 90
    """Control steps of a rollout (40 ms each); a demonstration has 75."""
    seed: int = 1000
    n_action_steps: int | None = None
    """Control steps between inferences; the policy's own number if not given."""
    height: int = 240
    width: int = 320
    threads: int = 0
    """Threads that torch computes with; 0 leaves it to torch."""
    output: Path | None = None
    """A JSON file for the figures and every rollout."""


@dataclass(frozen=True)
class Rollouts:
    """All rollouts with cube positions of one kind; arrays hold one entry a rollout."""

    kind: str
    cube_xy: list[tuple[float, float]]
    success: list[bool]
    tip_error_mm: list[float]

    @property
    def summary(self) -> dict[str, float | int | str]:
        """Success with Wilson's 95 % interval, and quartiles of the gripper-to-cube distance."""
        low, high = wilson(sum(self.success), len(self.success))
        quartiles = np.percentile(self.tip_error_mm, [25, 50, 75])
        return {
            "kind": self.kind,
            "rollouts": len(self.success),
            "successes": sum(self.success),
            "success": sum(self.success) / len(self.success),
            "success_low": low,
            "success_high": high,
            "tip_error_mm_q25": float(quartiles[0]),
            "tip_error_mm_median": float(quartiles[1]),
            "tip_error_mm_q75": float(quartiles[2]),
        }


def demonstrated_positions(dataset: Dataset) -> list[tuple[float, float]]:
    """The cube's position (x, y in metres) at the start of every episode."""
    labels = (dataset.labels(episode.index) for episode in dataset.episodes)
    return [(float(label["cube_x"][0]), float(label["cube_y"][0])) for label in labels]


def position_kinds(
    config: EvaluateConfig, dataset: Dataset | None
) -> dict[str, list[tuple[float, float]]]:
    """The cube positions to roll out from, by kind; a function of the seed alone."""
    n = config.rollouts
    kinds: dict[str, list[tuple[float, float]]] = {}
    if dataset is not None:
        known = sorted(set(demonstrated_positions(dataset)))
        # A recording at the five fixed positions holds them in float32: take the declared ones.
        near = lambda p, q: np.hypot(*np.subtract(p, q)) < 1e-3
        fixed = all(any(near(p, q) for q in FIVE_POSITIONS) for p in known)
        seen = list(FIVE_POSITIONS) if fixed else known
        kinds["demonstrated positions"] = [seen[i % len(seen)] for i in range(n)]
    names = {
        Region.TRAIN: "new positions, demonstrated cells",
        Region.HELD_OUT: "held-out cells (interpolation)",
        Region.STRIP: "strip (extrapolation)",
    }
    for number, (region, name) in enumerate(names.items()):
        rng = np.random.default_rng([config.seed, number])
        drawn = [sample(region, rng) for _ in range(n)]
        kinds[name] = [(float(x), float(y)) for x, y in drawn]
    return kinds


def evaluate(
    model: HookedACT,
    config: EvaluateConfig,
    dataset: Dataset | None,
    *,
    progress: Callable[[str, int, int], None] = lambda kind, done, total: None,
) -> list[Rollouts]:
    """Roll the policy out from every kind of cube position."""
    env = PickCube(height=config.height, width=config.width)
    results = []
    try:
        for kind, positions in position_kinds(config, dataset).items():
            success, error = [], []
            for number, cube_xy in enumerate(positions):
                result = rollout(
                    env,
                    lambda seen: model.select_action(as_observation(seen))[0].numpy(force=True),
                    model.reset,
                    cube_xy=cube_xy,
                    seed=config.seed + number,
                    steps=config.steps,
                )
                success.append(result.success)
                error.append(result.tip_error_mm)
                progress(kind, number + 1, len(positions))
            results.append(Rollouts(kind, positions, success, error))
    finally:
        env.close()
    return results


def main(argv: list[str] | None = None) -> int:
    """Roll out, print the table, write the figures."""
    import tyro
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table
    from rich.text import Text

    config = tyro.cli(
        EvaluateConfig, prog="python -m actlens.sim.evaluate", description=__doc__, args=argv
    )
    if config.threads:
        torch.set_num_threads(config.threads)
    model = HookedACT.from_pretrained(config.policy)
    if config.n_action_steps is not None:
        model.config = replace(model.config, n_action_steps=config.n_action_steps)
    dataset = None if config.dataset is None else open_dataset(config.dataset)
    with Progress(console=Console(stderr=True)) as bars:
        tasks = {}

        def show(kind: str, done: int, total: int) -> None:
            if kind not in tasks:
                tasks[kind] = bars.add_task(kind, total=total)
            bars.update(tasks[kind], completed=done)

        results = evaluate(model, config, dataset, progress=show)
    table = Table(title=Text(f"{config.policy}, closed loop"), title_justify="left")
    for column in ("cube", "success", "95 %", "gripper to cube, mm (quartiles)"):
        table.add_column(column)
    for result in results:
        s = result.summary
        table.add_row(
            result.kind,
            f"{s['successes']}/{s['rollouts']}",
            f"{s['success_low']:.0%}…{s['success_high']:.0%}",
            f"{s['tip_error_mm_q25']:.1f}  {s['tip_error_mm_median']:.1f}  "
            f"{s['tip_error_mm_q75']:.1f}",
        )
    Console().print(table)
    if config.output is not None:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        described = {k: v for k, v in asdict(config).items() if k not in ("output", "threads")}
        content = {
            "config": described,
            "summary": [result.summary for result in results],
            "rollouts": [asdict(result) for result in results],
        }
        config.output.write_text(json.dumps(content, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
