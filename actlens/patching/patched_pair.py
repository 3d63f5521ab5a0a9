"""The result of patching one pair, as it is kept on disk: numbers, and which scenes they are of."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from actlens.patching.pair_sources import pair_hash, scenes_of
from actlens.patching.pairs import PairPatches
from actlens.scene import Scene, ScenePair
from actlens.shards import key_of


@dataclass(frozen=True)
class StoredScene:
    """What is kept of a scene: all but what it shows."""

    episode: int
    frame: int
    labels: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class PatchedPair:
    """The result of one unit."""

    scenes: Mapping[str, StoredScene]
    """By role."""
    scenes_sha256: str
    """Of what they show."""
    differs_in: str
    patches: PairPatches

    @classmethod
    def of(cls, pair: ScenePair, patches: PairPatches) -> Self:
        """The result of a pair."""
        scenes = {
            role: StoredScene(scene.episode, scene.frame, scene.labels, scene.source)
            for role, scene in scenes_of(pair).items()
        }
        return cls(scenes, pair_hash(pair), pair.differs_in, patches)

    def pair(self, read: Callable[[], ScenePair]) -> ScenePair:
        """The pair, whose scenes' observations are read when they are looked at."""
        scenes = {
            role: Scene(
                _Unread(read, role),
                episode=scene.episode, frame=scene.frame, labels=scene.labels, source=scene.source,
            )
            for role, scene in self.scenes.items()
        }  # fmt: skip
        return ScenePair(differs_in=self.differs_in, **scenes)


class _Unread(Mapping[str, Tensor]):
    """An observation that stays in its source: ten thousand pairs of pictures fill no memory."""

    def __init__(self, read: Callable[[], ScenePair], role: str):
        self._read, self._role = read, role

    def __getitem__(self, key: str) -> Tensor:
        return getattr(self._read(), self._role).observation[key]

    def __iter__(self) -> Iterator[str]:
        return iter(getattr(self._read(), self._role).observation)

    def __len__(self) -> int:
        return len(getattr(self._read(), self._role).observation)


def scenes_hash_of(patched: Sequence[PatchedPair]) -> str:
    """The SHA-256 of all that the pairs show, in order: the same scenes, the same hash."""
    return key_of([one.scenes_sha256 for one in patched])
