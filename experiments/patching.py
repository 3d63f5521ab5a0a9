"""Which camera patches, layers and heads carry what differs between two scenes?

Without arguments: the bundled policy, pairs of scenes in which only the cube moved, every token at
every depth of the encoder, every head and every sublayer, in both directions. With LeRobot's own
flags it runs on your checkpoint and data:

    python -m experiments.patching --policy.path=you/act_so101 --dataset.root=data/so101 \\
        --scene-a 3:0 --scene-b 7:0

Every pair's result is on disk once it is done. The same command with the same --output-dir goes on
where it was interrupted, with --workers in several processes, with --engine=dask on a cluster; with
--shard=i/n it computes one part, and `python -m experiments.merge` puts the parts together.
"""

import dataclasses
import itertools
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.text import Text

from actlens.allocator import keep_freed_memory
from actlens.errors import ActlensError
from actlens.interventions import Precision
from actlens.matmul import fastest_float32_matmul
from actlens.model.act import HookedACT
from actlens.patching import Direction, PatchingResult, SweepOptions
from actlens.patching.large import patch_into, per_pair_blocks, plan_patching, result_of
from actlens.patching.pair_sources import (
    PairList,
    PairSource,
)
from actlens.patching.patched_pair import PatchedPair, scenes_hash_of
from actlens.provenance import provenance, write_json
from actlens.report.heatmaps import save_heatmaps
from actlens.report.patching import render_patching
from actlens.report.plain import plain
from actlens.report.progress import showing_progress
from actlens.report.styles import BAD, WARNING
from actlens.shards import (
    Dask,
    Engine,
    Plan,
    Processes,
    Run,
    RunError,
    Shard,
    open_run,
    read_all,
    stored,
    to_tree,
)
from experiments.rollouts import RolledOut, require_simulator, roll_out
from experiments.scene_choice import Choice, choose_pairs, describe, load

MOST_PAIRS_BY_POSITION = 500
"""What every part did at every chunk position is kept for no more pairs than these."""
_OUTPUT = ("--output-dir", "--output_dir")


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


@dataclass(frozen=True)
class Sweep:
    """What a run asks, with the policy in memory."""

    config: Config
    model: HookedACT
    pairs: PairList
    plan: Plan


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


def open_sweep(config: Config) -> Sweep:
    """Load the policy, choose the pairs, and plan."""
    model = load(config)
    pairs = choose_pairs(config, model)
    plan = plan_patching(model, pairs, options=options(config), seed=config.seed)
    return Sweep(config, model, pairs, plan)


def patch(sweep: Sweep, folder: Path, console: Console) -> Run:
    """Patch the pairs (of the shard) that have no result in the folder; `console` shows how far."""
    config = sweep.config
    with showing_progress(console, "patching", "pairs") as tell:
        return patch_into(
            folder,
            sweep.model,
            sweep.pairs,
            sweep.plan,
            shard=None if config.shard is None else Shard.parse(config.shard),
            engine=engine_of(config),
            policy=config.policy.files,
            about={"config": to_tree(dataclasses.replace(config, output_dir=None))},
            progress=tell,
            notice=lambda sentence: console.print(Text(plain(sentence), style=WARNING)),
        )


def gather(
    runs: Sequence[Run], model: HookedACT, source: PairSource
) -> tuple[PatchingResult, dict[str, object]]:
    """The result of a run's folders, and the facts that identify it."""
    plan = runs[0].plan
    patched = list(read_all(runs, PatchedPair))
    result = result_of(model, plan, patched, source)
    return result, {
        "scenes_sha256": scenes_hash_of(patched),
        "pairs": [[pair.clean.address, pair.corrupt.address] for pair in result.pairs],
        "asked": plan.asked,
        "settled": [run.settled for run in runs],
        "audits": [dataclasses.asdict(audit) for audit in result.audits],
        "patches": len(result.parts) * len(result.pairs) * (3 if result.null else 2),
    }


def run(config: Config, console: Console) -> tuple[PatchingResult, HookedACT, dict]:
    """Load, patch, and say what it took; `console` shows progress.

    Raises:
        RunError: if the options ask for one shard, which has no result of its own.
    """
    if config.shard is not None:
        raise RunError("One shard has no result of its own: merge all of them.")
    began = time.monotonic()
    reuses_memory = keep_freed_memory()
    sweep = open_sweep(config)
    with fastest_float32_matmul() as matmul:
        found = patch(sweep, folder_of(config), console)
    result, facts = gather([found], sweep.model, sweep.pairs.source)
    facts |= {"matmul": dataclasses.asdict(matmul), "keeps_freed_memory": reuses_memory}
    seconds = time.monotonic() - began
    return result, sweep.model, provenance(sweep.model, config, seconds=seconds, facts=facts)


def run_shard(config: Config, console: Console) -> dict[str, object]:
    """Patch one shard; how far the whole run is in its folder."""
    keep_freed_memory()
    folder, shard = folder_of(config), Shard.parse(config.shard or "")
    sweep = open_sweep(config)
    with fastest_float32_matmul():
        found = patch(sweep, folder, console)
    done = stored(found, found.plan.units).done
    return {
        "shard": str(shard),
        "pairs": len(shard.units(found.plan)),
        "stored": len(done),
        "total": len(found.plan.units),
        "folder": str(folder),
    }


