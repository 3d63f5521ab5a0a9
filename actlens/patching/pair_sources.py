"""Where the pairs of a large sweep are: read one at a time, by whichever process patches them."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from actlens.errors import SceneError
from actlens.scene import Scene, ScenePair
from actlens.scenes.bundled import bundled_pairs, load_pairs
from actlens.scenes.dataset import Dataset, open_dataset
from actlens.scenes.hub import BUNDLED
from actlens.scenes.pairs import parse_address
from actlens.shards import from_tree, to_tree

ROLES = ("clean", "corrupt", "unrelated_clean", "unrelated_corrupt")
"""The scenes of a pair; the last two can be absent."""


class PairSource(Protocol):
    """Files, or memory, out of which pairs can be read in any order."""

    def sha256(self) -> str:
        """Of everything that pairs are read from: other data, another hash."""
        ...

    def read(self, what: Any) -> ScenePair:
        """One pair.

        Args:
            what: which, in JSON's types, as `PairList` has it.
        """
        ...


@dataclass(frozen=True)
class PairList:
    """The pairs of a sweep, as addresses in a source."""

    source: PairSource
    items: tuple[tuple[str, Any], ...]
    """(name for messages, what `source.read` takes) of each pair."""
    with_null: bool
    """Whether all pairs have a donor for the null."""


@dataclass(frozen=True)
class PairFile:
    """A file of `save_pairs`, or a bundled set; each process keeps all of it in memory."""

    place: str

    def sha256(self) -> str:
        """Of the file."""
        bundled = self.place in bundled_pairs()
        path = BUNDLED / "scenes" / f"{self.place}.parquet" if bundled else Path(self.place)
        return _files_hash([path], path.parent)

    def read(self, what: Any) -> ScenePair:
        """The pair of that position."""
        return _pairs_of(self.place)[what]

    def pairs(self, most: int | None = None) -> PairList:
        """The first `most` of its pairs.

        Raises:
            SceneError: if there is no such file or set, or if it is damaged.
        """
        return _listed(self, _pairs_of(self.place)[:most])


@dataclass(frozen=True)
class PairsInMemory:
    """Pairs that this process has; they cannot go to others."""

    given: tuple[ScenePair, ...]

    def sha256(self) -> str:
        """Of all their scenes."""
        return hashlib.sha256("".join(map(pair_hash, self.given)).encode()).hexdigest()

    def read(self, what: Any) -> ScenePair:
        """The pair of that position."""
        return self.given[what]

    def pairs(self) -> PairList:
        """All of them."""
        return _listed(self, self.given)


@dataclass(frozen=True)
class PairAddress:
    """Which frames of a dataset make a pair, each as `EPISODE:FRAME`."""

    clean: str
    corrupt: str
    differs_in: str
    unrelated_clean: str | None = None
    unrelated_corrupt: str | None = None


@dataclass(frozen=True)
class DatasetPairs:
    """Pairs of a dataset's frames."""

    place: str | Path
    """A bundled dataset's name, a hub repository, or a folder (as a `Path`, if it could be taken
    for one of these)."""
    chunk: int
    """Of the policy."""
    revision: str | None = None
    """Of a hub repository."""

    def sha256(self) -> str:
        """Of all its files, names and contents."""
        root = _dataset(self.place, self.revision).path
        folders = ("meta", "data", "videos", "images")
        files = [path for name in folders for path in (root / name).rglob("*")]
        return _files_hash(filter(Path.is_file, files or root.glob("*.hdf5")), root)

    def read(self, what: Any) -> ScenePair:
        """The pair of that `PairAddress` (as JSON)."""
        dataset = _dataset(self.place, self.revision)
        address = from_tree(PairAddress, what)
        given = {role: getattr(address, role) for role in ROLES}
        scenes: dict[str, Scene] = {}
        for role, text in given.items():
            if text is not None:
                scenes[role] = dataset.scene(*parse_address(text), chunk=self.chunk)
        return ScenePair(differs_in=address.differs_in, **scenes)

    def pairs(self, chosen: Iterable[ScenePair]) -> PairList:
        """The pairs of this dataset whose scenes have the chosen pairs' addresses.

        Only addresses count: chosen pairs need no pictures (`without_pictures`).
        """
        chosen = tuple(chosen)
        addresses = [
            PairAddress(
                differs_in=pair.differs_in,
                **{role: scene.address for role, scene in scenes_of(pair).items()},
            )
            for pair in chosen
        ]
        items = zip(map(_name, chosen), map(to_tree, addresses), strict=True)
        return PairList(self, tuple(items), _with_null(chosen))


def without_pictures(dataset: Dataset) -> Dataset:
    """The dataset with its cameras taken out: pairs are chosen among its scenes for little."""
    return Dataset(**{f.name: getattr(dataset, f.name) for f in fields(Dataset)} | {"cameras": ()})


def scenes_of(pair: ScenePair) -> dict[str, Scene]:
    """The scenes that a pair has, by role."""
    scenes = {role: getattr(pair, role) for role in ROLES}
    return {role: scene for role, scene in scenes.items() if scene is not None}


def pair_hash(pair: ScenePair) -> str:
    """The SHA-256 of what a sweep looks at in a pair: pictures, states, and where episodes end."""
    digest = hashlib.sha256()
    for role, scene in scenes_of(pair).items():
        tensors = {**scene.observation, "action_is_pad": scene.action_is_pad}
        for key, tensor in sorted(tensors.items()):
            if tensor is not None:
                digest.update(f"{role} {key} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
                digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _listed(source: PairSource, pairs: Sequence[ScenePair]) -> PairList:
    items = tuple((_name(pair), position) for position, pair in enumerate(pairs))
    return PairList(source, items, _with_null(pairs))


def _name(pair: ScenePair) -> str:
    return f"pair {pair.clean.address} / {pair.corrupt.address}"


def _with_null(pairs: Sequence[ScenePair]) -> bool:
    return all(pair.unrelated_corrupt is not None for pair in pairs)


def _files_hash(files: Iterable[Path], root: Path) -> str:
    digest = hashlib.sha256()
    try:
        for path in sorted(files):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    except OSError as error:
        raise SceneError(f"{error.filename} cannot be read ({error.strerror}).") from error
    return digest.hexdigest()


# Opened once a process; a source itself stays a few words, which travel to every worker.
_pairs_of = lru_cache(maxsize=1)(load_pairs)


@lru_cache(maxsize=1)
def _dataset(place: str | Path, revision: str | None) -> Dataset:
    return open_dataset(place, revision=revision)
