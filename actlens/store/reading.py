"""Stored activations, mapped into memory: nothing is read but what is asked for."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from actlens.errors import HookNameError
from actlens.sites import parse_where, split_address
from actlens.store.errors import StoreError
from actlens.store.manifest import Manifest, read_manifest
from actlens.store.records import ShardRecord, read_records
from actlens.store.scene_tensors import (
    ACTION,
    ACTION_IS_PAD,
    EPISODE,
    FRAME,
    LABEL_PREFIX,
    SOURCE,
)
from actlens.store.view import MappedShards, StoredActivation
from actlens.text import clean_text, did_you_mean
from actlens.tokens import TokenMap

if TYPE_CHECKING:
    import pandas as pd


def open_activations(folder: str | Path) -> "ActivationStore":
    """The store in a folder; nothing is read but its description, and nothing in it is executed.

    Raises:
        StoreError: if there is no store, or its description is damaged.
    """
    path = Path(folder)
    manifest = read_manifest(path)
    return ActivationStore(path, manifest, read_records(path, manifest.scenes_per_shard))


@dataclass(frozen=True, eq=False, repr=False)
class ActivationStore:
    """Activations of many scenes at chosen sites, and what is known of the scenes.

        store["decoder.0.mlp.hook_post[query=0]"][5000:5100]     # float32, scene x neuron

    Shards are opened when something of them is read, and then compared with the manifest in size,
    shapes and dtypes; `verify` compares their checksums.
    """

    folder: Path
    manifest: Manifest
    shards: tuple[ShardRecord, ...]

    def __repr__(self) -> str:
        sites = ", ".join(self.sites)
        return f"ActivationStore({str(self.folder)!r}: {len(self)} scenes at {sites})"

    def __len__(self) -> int:
        """The number of scenes."""
        return self._files.n_scenes

    @property
    def sites(self) -> tuple[str, ...]:
        """The addresses of what is stored of every scene."""
        return tuple(site.address for site in self.manifest.sites)

    @cached_property
    def tokens(self) -> TokenMap:
        """The policy's tokens, for names and pixels of token axes."""
        return TokenMap(self.manifest.config)

    def __getitem__(self, address: str) -> StoredActivation:
        """The values at a stored site, or at a part of one.

        Raises:
            HookNameError: if the address means nothing, or something that is not stored.
        """
        name, selectors = split_address(address)
        name = self.manifest.aliases.get(name, name)
        of_point = [site for site in self.manifest.sites if site.name == name]
        if not of_point:
            known = [*self.sites, *self.manifest.aliases]
            raise HookNameError(f"{address!r} is not stored.{did_you_mean(address, known)}")
        point, sizes = of_point[0].point, of_point[0].sizes
        where = parse_where(selectors, point, self.tokens)
        point.index(where, (1, *sizes))
        for site in of_point:
            if (part := site.within(where)) is not None:
                return StoredActivation(self._files, site.address, site.stored, part)
        raise HookNameError(
            f"{address!r} is not stored; of that hook point there is "
            f"{', '.join(site.address for site in of_point)}."
        )

    @property
    def actions(self) -> StoredActivation:
        """The demonstrated action chunks, `scene chunk joint`, in dataset units.

        Raises:
            StoreError: if the scenes had none.
        """
        chunk, joint = self._action_shape
        return StoredActivation(self._files, ACTION, {"chunk": chunk, "joint": joint})

    @property
    def action_is_pad(self) -> StoredActivation:
        """True where the episode had ended, `scene chunk`.

        Raises:
            StoreError: if the scenes had no actions.
        """
        return StoredActivation(self._files, ACTION_IS_PAD, {"chunk": self._action_shape[0]})

    @property
    def _action_shape(self) -> tuple[int, int]:
        if self.manifest.action_shape is None:
            raise StoreError(f"{self.folder}: its scenes had no demonstrated actions.")
        return self.manifest.action_shape

    @cached_property
    def labels(self) -> "pd.DataFrame":
        """One row a scene: source, episode, frame, then every label (missing ones are NaN).

        Raises:
            StoreError: if a shard is damaged; it is named.
        """
        import pandas as pd  # not with the store: it takes as long to import as the rest together

        n = len(self)
        columns: dict[str, np.ndarray] = {
            "source": np.empty(n, dtype=object),
            "episode": np.empty(n, dtype=np.int64),
            "frame": np.empty(n, dtype=np.int64),
        }
        for record in self.shards:
            shard, rows = self._files.open(record.index), record.rows
            sources, codes = np.array(shard.sources, dtype=object), shard.tensor(SOURCE).numpy()
            if not 0 <= codes.min() <= codes.max() < len(sources):
                raise StoreError(f"{shard.path}: names a source that it does not list.")
            columns["source"][rows] = sources[codes]
            columns["episode"][rows] = shard.tensor(EPISODE).numpy()
            columns["frame"][rows] = shard.tensor(FRAME).numpy()
            for name in shard.names:
                if name.startswith(LABEL_PREFIX):
                    label = clean_text(name.removeprefix(LABEL_PREFIX))
                    column = columns.setdefault(label, np.full(n, np.nan))
                    column[rows] = shard.tensor(name).numpy()
        return pd.DataFrame(columns)

    @cached_property
    def groups(self) -> Int[np.ndarray, " scene"]:
        """The number of every scene's episode: the unit of splits, bootstraps and permutations."""
        return self.labels.groupby(["source", "episode"], sort=False).ngroup().to_numpy()

    def iterate(
        self, address: str, batch: int
    ) -> Iterator[tuple[slice, Float[Tensor, "scene ..."]]]:
        """The values at a site in order, `batch` scenes at a time, each with its scenes' numbers.

        Raises:
            HookNameError: if the address is not stored.
            StoreError: if `batch` is not positive, or a shard is damaged.
        """
        if batch < 1:
            raise StoreError(f"A batch has at least one scene, not {batch}.")
        values = self[address]
        spans = (slice(i, min(i + batch, len(self))) for i in range(0, len(self), batch))
        return ((span, values[span]) for span in spans)

    def by_episode(
        self, address: str
    ) -> Iterator[tuple[Int[np.ndarray, " scene"], Float[Tensor, "scene ..."]]]:
        """The values at a site episode by episode, each with its scenes' numbers.

        Raises:
            HookNameError: if the address is not stored.
            StoreError: if a shard is damaged.
        """
        values, groups = self[address], self.groups
        order = np.argsort(groups, kind="stable")
        episodes = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
        return ((scenes, values[scenes]) for scenes in episodes if len(scenes))

    @cached_property
    def _files(self) -> MappedShards:
        return MappedShards(self.folder, self.manifest, self.shards)
