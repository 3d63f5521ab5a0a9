"""What a patching run can be asked for."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from actlens.interventions import Precision
from actlens.patching import SweepOptions
from actlens.shards import Dask, Engine, Processes, RunError
from experiments.scene_choice import Choice

MOST_PAIRS_BY_POSITION = 500
"""What every part did at every chunk position is kept for no more pairs than these."""


class Where(StrEnum):
    """Where pairs are patched."""

    LOCAL = "local"
    """On this machine."""
    DASK = "dask"
    """By the workers of a Dask cluster."""


@dataclass(frozen=True)
class Config(Choice):
    """Options of the run."""

    min_effect: float = 1.0
    """Leave out pairs whose actions differ by less (root mean square, dataset units)."""
    max_error: float = 0.002
    """Allowed error of a patched action chunk, as a share of its norm, audited against exact
    patches in every sweep; 0 makes every patch exact, in about twice the time."""
    precision: Precision = Precision.FULL
    """Of the large products; half is faster on most CPUs, within the allowed error."""
    rollout: int = 0
    """Also patch the strongest parts in closed loop, from so many starts in the simulator (extra
    `sim`), and film the first."""
    seed: int = 0
    """Of bootstrap, permutations, audits and rollouts."""
    output_dir: Path | None = None
    """Where files go; runs/patching-DATE-TIME if not given. The same folder again goes on with an
    interrupted run."""
    workers: int | None = None
    """Processes of this machine that patch pairs; threads of this process if not given."""
    engine: Where = Where.LOCAL
    """Where pairs are patched."""
    scheduler: str | None = None
    """With --engine=dask: the scheduler's address, such as tcp://10.0.0.1:8786, or its file."""
    shard: str | None = None
    """Patch only the i-th of n parts of the pairs, i/n from 1/n to n/n, and leave the report to
    experiments.merge."""
    json: bool = False
    """Print one JSON object instead of the report."""


def options(config: Config) -> SweepOptions:
    """The library's options among those of the run."""
    return SweepOptions(
        min_effect=config.min_effect,
        max_error=config.max_error,
        precision=config.precision,
        by_position=config.pairs <= MOST_PAIRS_BY_POSITION,
    )


def engine_of(config: Config) -> Engine | None:
    """Where pairs are patched; None for threads of this process.

    Raises:
        RunError: if the options contradict each other.
    """
    if config.workers is not None and config.workers < 1:
        raise RunError(f"--workers is a number of processes, at least 1; got {config.workers}.")
    if config.engine is Where.DASK:
        if config.scheduler is None:
            raise RunError(
                "--engine=dask needs --scheduler=ADDRESS; `dask scheduler` prints it when it "
                "starts, as tcp://HOST:8786."
            )
        if config.workers is not None:
            raise RunError("--workers is for --engine=local; a Dask cluster has its own workers.")
        return Dask(config.scheduler)
    if config.scheduler is not None:
        raise RunError("--scheduler is Dask's: add --engine=dask.")
    return None if config.workers is None else Processes(config.workers)


def folder_of(config: Config) -> Path:
    """Where files go."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return config.output_dir or Path("runs") / f"patching-{stamp}"
