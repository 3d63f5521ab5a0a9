"""The values of one stored site, on disk until they are indexed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from actlens.hooks import HookPoint
from actlens.sites import Where
from actlens.store.errors import StoreError
from actlens.store.manifest import Manifest
from actlens.store.records import ShardRecord
from actlens.store.shard_file import OpenShard

_MAPPED_AT_ONCE = 256

Scenes = int | slice | Sequence[int] | Int[np.ndarray, " scene"] | Int[Tensor, " scene"]
"""Scenes by their number in the store: one, a span, or any numbers in any order."""


@dataclass(frozen=True, eq=False)
class MappedShards:
    """A store's shards, of which the last that were used stay mapped."""

    folder: Path
    manifest: Manifest
    records: tuple[ShardRecord, ...]

    @cached_property
    def n_scenes(self) -> int:
        """Of all shards."""
        return sum(map(len, self.records))

    @cached_property
    def starts(self) -> Int[np.ndarray, " shard"]:
        """The store's number of every shard's first scene."""
        return np.array([record.first for record in self.records], dtype=np.int64)

    @cached_property
    def open(self) -> Callable[[int], OpenShard]:
        """A shard by its number.

        Raises:
            StoreError: if it is damaged.
        """

        def mapped(index: int) -> OpenShard:
            record = self.records[index]
            expected = self.manifest.entries(len(record))
            try:
                return OpenShard(self.folder / record.file, record.nbytes, len(record), expected)
            except StoreError as error:
                raise StoreError(
                    f"{error} Make it again: rebuild_shard(model, scenes, folder, {index})."
                ) from error

        return lru_cache(_MAPPED_AT_ONCE)(mapped)


@dataclass(frozen=True, eq=False)
class StoredActivation:
    """The values of one site in every scene, on disk until they are indexed.

    Indexing by scenes (a number, a span, numbers in any order, a mask) gives a tensor in memory of
    its own: 16-bit floats as float32, anything else in its own dtype.
    """

    shards: MappedShards = field(repr=False)
    entry: str
    """What shards call the tensor."""
    whole: Mapping[str, int]
    """The axes of one scene's stored value -> their lengths."""
    part: Where = field(default_factory=dict)
    """What of the stored value is meant, by axis."""

    @cached_property
    def _point(self) -> HookPoint:
        return HookPoint(" ".join(("scene", *self.whole)))

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes; the first is `scene`."""
        return ("scene", *(a for a in self.whole if not isinstance(self.part.get(a), int)))

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the values of all scenes."""
        one = torch.empty(1, *self.whole.values(), device="meta")
        return (len(self), *one[self._point.index(self.part, one.shape)].shape[1:])

    @cached_property
    def dtype(self) -> torch.dtype:
        """In which the values are stored."""
        return next(e.dtype for e in self.shards.manifest.entries(1) if e.name == self.entry)

    def __len__(self) -> int:
        return self.shards.n_scenes

    def mapped(self) -> Iterator[tuple[slice, Tensor]]:
        """Shard by shard: the numbers of its scenes, and their values in the stored dtype.

        The values lie on the disk until they are used, and are not to be written to.

        Raises:
            StoreError: if a shard is damaged.
        """
        return ((record.rows, self._of_shard(record.index)) for record in self.shards.records)

    def _of_shard(self, index: int) -> Tensor:
        values = self.shards.open(index).tensor(self.entry)
        return values[self._point.index(self.part, values.shape)]

    def __getitem__(self, scenes: Scenes) -> Tensor:
        """The values of some scenes.

        Raises:
            IndexError: if there is no such scene.
            StoreError: if a shard is damaged.
        """
        if isinstance(scenes, int | np.integer):
            return self[np.array([scenes])][0]
        numbers = self._numbers(scenes)
        shards = np.searchsorted(self.shards.starts, numbers, side="right") - 1
        computed = torch.float32 if self.dtype.itemsize == 2 else self.dtype
        values = torch.empty(len(numbers), *self.shape[1:], dtype=computed)
        order = np.argsort(shards, kind="stable")
        for here in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1):
            if not len(here):
                continue
            index, places = int(shards[here[0]]), _span(here)
            part = self._of_shard(index)[_span(numbers[here] - self.shards.starts[index])]
            # A span is cast as it is copied; scattered places take no other dtype than their own.
            values[places] = part if isinstance(places, slice) else part.to(computed)
        return values

    def _numbers(self, scenes: slice | Sequence[int] | np.ndarray | Tensor) -> np.ndarray:
        """The numbers of the scenes that are meant, from 0."""
        n = len(self)
        if isinstance(scenes, slice):
            return np.arange(n)[scenes]
        numbers = np.asarray(scenes)
        if numbers.dtype == bool and numbers.shape == (n,):
            return np.flatnonzero(numbers)
        if numbers.ndim != 1 or (numbers.dtype.kind not in "iu" and numbers.size):
            raise IndexError(
                f"Scenes are selected by numbers or by a mask of {n}, not by an array of "
                f"{numbers.dtype} of shape {numbers.shape}; select on other axes by the address."
            )
        numbers = numbers.astype(np.int64)
        if ((numbers < -n) | (numbers >= n)).any():
            raise IndexError(
                f"The store has scenes 0..{n - 1}; {numbers.min()}..{numbers.max()} was asked for."
            )
        return np.where(numbers < 0, numbers + n, numbers)


def _span(numbers: np.ndarray) -> slice | Tensor:
    """Ascending neighbours as a slice, which costs no copy."""
    if (np.diff(numbers) == 1).all():
        return slice(int(numbers[0]), int(numbers[-1]) + 1)
    return torch.from_numpy(numbers)
