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
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from actlens.allocator import keep_freed_memory
from actlens.errors import ActlensError
from actlens.matmul import fastest_float32_matmul
from actlens.model.act import HookedACT
from actlens.patching import PatchingResult
from actlens.patching.large import patch_into, plan_patching, result_of
from actlens.patching.pair_sources import (
    PairList,
    PairSource,
)
from actlens.patching.patched_pair import PatchedPair, scenes_hash_of
from actlens.provenance import provenance
from actlens.report.plain import plain
from actlens.report.progress import showing_progress
from actlens.report.styles import BAD, WARNING
from actlens.shards import (
    Plan,
    Run,
    RunError,
    Shard,
    open_run,
    read_all,
    stored,
    to_tree,
)
from experiments.patching_options import Config, engine_of, folder_of, options
from experiments.patching_output import show, show_shard
from experiments.rollouts import require_simulator, roll_out
from experiments.scene_choice import choose_pairs, load

_OUTPUT = ("--output-dir", "--output_dir")


@dataclass(frozen=True)
class Sweep:
    """What a run asks, with the policy in memory."""

    config: Config
    model: HookedACT
    pairs: PairList
    plan: Plan


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
