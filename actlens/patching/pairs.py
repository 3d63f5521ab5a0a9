"""Activation patching between two scenes: which parts carry what differs between them?

Every part is patched by itself, in both directions, over pairs of scenes from independent episodes.
Pairs are independent pieces of work: here they are shared out to threads.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from threading import Event, Lock

import torch

from actlens.errors import SceneError
from actlens.interventions import FromScene, Intervention, run_scene, run_within
from actlens.interventions.budget import LARGEST_TOLERANCE
from actlens.metrics import Direction
from actlens.model.act import HookedACT
from actlens.patching.parts import Part, Unit, parts_of, token_groups
from actlens.patching.result import PatchingResult
from actlens.patching.sweep import (
    PairSweep,
    SweepOptions,
    action_difference,
    sweep_pair,
)
from actlens.scene import ScenePair

_CALIBRATED_ON = 64
"""Patches of the first pair on which the tolerance of all pairs is first lowered."""


@dataclass(frozen=True)
class PairPatches:
    """What patching one pair gave; no sweeps where its two actions differ too little."""

    effect: float
    """Root mean square difference of the two scenes' actions, in dataset units."""
    sweeps: dict[Direction, PairSweep]
    null: PairSweep | None = None


def patch_pairs(
    model: HookedACT,
    pairs: Sequence[ScenePair],
    *,
    options: SweepOptions | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PatchingResult:
    """Patch every part of every pair in both directions, and the null if all pairs have donors.

    Args:
        pairs: those that share an episode are one cluster of the intervals.
        workers: pairs that are patched at a time; as many as torch uses threads if not given.
        progress: called with (patches done, patches in all).

    Raises:
        SceneError: if no pair is left whose two action chunks differ enough.
    """
    options = options or SweepOptions()
    with_null = all(pair.unrelated_corrupt is not None for pair in pairs)
    parts = parts_of(model)
    total = len(pairs) * len(parts) * (3 if with_null else 2)
    tolerance = first_tolerance(model, pairs[0], parts, options, seed) if pairs else 0.0
    hooks_in_use, counting, stopped = Lock(), Lock(), Event()
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        if stopped.is_set():
            raise _Stopped
        with counting:
            done += n
            progress(done, total)

    def patched(pair: ScenePair) -> PairPatches:
        return patch_pair(
            model, pair, parts=parts, options=options, with_null=with_null,
            tolerance=tolerance, seed=seed, advance=advance, hooks_in_use=hooks_in_use,
        )  # fmt: skip

    with one_thread_each(model, workers, len(pairs)) as n, ThreadPoolExecutor(n) as pool:
        futures = [pool.submit(patched, pair) for pair in pairs]
        try:
            found = [future.result() for future in futures]
        except BaseException:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    return collected(model, pairs, parts, found, options, seed)


def patch_pair(
    model: HookedACT,
    pair: ScenePair,
    *,
    parts: Sequence[Part],
    options: SweepOptions,
    with_null: bool,
    tolerance: float = LARGEST_TOLERANCE,
    seed: int = 0,
    advance: Callable[[int], None] = lambda n: None,
    hooks_in_use: AbstractContextManager | None = None,
) -> PairPatches:
    """One pair in both directions, and the null.

    Args:
        tolerance: to begin with, where an error is allowed.
        hooks_in_use: held while the model runs with hooks, which belong to the model and not to a
            thread.
    """
    scenes = [pair.clean, pair.corrupt]
    if with_null and pair.unrelated_corrupt is not None:
        scenes.append(pair.unrelated_corrupt)
    with hooks_in_use or nullcontext():
        clean, corrupt, *unrelated = (run_scene(model, scene) for scene in scenes)
    both = (pair.clean, pair.corrupt)
    effect = action_difference(model, clean, corrupt, options=options, scenes=both)
    if effect < options.min_effect:
        advance(len(parts) * len(scenes))
        return PairPatches(effect, {})
    groups = token_groups(model, pair, options.image_tolerance)
    sweep = lambda base, donor, target: sweep_pair(
        model, base, donor, target, groups=groups, parts=parts, options=options,
        scenes=both, tolerance=tolerance, seed=seed, advance=advance,
    )  # fmt: skip
    return PairPatches(
        effect,
        {
            Direction.DENOISE: sweep(corrupt, clean, clean),
            Direction.NOISE: sweep(clean, corrupt, corrupt),
        },
        sweep(corrupt, unrelated[0], clean) if unrelated else None,
    )


class _Stopped(Exception):
    """Another pair failed, or the run was interrupted."""


@contextmanager
def one_thread_each(model: HookedACT, workers: int | None, n_pairs: int) -> Generator[int]:
    """How many workers; on a CPU each computes with one thread.

    Two workers of one thread never wait for one another, as the threads of one product do at its
    end; on a machine that is busy otherwise that is several times faster.
    """
    threads = torch.get_num_threads()
    on_cpu = model.action_head.weight.device.type == "cpu"
    workers = max(1, min(workers or (threads if on_cpu else 1), n_pairs))
    if on_cpu and workers > 1:
        torch.set_num_threads(max(1, threads // workers))
    try:
        yield workers
    finally:
        torch.set_num_threads(threads)


def first_tolerance(
    model: HookedACT, pair: ScenePair, parts: Sequence[Part], options: SweepOptions, seed: int
) -> float:
    """The largest tolerance that keeps some patches of one pair within the allowed error."""
    if not options.max_error:
        return 0.0
    clean, corrupt = (run_scene(model, scene) for scene in (pair.clean, pair.corrupt))
    tokens = [part for part in parts if part.unit is Unit.TOKEN]
    sites = [part.site({}) for part in tokens[:: max(1, len(tokens) // _CALIBRATED_ON)]]
    patches = [Intervention.at(site, FromScene("clean")) for site in sites if site is not None]
    donors = {"clean": clean}
    _, audit = run_within(
        model, corrupt, patches, donors,
        max_error=options.max_error / 2, precision=options.precision, seed=seed,
    )  # fmt: skip
    return audit.tolerance


def collected(
    model: HookedACT,
    pairs: Sequence[ScenePair],
    parts: tuple[Part, ...],
    found: Sequence[PairPatches],
    options: SweepOptions,
    seed: int,
) -> PatchingResult:
    """The result of pairs that were patched one by one.

    Raises:
        SceneError: if no pair is left whose two action chunks differ enough.
    """
    kept = [(pair, patches) for pair, patches in zip(pairs, found, strict=True) if patches.sweeps]
    left_out = [
        (pair, patches.effect)
        for pair, patches in zip(pairs, found, strict=True)
        if not patches.sweeps
    ]
    if not kept:
        largest = max((effect for _, effect in left_out), default=0.0)
        raise SceneError(
            f"The two actions of {'the pair' if len(pairs) == 1 else f'all {len(pairs)} pairs'} "
            f"differ by less than {options.min_effect:g} (largest {largest:.3g}), "
            "so there is nothing to restore: choose scenes that differ more, or lower min_effect."
        )
    return PatchingResult(
        parts,
        {way: tuple(patches.sweeps[way] for _, patches in kept) for way in Direction},
        tuple(patches.null for _, patches in kept if patches.null is not None),
        tuple(pair for pair, _ in kept),
        tuple(left_out),
        kept[0][0].differs_in,
        {camera: model.tokens.grid(camera) for camera in model.tokens.cameras},
        options,
        seed,
        model.config.joints,
    )
