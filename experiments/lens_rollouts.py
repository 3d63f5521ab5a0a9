"""The closed loop behind the lens: what an unfinished network can do."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console, RenderableType

from actlens.lens import tune
from actlens.matmul import fastest_float32_matmul
from actlens.model.act import HookedACT
from actlens.report.lens_rollouts import render_lens_rollouts
from actlens.report.progress import showing_progress
from actlens.scenes.dataset import Dataset
from experiments.command import write_tables
from experiments.rollouts import STEPS


@dataclass(frozen=True)
class LensRollouts:
    """What came of the rollouts: the tables and the files."""

    rollouts: pd.DataFrame
    """`SubstitutedRollouts.frame()`: one row a rollout."""
    summary: pd.DataFrame
    """`SubstitutedRollouts.summary()`: one row per region and lens."""
    files: tuple[Path, ...]

    def frames(self) -> dict[str, pd.DataFrame]:
        """Both tables by name."""
        return {"rollouts": self.rollouts, "rollouts_summary": self.summary}

    def report(self, policy: str) -> RenderableType:
        """The console report."""
        return render_lens_rollouts(self.summary, policy=policy, steps=STEPS, files=self.files)


def roll_out(
    model: HookedACT, fitted: Dataset, folder: Path, console: Console, *, n: int, seed: int
) -> LensRollouts:
    """Let the arm do what lenses show; maps are fitted at all frames at which a rollout infers.

    Args:
        fitted: the demonstrations to tune on.
        folder: keeps what was finished.
        console: shows progress.
        n: starts in every region.
        seed: of starts, folds and bootstraps.

    Raises:
        SceneError: if the simulator does not fit the policy.
        RunError: if the folder holds rollouts of something else.
    """
    from actlens.sim.lensed_rollouts import acting_lenses, lensed_rollouts

    every = slice(None, None, model.config.n_action_steps)
    tuned = tune(model, list(fitted.scenes(chunk=model.config.chunk, frames=every)), seed=seed)
    with fastest_float32_matmul(), showing_progress(console, "rolling out", "rollouts") as show:
        found = lensed_rollouts(
            model, acting_lenses(model, tuned), folder / "rollouts",
            n=n, steps=STEPS, seed=seed, progress=show,
        )  # fmt: skip
    tables = {"rollouts": found.frame(), "rollouts_summary": found.summary()}
    files = write_tables(tables, folder)
    return LensRollouts(tables["rollouts"], tables["rollouts_summary"], tuple(files))
