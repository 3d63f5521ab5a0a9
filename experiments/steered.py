"""The closed loop behind a key-value run: do values move the robot the way they promise?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from actlens.errors import InterventionError
from actlens.keyvalue import ClosedFormValues, KeyValueAnalysis, aligned
from actlens.model.act import HookedACT
from actlens.report.steering import render_steering
from actlens.scene import Scene
from experiments.command import rows

STEPS = 90
"""Control steps of a rollout, 40 ms each; a demonstration has 75."""
CLUSTER = 20
"""Neurons that are dosed together, of those whose values agree."""


@dataclass(frozen=True)
class Steered:
    """What came of the rollouts: the two tables and the files."""

    summary: pd.DataFrame
    dose_response: pd.DataFrame
    files: tuple[Path, ...]

    def rows(self) -> dict[str, list]:
        """The tables for JSON."""
        return {"steering": rows(self.summary), "dose_response": rows(self.dose_response)}

    def report(self, policy: str) -> RenderableType:
        """The console report."""
        return render_steering(
            self.summary,
            self.dose_response,
            policy=policy,
            files=self.files,
            dosing="values added at every inference; 1 = each neuron's 99th percentile",
        )


def steer_claims(
    result: KeyValueAnalysis,
    model: HookedACT,
    scenes: Sequence[Scene],
    folder: Path,
    console: Console,
    *,
    n: int,
    seed: int,
) -> Steered:
    """Dose the strongest neuron, and those whose values agree with its, in rollouts from n starts.

    Args:
        scenes: over which a neuron's own measure, its dose, is taken.
        console: shows progress.

    Raises:
        InterventionError: if no neuron fires often enough to be dosed.
        SceneError: if the simulator does not fit the policy.
    """
    from actlens.sim.conditions import draw_starts
    from actlens.sim.steered_rollouts import SteeringOptions, steer
    from actlens.sim.steering import Claim, NeuronScales

    scales = NeuronScales.of(model, scenes, result.own.reading.site.block, seed=seed)
    values = result.values
    size = np.where(scales.high > 0, values.size.cpu().numpy(), 0.0)
    if not size.any():
        raise InterventionError("No neuron fires often enough over these scenes to be dosed.")
    best = int(size.argmax())
    direction = tuple(values.adds[best].tolist())
    claims = [Claim(f"neuron {best}", (best,), direction)]
    if isinstance(values, ClosedFormValues):
        alike = aligned(values, values.directions.normalized[best], len(size)).tolist()
        together = tuple(neuron for neuron in alike if scales.high[neuron] > 0)[:CLUSTER]
        towards = tuple(values.adds[list(together)].sum(0).tolist())
        claims.append(Claim(f"{len(together)} that agree", together, towards))
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(TextColumn("rollouts"), *columns, console=console, transient=True) as bar:
        task = bar.add_task("rollouts")
        found = steer(
            model, draw_starts(n, seed=seed), scales, claims,
            options=SteeringOptions(steps=STEPS, seed=seed),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "steering.parquet"
    found.frame().to_parquet(file, index=False)
    return Steered(found.summary(), found.dose_response(), (file,))
