"""Train small policies on more and fewer demonstrations, and measure how far beyond them each goes.

5, 10, 20, 50 and 100 demonstrations all over the table, and 50 at 1, 5 and 9 places; from scratch,
for equally many steps. Interrupted, the same command goes on. Results are shown by
`python -m experiments.generalization`.

    python -m experiments.series --workers 2
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from actlens.errors import SceneError
from actlens.sim.series import EvaluationOptions, Size, all_runs, finished, pack, run_series
from experiments.command import attempt

FOLDER = Path("runs/series")


@dataclass(frozen=True)
class Config:
    """Options of the series."""

    folder: Path = FOLDER
    """Where its demonstrations, policies and records are; with the same one it goes on."""
    seeds: int = 3
    """Policies of every dose."""
    workers: int = 1
    """Policies that are trained at a time."""
    size: Size = field(default_factory=Size)
    measure: EvaluationOptions = field(default_factory=EvaluationOptions)
    measure_again: bool = False
    """Measure policies that were measured before once more."""
    only: tuple[str, ...] = ()
    """Only runs whose names begin so (`demonstrations-5-`, `positions`)."""
    pack: Path | None = None
    """Train nothing: write all records that there are into this file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, measure, say where the records are."""
    import tyro

    config = tyro.cli(Config, prog="python -m experiments.series", description=__doc__, args=argv)
    console = Console(stderr=True)
    return attempt(lambda: _carry_out(config, console), config.folder, console)


def _carry_out(config: Config, console: Console) -> None:
    if config.pack is not None:
        records = finished(config.folder)
        pack(records, config.pack)
        console.print(f"{len(records)} runs in {config.pack}")
        return
    runs = all_runs(config.seeds)
    if config.only:
        runs = tuple(run for run in runs if run.name.startswith(config.only))
    if not runs:
        raise SceneError("No run has such a name.")
    run_series(
        config.folder,
        runs,
        size=config.size,
        options=config.measure,
        workers=config.workers,
        measure_again=config.measure_again,
        console=console,
        notice=lambda sentence: console.print(sentence),
    )
    console.print(
        f"{len(runs)} runs measured; python -m experiments.generalization --series {config.folder}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
