"""The closed loop behind the question of retrieval: what suffices, and what warns of failures.

Ready to be called by a command, with a policy, its demonstrations and a folder:

    found = roll_out(model, dataset, folder, console, n=20, seed=0)
    found.frames()            # {"substituted": …, "substituted_summary": …, "monitor": …}
    found.report(policy)      # a renderable; found.rows() for JSON; found.files: what was written

The folder keeps every rollout as it ends; called again with the same arguments and folder, it goes
on where it was interrupted. About two seconds a rollout: 11 conditions, n starts in 3 regions.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from actlens.matmul import fastest_float32_matmul
from actlens.metrics import executed_positions
from actlens.model.act import HookedACT
from actlens.report.progress import showing_progress
from actlens.report.retrieval_rollouts import render_retrieval_rollouts
from actlens.retrieval import Demonstrations, run_demonstrations
from actlens.scenes.dataset import Dataset
from experiments.command import rows, write_tables
from experiments.rollouts import STEPS


@dataclass(frozen=True)
class RetrievalRollouts:
    """What came of the rollouts: the tables and the files."""

    substituted: pd.DataFrame
    """`SubstitutedRollouts.frame()`: one row a rollout."""
    summary: pd.DataFrame
    """`SubstitutedRollouts.summary()`: one row per region and condition."""
    monitor: pd.DataFrame
    """`monitor_table`: one row per region, site and time of looking."""
    files: tuple[Path, ...]

    def frames(self) -> dict[str, pd.DataFrame]:
        """All tables by name."""
        return dict(zip(_TABLES, (self.substituted, self.summary, self.monitor), strict=True))

    def rows(self) -> dict[str, list]:
        """The tables for JSON."""
        return {name: rows(table) for name, table in self.frames().items()}

    def report(self, policy: str) -> RenderableType:
        """The console report."""
        return render_retrieval_rollouts(
            self.summary, self.monitor, policy=policy, steps=STEPS, files=self.files
        )


def roll_out(
    model: HookedACT,
    dataset: Dataset,
    folder: Path,
    console: Console,
    *,
    n: int,
    watched: int | None = None,
    seed: int = 0,
    false_alarms: float = 0.05,
) -> RetrievalRollouts:
    """Put surrogates and bare retrieval in the policy's place, and watch the policy itself.

    Args:
        dataset: the policy's demonstrations, with labels cube_x, cube_y.
        folder: keeps what was finished.
        console: shows progress.
        n: starts in every region (new places in demonstrated cells, held-out cells, the strip) that
            every condition is rolled out from; with 0 the policy is only watched.
        watched: starts in every region from which the undisturbed policy is watched; n if not
            given.
        seed: of starts and bootstraps.
        false_alarms: that the monitors' thresholds promise at most.

    Raises:
        InterventionError: if there is no start, or fewer are watched than rolled out.
        SceneError: if the simulator does not fit the policy.
        RetrievalError: if labels are missing, or demonstrations too few.
        RunError: if the folder holds rollouts of something else.
    """
    from actlens.sim.conditions import UNDISTURBED
    from actlens.sim.monitor_table import monitor_table
    from actlens.sim.monitored_rollouts import scores
    from actlens.sim.retrieval_rollouts import n_watched, retrieval_rollouts
    from actlens.sim.substituted_rollouts import SubstitutedRollouts

    every, watched = model.config.n_action_steps, n_watched(n, watched)
    with fastest_float32_matmul():
        demonstrations = _run(model, dataset, every, console)
        with showing_progress(console, "rolling out", "rollouts") as show:
            rolled = retrieval_rollouts(
                model, demonstrations, folder / "rollouts",
                n=n, watched=watched, steps=STEPS, seed=seed, progress=show,
            )  # fmt: skip
    plain = [one for one in rolled if one.condition == UNDISTURBED.name]
    made = scores(
        plain, demonstrations, executed_positions(model.config), every, false_alarms=false_alarms
    )
    contest = SubstitutedRollouts(tuple(one for one in rolled if one.number < n or not n), seed)
    tables = (contest.frame(), contest.summary(), monitor_table(made, plain, seed=seed))
    files = write_tables(dict(zip(_TABLES, tables, strict=True)), folder)
    return RetrievalRollouts(*tables, tuple(files))


_TABLES = ("substituted", "substituted_summary", "monitor")


def _run(model: HookedACT, dataset: Dataset, every: int, console: Console) -> Demonstrations:
    """The demonstrations at the frames at which a rollout would infer."""
    from actlens.sim.watching import watched_sites

    frames = slice(None, None, every)
    total = sum(len(range(episode.length)[frames]) for episode in dataset.episodes)
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(TextColumn("demonstrations"), *columns, console=console, transient=True) as bar:
        task = bar.add_task("demonstrations", total=total)
        return run_demonstrations(
            model,
            dataset.scenes(chunk=model.config.chunk, frames=frames),
            watched_sites(model),
            progress=lambda n: bar.advance(task, n),
        )
