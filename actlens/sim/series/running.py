"""Trains and measures the runs of a series; what is finished is never done again."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from pathlib import Path

import torch
from rich.console import Console

from actlens.errors import SceneError
from actlens.provenance import write_json
from actlens.shards import Processes
from actlens.sim.series.arms import Run
from actlens.sim.series.evaluation import EvaluationOptions, record_of
from actlens.sim.series.training import Size, dataset_of, record_missing, trained

_RECORDS = "records"


def run_series(
    folder: Path,
    runs: Sequence[Run],
    *,
    size: Size,
    options: EvaluationOptions,
    workers: int = 1,
    measure_again: bool = False,
    console: Console | None = None,
    notice: Callable[[str], None] = lambda sentence: None,
) -> tuple[dict, ...]:
    """Train and measure every run that has no record yet; interrupted, call it again.

    Args:
        folder: of the whole series: demonstrations that are not bundled, policies, records.
        runs: in the order in which they are begun.
        workers: processes, each with `size.threads` threads.
        measure_again: also measure policies that have a record.
        console: for the recording of demonstrations.
        notice: told when a run is finished.

    Returns:
        The records of all runs, in their order.

    Raises:
        ConfigError: if a folder holds a run of another size.
        RecordingError: if demonstrations cannot be recorded.
    """
    record_missing(tuple(dict.fromkeys(run.arm for run in runs)), folder, console or Console())
    lacking = [run for run in runs if measure_again or not _record(folder, run).is_file()]
    (folder / _RECORDS).mkdir(parents=True, exist_ok=True)
    if lacking:
        with Processes(workers).executor() as executor:
            under_way = {
                executor.submit(complete, run, folder, size, options): run for run in lacking
            }
            for count, future in enumerate(as_completed(under_way), 1):
                future.result()
                notice(f"{under_way[future].name} finished, {count} of {len(lacking)}")
    return tuple(json.loads(_record(folder, run).read_text()) for run in runs)


def complete(run: Run, folder: Path, size: Size, options: EvaluationOptions) -> None:
    """Train one run to its end, measure its policy and write its record."""
    torch.set_num_threads(size.threads)
    policy = trained(run, folder, size, Console(quiet=True))
    record = record_of(run, policy, dataset_of(run.arm, folder), options)
    write_json(_record(folder, run), record)


def finished(folder: Path) -> tuple[dict, ...]:
    """The records that are there: from much that was shown to little, seed by seed.

    Raises:
        SceneError: if there is none.
    """
    records = [json.loads(path.read_text()) for path in sorted((folder / _RECORDS).glob("*.json"))]
    if not records:
        raise SceneError(f"{folder} holds no finished run of a series.")

    def dose(record: dict) -> tuple:
        arm = record["arm"]
        places = arm["positions"]
        return places is not None, -arm["demonstrations"], -(places or 0), record["training_seed"]

    return tuple(sorted(records, key=dose))


def _record(folder: Path, run: Run) -> Path:
    return folder / _RECORDS / f"{run.name}.json"
