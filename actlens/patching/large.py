"""Patching as work for a folder: any number of pairs, on one machine or many, killed and resumed.

`patch_pairs_in` gives what `patch_pairs` gives, bit for bit. Every pair is a unit of its own: it is
read, patched and written without the others, and what it comes to does not depend on them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from actlens.errors import SceneError
from actlens.model.act import HookedACT
from actlens.patching.identity import code_version, model_hash
from actlens.patching.pair_sources import PairList, PairsInMemory, PairSource
from actlens.patching.pair_work import Bench, Meter, PatchWork, PolicyFiles, Setting, matmul_as
from actlens.patching.pairs import collected, first_tolerance, one_thread_each
from actlens.patching.parts import parts_of
from actlens.patching.patched_pair import PatchedPair
from actlens.patching.result import PatchingResult
from actlens.patching.sweep import SweepOptions
from actlens.shards import (
    Engine,
    Plan,
    Progress,
    Run,
    RunError,
    Shard,
    Threads,
    begin,
    complete,
    from_tree,
    read_all,
    to_tree,
)
from actlens.shards.keys import canonical


def patch_pairs_in(
    folder: str | Path,
    model: HookedACT,
    pairs: PairList,
    *,
    options: SweepOptions | None = None,
    seed: int = 0,
    engine: Engine | None = None,
    policy: PolicyFiles | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
    notice: Callable[[str], None] = lambda sentence: None,
) -> PatchingResult:
    """What `patch_pairs` gives, with every pair's result in a file of the folder once it is done.

    The same call goes on where an earlier one ended, however that was. Pictures of the result's
    pairs are read when they are looked at.

    Args:
        engine: where pairs are patched; threads of this process, as many as torch uses, if None.
        policy: from which other processes load `model`; needed for engines outside this one.
        progress: told how many pairs are done, and how long the others will take.
        notice: told of damaged files and dead workers.

    Raises:
        RunError: if the folder holds another run, or pairs failed.
        SceneError: if no pair is left whose two action chunks differ enough.
    """
    plan = plan_patching(model, pairs, options=options, seed=seed)
    run = patch_into(
        Path(folder), model, pairs, plan,
        engine=engine, policy=policy, progress=progress, notice=notice,
    )  # fmt: skip
    return result_of(model, plan, list(read_all([run], PatchedPair)), pairs.source)


def plan_patching(
    model: HookedACT, pairs: PairList, *, options: SweepOptions | None = None, seed: int = 0
) -> Plan:
    """What the sweep asks, and a unit for each pair: hashes of the policy, the data and the code.

    Raises:
        SceneError: if there is no pair, or the data cannot be read.
    """
    if not pairs.items:
        raise SceneError("There is no pair to patch.")
    asked = {
        "work": "patching",
        "policy": model_hash(model),
        "scenes": pairs.source.sha256(),
        "options": to_tree(options or SweepOptions()),
        "seed": seed,
        "with_null": pairs.with_null,
        "code": code_version(),
    }
    return Plan.of(asked, pairs.items)


def patch_into(
    folder: Path,
    model: HookedACT,
    pairs: PairList,
    plan: Plan,
    *,
    shard: Shard | None = None,
    engine: Engine | None = None,
    policy: PolicyFiles | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
    notice: Callable[[str], None] = lambda sentence: None,
) -> Run:
    """Patch the pairs of a plan, or of one shard of it, that have no result in the folder yet.

    How to compute is settled when the run begins, and kept in the folder: the tolerance that the
    first pair calls for (where an error is allowed), and torch's setting of float32 products.

    Args:
        about: kept in the folder for whoever reads it later.

    Raises:
        RunError: as `patch_pairs_in`.
    """
    here = engine is None or isinstance(engine, Threads)
    if not here and (policy is None or isinstance(pairs.source, PairsInMemory)):
        raise RunError(
            "Other processes load policy and pairs for themselves: give `policy`, and pairs of a "
            "file or a dataset (`save_pairs` makes a file of pairs in memory)."
        )
    options = from_tree(SweepOptions, plan.asked["options"])
    seed = plan.asked["seed"]
    parts = parts_of(model)
    units = (shard or Shard()).units(plan)

    def settle() -> dict[str, Any]:
        first = pairs.source.read(plan.units[0].what)
        return {
            "tolerance": first_tolerance(model, first, parts, options, seed),
            "matmul": torch.get_float32_matmul_precision(),
        }

    run = begin(folder, plan, settle=settle, about=about)
    setting = Setting.of(plan.asked, run.settled)
    if engine is None or isinstance(engine, Threads):
        n = None if engine is None else engine.n
        with matmul_as(setting.matmul), one_thread_each(model, n, len(units)) as n:
            bench = Bench(model, pairs.source, setting, parts)
            meter = Meter(len(parts) * (3 if pairs.with_null else 2), progress)
            work = partial(bench.patched, advance=meter.advance)
            threads = Threads(n, meter.stopped)
            complete(run, units, work, threads, progress=meter.report, notice=notice)
        return run
    assert policy is not None
    work = PatchWork(policy, pairs.source, canonical(plan.asked), canonical(run.settled))
    complete(run, units, work, engine, progress=progress, notice=notice)
    return run


def result_of(
    model: HookedACT, plan: Plan, patched: Sequence[PatchedPair], source: PairSource
) -> PatchingResult:
    """The result of a whole plan, from its pairs' in the plan's order.

    Args:
        patched: from `read_all(runs, PatchedPair)`.
        source: of the pairs' pictures; looked into only if somebody looks at them.

    Raises:
        RunError: if the plan is about another policy.
        SceneError: if no pair is left whose two action chunks differ enough.
    """
    if model_hash(model) != plan.asked["policy"]:
        raise RunError("The run is about another policy than this one; give its own.")
    pairs = [
        one.pair(partial(source.read, unit.what))
        for one, unit in zip(patched, plan.units, strict=True)
    ]
    options = from_tree(SweepOptions, plan.asked["options"])
    found = [one.patches for one in patched]
    return collected(model, pairs, parts_of(model), found, options, plan.asked["seed"])


def per_pair_blocks(result: PatchingResult, pairs: int = 64) -> Iterator[pd.DataFrame]:
    """`result.per_pair()` some pairs at a time: of ten thousand, the whole table fills 10 GB."""
    clusters = result.clusters
    for start in range(0, len(result.pairs), pairs):
        some = slice(start, start + pairs)
        block = replace(
            result,
            sweeps={way: sweeps[some] for way, sweeps in result.sweeps.items()},
            null=result.null[some],
            pairs=result.pairs[some],
        ).per_pair()
        number = block["pair"] + start
        yield block.assign(pair=number, cluster=clusters[number])
