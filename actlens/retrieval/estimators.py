"""Ways to answer a scene from demonstrations that are alike: retrieval, and its smooth rivals."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from actlens.retrieval.exact import distances, in_order
from actlens.retrieval.keys import RetrievalError
from actlens.retrieval.ridge import RidgePath
from actlens.retrieval.search import NearestNeighbours

_BANDWIDTHS = np.geomspace(0.125, 16, 15)
"""Of a kernel, in units of the spacing of the keys."""
_COMPARED = 2500
"""Keys: so few are all compared with all."""
_PENALTIES = np.geomspace(1e-7, 1e1, 17)
"""Of ridge, as shares of the largest squared singular value."""

Found = tuple[Int[np.ndarray, "query k"], Float[np.ndarray, "query k"]]
"""Rows of the k nearest keys, nearest first, and their distances."""


@dataclass(frozen=True)
class Memory:
    """What is remembered: a key and an answer for each scene, and which episode it is from."""

    keys: Float[np.ndarray, "scene d"]
    """Mapped, so that Euclidean distance counts (`actlens.retrieval.metric`)."""
    answers: Float[np.ndarray, "scene t"]
    counted: Bool[np.ndarray, "scene t"]
    """Which answers a bandwidth or penalty is chosen by."""
    episodes: Int[np.ndarray, " scene"]

    @cached_property
    def index(self) -> NearestNeighbours:
        """Of the keys; exact."""
        return NearestNeighbours.of(self.keys, episodes=self.episodes)

    @cached_property
    def spacing(self) -> float:
        """Median distance of a key to the nearest of another episode; 1 if these coincide."""
        return float(np.median(self.others(1)[1])) or 1.0

    def others(self, k: int) -> Found:
        """The nearest keys of every key in other episodes."""
        if len(self.keys) > _COMPARED:
            found = self.index.search(self.keys, k, leaving_out=self.episodes)
            return found.indices, found.distances
        distance, order = self._apart
        return _first(distance, order, k)

    def nearest(self, queries: Float[np.ndarray, "query d"], k: int) -> Found:
        """The nearest keys of other scenes."""
        if len(self.keys) > _COMPARED:
            found = self.index.search(queries, k)
            return found.indices, found.distances
        distance = distances(queries, self.keys)
        return _first(distance, in_order(distance), k)

    @cached_property
    def _apart(self) -> tuple[Float[np.ndarray, "scene scene"], Int[np.ndarray, "scene scene"]]:
        """Distances, infinite within an episode, and their order: a search has more to do for each
        query than that takes among few keys."""
        distance = distances(self.keys, self.keys)
        distance[self.episodes[:, None] == self.episodes] = np.inf
        return distance, in_order(distance)

    def error(self, answers: Float[np.ndarray, "scene t"]) -> float:
        """Mean squared error of counted answers."""
        return float(np.square(answers - self.answers)[self.counted].mean())


def _first(
    distance: Float[np.ndarray, "query key"], order: Int[np.ndarray, "query key"], k: int
) -> Found:
    rows = order[:, :k]
    apart = np.take_along_axis(distance, rows, 1)
    if apart.shape[1] < k or not np.isfinite(apart).all():
        raise RetrievalError(f"A scene has fewer than k = {k} keys to find.")
    return rows, apart


class Estimator(Protocol):
    """Answers from a memory."""

    @property
    def name(self) -> str:
        """In tables."""
        ...

    def across_episodes(self, memory: Memory) -> Float[np.ndarray, "scene t"]:
        """The answer to every remembered scene, without any scene of its episode."""
        ...

    def elsewhere(
        self, memory: Memory, queries: Float[np.ndarray, "query d"]
    ) -> Float[np.ndarray, "query t"]:
        """The answers to other scenes."""
        ...


@dataclass(frozen=True)
class Retrieval:
    """The mean answer of the k nearest scenes, each weighing alike, or as VINN weighs them.

    VINN (Pari et al. 2022): weights exp(-distance), normalised. Distances have no unit there; here
    they are divided by the memory's spacing.
    """

    k: int
    soft: bool = False

    @property
    def name(self) -> str:
        """`1-NN`, `10-NN, soft`."""
        return f"{self.k}-NN{', soft' * self.soft}"

    def across_episodes(self, memory: Memory) -> Float[np.ndarray, "scene t"]:
        """See `Estimator`."""
        return self._mean(memory, memory.others(self.k))

    def elsewhere(
        self, memory: Memory, queries: Float[np.ndarray, "query d"]
    ) -> Float[np.ndarray, "query t"]:
        """See `Estimator`."""
        return self._mean(memory, memory.nearest(queries, self.k))

    def _mean(self, memory: Memory, found: Found) -> Float[np.ndarray, "query t"]:
        rows, distance = found
        if not self.soft:
            return memory.answers[rows].mean(1)
        weights = np.exp((distance[:, :1] - distance) / memory.spacing)
        weights /= weights.sum(1, keepdims=True)
        return np.einsum("qk,qkt->qt", weights, memory.answers[rows])


@dataclass(frozen=True)
class Kernel:
    """All scenes, weighted by a Gaussian of their distance (Nadaraya-Watson).

    The bandwidth is the one with the least error across episodes. Where these errors are reported
    they are for so much too small.
    """

    name: str = "kernel"

    def across_episodes(self, memory: Memory) -> Float[np.ndarray, "scene t"]:
        """See `Estimator`."""
        squared = _to_other_episodes(memory)
        return min((_smoothed(squared, memory, width) for width in _BANDWIDTHS), key=memory.error)

    def elsewhere(
        self, memory: Memory, queries: Float[np.ndarray, "query d"]
    ) -> Float[np.ndarray, "query t"]:
        """See `Estimator`."""
        squared = _to_other_episodes(memory)
        best = min(_BANDWIDTHS, key=lambda width: memory.error(_smoothed(squared, memory, width)))
        return _smoothed(_squared(queries, memory.keys), memory, best)


def _to_other_episodes(memory: Memory) -> Float[np.ndarray, "scene scene"]:
    """Squared distances of all keys; infinite within an episode."""
    squared = _squared(memory.keys, memory.keys)
    squared[memory.episodes[:, None] == memory.episodes] = np.inf
    return squared


def _squared(
    queries: Float[np.ndarray, "query d"], keys: Float[np.ndarray, "scene d"]
) -> Float[np.ndarray, "query scene"]:
    """Squared distances by a product; weights of a kernel forgive its rounding."""
    queries, keys = queries.astype(np.float64), keys.astype(np.float64)
    squares = np.square(queries).sum(1)[:, None] + np.square(keys).sum(1)
    return np.maximum(squares - 2 * queries @ keys.T, 0.0)


def _smoothed(
    squared: Float[np.ndarray, "query scene"], memory: Memory, width: float
) -> Float[np.ndarray, "query t"]:
    nearer = squared.min(1, keepdims=True) - squared  # the nearest key weighs 1, however far it is
    weights = np.exp(nearer / (2 * (width * memory.spacing) ** 2))
    return weights @ memory.answers / weights.sum(1, keepdims=True)


@dataclass(frozen=True)
class Ridge:
    """One linear map of the keys; its penalty is the one with the least error across episodes."""

    name: str = "ridge"

    def across_episodes(self, memory: Memory) -> Float[np.ndarray, "scene t"]:
        """See `Estimator`."""
        path = RidgePath.of(memory.keys, memory.answers)
        left_out = (path.across(memory.episodes, penalty) for penalty in _PENALTIES)
        return min(left_out, key=memory.error)

    def elsewhere(
        self, memory: Memory, queries: Float[np.ndarray, "query d"]
    ) -> Float[np.ndarray, "query t"]:
        """See `Estimator`."""
        path = RidgePath.of(memory.keys, memory.answers)
        best = min(_PENALTIES, key=lambda p: memory.error(path.across(memory.episodes, p)))
        return path.predict(queries, best)


LADDER: Sequence[Estimator] = (
    Retrieval(1),
    Retrieval(10),
    Retrieval(10, soft=True),
    Kernel(),
    Ridge(),
)
"""What is compared at every site."""