def folder_of(config: Config) -> Path:
    """Where files go."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return config.output_dir or Path("runs") / f"patching-{stamp}"


def write_files(
    result: PatchingResult,
    table: pd.DataFrame,
    joints: pd.DataFrame,
    model: HookedACT,
    origin: dict,
    folder: Path,
) -> tuple[Path, ...]:
    """Tables (`result.frame()` and `joints()` among them), pictures and provenance of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "sites.csv", index=False)
    table.to_parquet(folder / "sites.parquet", index=False)
    write_per_pair(result, folder / "per_pair.parquet")
    written = ["sites.csv", "sites.parquet", "per_pair.parquet", "joints.parquet"]
    joints.to_parquet(folder / "joints.parquet", index=False)
    if result.options.by_position:
        result.chunk_positions().to_parquet(folder / "chunk_positions.parquet", index=False)
        written.append("chunk_positions.parquet")
    for direction in Direction:
        for name, pair in (("first_pair", 0), ("pooled", None)):
            file = f"{direction.value}_{name}.png"
            save_heatmaps(result, model.config, folder / file, direction=direction, pair=pair)
            written.append(file)
    write_json(folder / "provenance.json", origin)
    return tuple(folder / name for name in [*written, "provenance.json"])


def write_per_pair(result: PatchingResult, path: Path) -> None:
    """The table of `result.per_pair()`, some pairs at a time: whole, it can outgrow the memory."""
    blocks = (pa.Table.from_pandas(rows, preserve_index=False) for rows in per_pair_blocks(result))
    first = next(blocks)
    with pq.ParquetWriter(path, first.schema) as file:
        for rows in itertools.chain((first,), blocks):
            file.write_table(rows)


def show(
    result: PatchingResult,
    model: HookedACT,
    origin: dict,
    config: Config,
    folder: Path,
    rolled: RolledOut | None = None,
) -> None:
    """Write a run's files, and print the report or the JSON."""
    frame, joints = result.frame(), result.joints()
    files = write_files(result, frame, joints, model, origin, folder)
    if config.json:
        rows = json.loads(frame.to_json(orient="records"))
        content = {"sites": rows, "provenance": origin} | (rolled.rows() if rolled else {})
        sys.stdout.write(json.dumps(content) + "\n")
        return
    took = (
        f"{origin['patches']:,} patches in {origin['seconds']:.0f} s, {origin['threads']} threads"
    )
    Console().print(
        render_patching(
            result,
            frame,
            joints=joints,
            policy=describe(model, config.policy.path),
            facts=[("run", took)],
            files=files,
            next_steps=[
                "python -m experiments.patching --policy.path=so101-pick-cube-5pos",
                "python -m experiments.patching --policy.path=… --dataset.root=…   your own policy",
            ],
        )
    )
    if rolled is not None:
        Console().print(Text(), rolled.report(describe(model, config.policy.path)))


def show_shard(facts: dict[str, object], config: Config) -> None:
    """Print how far a sharded run is, and what comes next."""
    if config.json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    Console().print(
        Text(
            f"shard {facts['shard']}: its {facts['pairs']} pairs are stored in {facts['folder']}, "
            f"{facts['stored']} of {facts['total']} in all\n"
            f"when all shards are done: python -m experiments.merge {facts['folder']}"
        )
    )


def how_to_go_on(argv: Sequence[str], folder: Path) -> str:
    """What to say after Ctrl-C."""
    try:
        run = open_run(folder)
    except RunError:
        return "interrupted; nothing was written"
    done = len(stored(run, run.plan.units).done)
    again, words = [], iter(argv)
    for word in words:
        if word in _OUTPUT:
            next(words, None)
        elif not word.startswith(tuple(f"{flag}=" for flag in _OUTPUT)):
            again.append(word)
    command = shlex.join(["python", "-m", "experiments.patching", *again, f"--output-dir={folder}"])
    return (
        f"interrupted; {done} of {len(run.plan.units)} pairs are stored in {folder}. To go on:\n"
        f"  {command}"
    )


def guarded(work: Callable[[], None], console: Console, interrupted: Callable[[], str]) -> int:
    """Do the work of a command; its exit code, after one clear line where it failed."""
    try:
        work()
    except ActlensError as error:
        console.print(Text(plain(f"{type(error).__name__}: {error}"), style=BAD))
        return 3
    except KeyboardInterrupt:
        console.print(Text(plain(interrupted())), soft_wrap=True)
        return 130
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, write, show."""
    import tyro

    argv = sys.argv[1:] if argv is None else argv
    config = tyro.cli(
        Config,
        prog="python -m experiments.patching",
        description=__doc__,
        args=argv,
        config=(tyro.conf.EnumChoicesFromValues,),
    )
    folder = folder_of(config)
    config = dataclasses.replace(config, output_dir=folder)
    console = Console(stderr=True)

    def work() -> None:
        if config.shard is not None:
            show_shard(run_shard(config, console), config)
            return
        if config.rollout:
            require_simulator()
        result, model, origin = run(config, console)
        rolled = None
        if config.rollout:
            n, seed = config.rollout, config.seed
            rolled = roll_out(result, model, folder, console, n=n, seed=seed)
        show(result, model, origin, config, folder, rolled)

    return guarded(work, console, lambda: how_to_go_on(argv, folder))


if __name__ == "__main__":
    raise SystemExit(main())
