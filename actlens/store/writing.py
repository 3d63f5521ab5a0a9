"""Scenes through a policy, batch by batch, and what was asked of their activations into shards."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor

from actlens.model.act import HookedACT
from actlens.scene import Scene, stack
from actlens.store.appending import Content, append_shards, fill_shard
from actlens.store.errors import StoreError
from actlens.store.files import discard, holds_nothing, locked, make_folder, publish, settle
from actlens.store.manifest import (
    FLOATS,
    MANIFEST,
    Manifest,
    read_manifest,
    write_manifest,
)
from actlens.store.origin import environment, require_plain, weights_sha256
from actlens.store.reading import ActivationStore, open_activations
from actlens.store.records import ShardRecord, read_records
from actlens.store.scene_tensors import (
    action_shape,
    scene_tensors,
    scenes_sha256,
    sources,
)
from actlens.store.sites import StoredSite, aliases_of, stored_sites
from actlens.text import clean_text

DEFAULT_BUDGET = 2**28
"""On a CPU larger batches gain little, and the last one of a store is filled up."""


@torch.no_grad()
def write_activations(
    model: HookedACT,
    scenes: Iterable[Scene],
    sites: str | Sequence[str],
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    scenes_per_shard: int = 64,
    first: int = 0,
    memory_budget: int = DEFAULT_BUDGET,
    advance: Callable[[int], None] = lambda n: None,
) -> ActivationStore:
    """Store what the policy's activations are in many scenes; go on where an earlier call stopped.

    Call again with the same scenes after a crash: finished shards are kept, once their scenes have
    been compared with those given, and the store ends up with the same bytes as without the crash.
    More scenes are added by giving a longer list, or the new ones alone with `first`. Other sites
    need a store of their own, since every scene must be run again for them in any case.

    Args:
        model: in eval mode, without hooks. Its present weights are run, and their hash is kept.
        scenes: any iterable; as many as one shard has are held in memory at a time.
        sites: addresses of what to store: hook points, parts of them such as
            `decoder.0.mlp.hook_post[query=0]`, globs.
        dtype: to store in; bfloat16 has float32's range and 8 bits of precision.
        scenes_per_shard: what is lost to a crash, and rebuilt when a shard is damaged.
        first: the store's number of the first scene given; where a shard begins or the store ends.
        memory_budget: bytes that the activations of a batch may take. It decides the batch size of
            a new store, which the store then keeps to: the same batches give the same bits.
        advance: told how many more scenes are done, for progress bars.

    Returns:
        The store, open for reading.

    Raises:
        HookNameError: if a site does not exist.
        HookNeverFired: if inference does not pass a site (the CVAE encoder).
        StoreError: if the store was begun with other weights, sites or scenes; if it is damaged; if
            an activation is not finite in `dtype`; or if the disk is full (what is finished stays).
    """
    target = Path(folder)
    require_plain(model)
    given = iter(scenes)
    if (opening := next(given, None)) is None:
        raise StoreError(f"{target}: there is no scene to store.")
    given = chain([opening], given)
    begun = _begin(model, stored_sites(model, sites), opening, dtype, scenes_per_shard)
    make_folder(target)
    with locked(target):
        if (target / MANIFEST).exists():
            manifest = read_manifest(target)
            manifest.require_same(begun, target)
        elif holds_nothing(target):
            manifest = replace(begun, scenes_per_forward=_batch_size(model, begun, memory_budget))
            write_manifest(target, manifest)
        else:
            raise StoreError(f"{target}: holds something else; give a new or empty folder.")
        records = read_records(target, scenes_per_shard)
        position = sum(map(len, records))
        kept = _from_scene(records, first, position, target)
        _pass_over(kept, given, target, advance)
        append_shards(target, manifest, records, _contents(model, manifest, given, advance))
    return open_activations(target)


@torch.no_grad()
def rebuild_shard(
    model: HookedACT, scenes: Iterable[Scene], folder: str | Path, shard: int
) -> None:
    """Make one damaged or missing shard again, with the very bytes that it had.

    Args:
        model: the policy of the store.
        scenes: those of the shard, in order: `store.shards[shard].addresses` says which.
        folder: the store's.
        shard: its number.

    Raises:
        StoreError: if model or scenes are not those of the shard, or if the bytes come out
            otherwise, which another machine or torch version can cause; nothing is changed then.
    """
    target = Path(folder)
    manifest = read_manifest(target)
    require_plain(model)
    if weights_sha256(model) != manifest.weights_sha256:
        raise StoreError(f"{target}: was made with other weights than the model has now.")
    with locked(target):
        records = read_records(target, manifest.scenes_per_shard)
        if not 0 <= shard < len(records):
            raise StoreError(f"{target}: has shards 0..{len(records) - 1}, no {shard}.")
        record = records[shard]
        part = list(islice(iter(scenes), len(record) + 1))
        _require_scenes(record, part, target)
        path = target / record.file
        fill_shard(path, manifest, _content(model, manifest, part, lambda n: None))
        if settle(path) != record.sha256:
            discard(path)
            was, now = manifest.environment, environment(model)
            changed = [f"{k} {was[k]} (now {now.get(k)})" for k in was if was[k] != now.get(k)]
            raise StoreError(
                f"{path}: came out with other bytes than it had, so it was left as it is. The "
                f"store was begun with {', '.join(changed) or 'the same versions and settings'}."
            )
        publish(path)


# ── what a store is begun with ───────────────────────────────────────────────────────────────


def _begin(
    model: HookedACT,
    sites: tuple[StoredSite, ...],
    opening: Scene,
    dtype: torch.dtype,
    scenes_per_shard: int,
) -> Manifest:
    if dtype not in FLOATS.values():
        known = ", ".join(str(known).removeprefix("torch.") for known in FLOATS.values())
        raise StoreError(f"Activations are stored as {known}, not as {dtype}.")
    if scenes_per_shard < 1:
        raise StoreError(f"A shard has at least one scene, not {scenes_per_shard}.")
    checkpoint = model.checkpoint
    return Manifest(
        config=model.config,
        weights_sha256=weights_sha256(model),
        checkpoint_sha256="" if checkpoint is None else checkpoint.sha256,
        policy="" if checkpoint is None else clean_text(checkpoint.source),
        sites=sites,
        aliases=aliases_of(model, sites),
        dtype=dtype,
        action_shape=action_shape(opening),
        scenes_per_shard=scenes_per_shard,
        scenes_per_forward=1,
        actlens=version("hooked-act"),
        environment=environment(model),
    )


def _batch_size(model: HookedACT, manifest: Manifest, memory_budget: int) -> int:
    """The most scenes that fit the budget, such that a shard is a whole number of batches."""
    whole = {site.name: math.prod(site.sizes) for site in manifest.sites}
    # All activations at once is more than a forward ever holds; what is kept comes on top.
    a_scene = model.cache_bytes() + sum(whole.values()) * model.action_head.weight.element_size()
    most = max(1, memory_budget // a_scene)
    sizes = range(1, manifest.scenes_per_shard + 1)
    return max(n for n in sizes if manifest.scenes_per_shard % n == 0 and n <= most)


# ── shards ───────────────────────────────────────────────────────────────────────────────────


def _from_scene(
    records: Sequence[ShardRecord], first: int, end: int, folder: Path
) -> Sequence[ShardRecord]:
    """The finished shards from a scene on."""
    starts = [record.first for record in records] + [end]
    if first not in starts:
        raise StoreError(
            f"{folder}: scenes can be given from where a shard begins "
            f"({', '.join(map(str, starts[:5]))}{', …' if len(starts) > 5 else ''}) or from the "
            f"end ({end}), not from {first}."
        )
    return records[starts.index(first) :]


def _pass_over(
    kept: Sequence[ShardRecord],
    given: Iterator[Scene],
    folder: Path,
    advance: Callable[[int], None],
) -> None:
    """Take the scenes of finished shards off `given`, which may end with one of these.

    Raises:
        StoreError: if they are others than the shard was made from.
    """
    for record in kept:
        if part := list(islice(given, len(record))):
            _require_scenes(record, part, folder)
            advance(len(part))


def _require_scenes(record: ShardRecord, part: Sequence[Scene], folder: Path) -> None:
    if len(part) != len(record) or scenes_sha256(part) != record.scenes_sha256:
        episode, frame = record.addresses[0]
        raise StoreError(
            f"{folder / record.file}: was made from {len(record)} other scenes, beginning with "
            f"{episode}:{frame}, than the {len(part)} given, which begin with "
            f"{part[0].address if part else 'none'}: give the same scenes in the same order."
        )


def _contents(
    model: HookedACT, manifest: Manifest, scenes: Iterator[Scene], advance: Callable[[int], None]
) -> Iterator[Content]:
    """What the shards of these scenes will hold, one after the other."""
    while part := list(islice(scenes, manifest.scenes_per_shard)):
        yield _content(model, manifest, part, advance)
        part.clear()  # before the next scenes are read


def _content(
    model: HookedACT, manifest: Manifest, part: Sequence[Scene], advance: Callable[[int], None]
) -> Content:
    """What the shard of these scenes will hold; they are run when its values are drawn."""
    return Content(
        addresses=[(scene.episode, scene.frame) for scene in part],
        scenes_sha256=scenes_sha256(part),
        sources=sources(part),
        about=scene_tensors(part, manifest.action_shape),
        values=_values(model, manifest, part, advance),
    )


def _values(
    model: HookedACT, manifest: Manifest, part: Sequence[Scene], advance: Callable[[int], None]
) -> Iterator[tuple[str, int, Tensor]]:
    """The sites' values in batches of scenes, as they are stored."""
    size = manifest.scenes_per_forward
    names = list(dict.fromkeys(site.name for site in manifest.sites))
    for start in range(0, len(part), size):
        batch = part[start : start + size]
        # Filled up to the same size: it decides how sums are split, and so the last bits.
        filled = [*batch, *[batch[-1]] * (size - len(batch))]
        _, cache = model.run_with_cache(stack(filled), names_filter=names)
        for site in manifest.sites:
            values = cache[site.name][site.index(size)][: len(batch)].to(manifest.dtype)
            if not torch.isfinite(values).all():
                bad = torch.isfinite(values.flatten(1)).all(1).logical_not().nonzero()[0]
                raise StoreError(
                    f"{site.address} is not finite in scene {batch[int(bad)].address} as "
                    f"{manifest.dtype}: the policy diverged, or the dtype's range is too small."
                )
            yield site.address, start, values
        advance(len(batch))
