"""The closed loop behind a patching run: what its strongest parts do to the robot."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from actlens.errors import SceneError
from actlens.model.act import HookedACT
from actlens.patching import PatchingResult
from actlens.report.closed_loop import render_closed_loop
from experiments.command import rows

STEPS = 90
"""Control steps of a rollout, 40 ms each; a demonstration has 75."""


def require_simulator() -> None:
    """Raise before any work if the simulator is not installed.

    Raises:
        SceneError: naming what to install.
    """
    # Not imported here: MuJoCo takes its renderer when it is, and `actlens.sim` chooses it.
    missing = [name for name in ("mujoco", "gymnasium") if find_spec(name) is None]
    if missing:
        raise SceneError(
            f"Rollouts need the simulator, and {missing[0]} is not installed: "
            "pip install 'hooked-act[sim]'."
        )


@dataclass(frozen=True)
class RolledOut:
    """What came of the rollouts: the two tables, the files, and what the film shows."""

    summary: pd.DataFrame
    correction: pd.DataFrame
    files: tuple[Path, ...]
    film: str

    def rows(self) -> dict[str, list]:
        """The tables for JSON."""
        return {"rollouts": rows(self.summary), "correction": rows(self.correction)}

    def report(self, policy: str) -> RenderableType:
        """The console report."""
        return render_closed_loop(
            self.summary,
            self.correction,
            policy=policy,
            steps=STEPS,
            facts=[("film", self.film)],
            files=self.files,
        )


def roll_out(
    result: PatchingResult, model: HookedACT, folder: Path, console: Console, *, n: int, seed: int
) -> RolledOut:
    """Patch the strongest parts of a result in rollouts from `n` starts; write tables and a film.

    `console` shows progress.
    """
    from actlens.sim.conditions import draw_starts
    from actlens.sim.patched_rollouts import film_patch, patch_rollouts, strongest_sites

    sites, starts = strongest_sites(model, result), draw_starts(n, seed=seed)
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(TextColumn("rollouts"), *columns, console=console, transient=True) as bar:
        task = bar.add_task("rollouts")
        found = patch_rollouts(
            model, sites, starts, steps=STEPS, seed=seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    files = tuple(
        folder / name for name in ("rollouts.parquet", "correction.parquet", "rollout.mp4")
    )
    found.closed_loop.frame().to_parquet(files[0], index=False)
    found.correction.frame().to_parquet(files[1], index=False)
    name, site = next(iter(sites.items()))
    film_patch(files[2], model, name, site, starts[0], steps=STEPS)
    return RolledOut(
        found.closed_loop.summary(),
        found.correction.summary(),
        files,
        f"{name}: left as it is, right patched at every inference",
    )
