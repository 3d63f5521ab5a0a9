"""Shards into a store, one being filled while the disk takes in those before."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from actlens.store.files import publish, settle
from actlens.store.manifest import Manifest
from actlens.store.records import ShardRecord, append_record, shard_file
from actlens.store.scene_tensors import LABEL_PREFIX
from actlens.store.shard_file import Entry, new_shard

_FINISHING_AT_ONCE = 4
"""A checksum takes a core as long as a fast disk takes to write: several at once keep up."""


@dataclass(frozen=True)
class Content:
    """What a shard will hold."""

    addresses: Sequence[tuple[int, int]]
    """Episode and frame of every scene."""
    scenes_sha256: str
    sources: list[str]
    about: Mapping[str, Tensor]
    """The scenes' labels and actions (`scene_tensors`)."""
    values: Iterable[tuple[str, int, Tensor]]
    """Of the sites, in any order: address, number of the first scene, values as they are stored."""


def append_shards(
    folder: Path, manifest: Manifest, records: Sequence[ShardRecord], contents: Iterable[Content]
) -> None:
    """Add shards to a store; each counts from the moment on at which it is safely on the disk.

    Args:
        folder: the store's.
        manifest: the store's.
        records: of the shards that it has.
        contents: of those that it shall have; they are drawn one after the other.

    Raises:
        StoreError: if the disk is full or fails; what is finished stays.
    """
    index, first = len(records), sum(map(len, records))
    finishing: deque[Future[None]] = deque()
    with ThreadPoolExecutor(_FINISHING_AT_ONCE) as disk:
        try:
            for content in contents:
                nbytes = fill_shard(folder / shard_file(index), manifest, content)
                if len(finishing) == _FINISHING_AT_ONCE:
                    finishing.popleft().result()
                before = finishing[-1] if finishing else None
                finishing.append(
                    disk.submit(_finish, folder, content, index, first, nbytes, before)
                )
                index, first = index + 1, first + len(content.addresses)
        finally:
            for finished in finishing:
                finished.result()


def fill_shard(path: Path, manifest: Manifest, content: Content) -> int:
    """Write a shard under its unfinished name; its size in bytes.

    Raises:
        StoreError: if the content does not fit the manifest, or the disk is full.
    """
    n = len(content.addresses)
    labels = [name for name in content.about if name.startswith(LABEL_PREFIX)]
    entries = [Entry(name, content.about[name].dtype, (n,)) for name in labels]
    with new_shard(path, manifest.entries(n) + entries, content.sources) as shard:
        for name, value in content.about.items():
            shard.put(name, 0, value)
        for name, start, value in content.values:
            shard.put(name, start, value)
        return shard.nbytes


def _finish(
    folder: Path,
    content: Content,
    index: int,
    first: int,
    nbytes: int,
    before: Future[None] | None,
) -> None:
    """Let a shard count, once it is on the disk and the one before counts."""
    path = folder / shard_file(index)
    sha256 = settle(path)
    if before is not None:
        before.result()
    publish(path)
    addresses = tuple(content.addresses)
    append_record(
        folder, ShardRecord(index, first, nbytes, sha256, content.scenes_sha256, addresses)
    )
