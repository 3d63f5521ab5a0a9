"""Exact nearest neighbours among up to millions of keys.

An approximate index would confound every statement about retrieval: a neighbour that it misses
looks like a policy that does better than its nearest demonstration. So a product in reduced
precision only rules keys out, with a bound on its error; what it cannot rule out is compared in
float64. The reduced product is what makes it fast, the bound what makes it exact.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from actlens.matmul import calibrate
from actlens.retrieval.exact import Nearest, stacked
from actlens.retrieval.keys import Keys, RetrievalError, read, rows_at_once, size, spans
from actlens.retrieval.reduced import ReducedKeys, group_labels, scaled

_QUERIES_AT_ONCE = 128
_MANY = 1024
"""Keys that are left to one query, beyond which they are looked at once more in reduced form."""
_WORTH_MEASURING = 2**25
"""Numbers in keys: among fewer, searching takes less time than measuring which dtype is faster."""
_NO_EPISODE = np.iinfo(np.int64).min
_FARTHEST = 1e150
"""Times the longest key: the squares of distances beyond are no numbers of float64."""


@dataclass(frozen=True)
class Neighbours:
    """The k nearest keys of every query, nearest first; of equally near ones the first in order."""

    indices: Int[np.ndarray, "query k"]
    distances: Float[np.ndarray, "query k"]
    """Euclidean, computed in float64 from the differences."""
    examined: Int[np.ndarray, " query"]
    """Keys that were compared in float64: what the bound could not rule out."""
    margin: Float[np.ndarray, " query"]
    """The certificate: a lower bound on (squared distance of any key that was not examined - that
    of the k-th nearest), as a share of the squared length of the longest key; never negative.
    Infinite where every key was examined."""


@dataclass(frozen=True)
class NearestNeighbours:
    """Keys ready to be searched. The keys themselves are only read; they may lie on the disk."""

    keys: Keys
    reduced: ReducedKeys
    episodes: Int[np.ndarray, " key"] | None = None
    """The episode of every key, for queries that must not find their own."""

    @classmethod
    def of(
        cls,
        keys: Keys,
        *,
        episodes: Int[np.ndarray, " key"] | None = None,
        dtype: torch.dtype | None = None,
    ) -> "NearestNeighbours":
        """Make the reduced copy of the keys, in two readings of them.

        Args:
            keys: an array, a tensor, a memory map, or an activation of a store.
            dtype: of the reduced copy, bfloat16 or float32. If not given: for many keys the one
                whose products are faster here, as measured; for few float32.

        Raises:
            RetrievalError: if there are no keys, if they do not fit their episodes, or if one of
                them is not finite.
        """
        if episodes is not None:
            episodes = np.asarray(episodes, dtype=np.int64)
            if episodes.shape != (keys.shape[0],):
                raise RetrievalError(
                    f"{keys.shape[0]} keys have one episode each, not {episodes.shape}."
                )
        if dtype is None:
            n, d = size(keys)
            dtype = fastest_dtype() if n * d > _WORTH_MEASURING else torch.float32
        return cls(keys, ReducedKeys.of(keys, dtype), episodes)

    def search(
        self,
        queries: Keys,
        k: int = 1,
        *,
        leaving_out: Int[np.ndarray, " query"] | None = None,
    ) -> Neighbours:
        """The k nearest keys of every query.

        Args:
            queries: rows like those of the keys.
            leaving_out: an episode for every query, none of whose keys it may find.

        Raises:
            RetrievalError: if a query has fewer than k keys to find, another width than the keys,
                or is not finite.
        """
        n_queries, d = size(queries)
        if d != self.reduced.d:
            raise RetrievalError(
                f"Queries are rows of {self.reduced.d} numbers, as the keys are, not of {d}."
            )
        self._check(n_queries, k, leaving_out)
        leave = np.full(n_queries, _NO_EPISODE) if leaving_out is None else leaving_out
        found = []
        for rows in spans(n_queries, min(_QUERIES_AT_ONCE, rows_at_once(d))):
            given = read(queries, rows)
            if not np.isfinite(given).all():
                first = rows.start + int(np.flatnonzero(~np.isfinite(given).all(1))[0])
                raise RetrievalError(f"Query {first} is not finite.")
            found.append(self._batch(given, k, leave[rows]))
        return Neighbours(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

    def _check(self, n_queries: int, k: int, leaving_out: Int[np.ndarray, " query"] | None) -> None:
        n = self.reduced.n
        if k < 1 or k > n:
            raise RetrievalError(f"Of {n} keys, 1..{n} can be found, not {k}.")
        if leaving_out is None:
            return
        if self.episodes is None or np.shape(leaving_out) != (n_queries,):
            raise RetrievalError(
                "To leave out episodes, give one for every query here, and `episodes` of the keys "
                "to NearestNeighbours.of."
            )
        known, counts = np.unique(self.episodes, return_counts=True)
        place = np.searchsorted(known, leaving_out).clip(max=len(known) - 1)
        left = n - np.where(known[place] == leaving_out, counts[place], 0)
        if (left < k).any():
            worst = int(left.argmin())
            raise RetrievalError(
                f"Query {worst} leaves out episode {leaving_out[worst]} and has {left[worst]} keys "
                f"to find, fewer than k = {k}."
            )

    def _batch(
        self, queries: np.ndarray, k: int, leave: Int[np.ndarray, " query"]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        reduced = self.reduced
        centred = scaled(reduced, queries)
        if np.abs(centred).max() > _FARTHEST:
            raise RetrievalError(f"A query is more than {_FARTHEST:g} times as long as any key.")
        bounds = reduced.best_scores(centred)
        seen = self._left_out(leave)
        best = [Nearest(query.astype(np.float64), k, reduced.scale) for query in queries]
        self._promising(best, bounds, seen, leave, k)
        # Whatever may hold a key as near as the k-th so far; what cannot is ruled out.
        score = lambda: reduced.threshold(centred, stacked(best)[1][:, -1])
        limit = np.nextafter(score().clip(-1e38, 1e38).astype(np.float32), -np.float32(np.inf))
        possible = (bounds >= torch.from_numpy(limit)[:, None]) & ~seen
        seen |= possible
        owners, groups = (places.numpy() for places in possible.nonzero(as_tuple=True))
        ends = np.searchsorted(owners, np.arange(len(queries) + 1))
        dropped = np.full(len(queries), -np.inf)
        for query, nearest in enumerate(best):
            here = groups[ends[query] : ends[query + 1]]
            rows = self._rows(here, leave[query])
            if len(rows) > _MANY:  # single keys have closer bounds than groups of them
                kept, dropped[query] = self._closer(centred[query], here, limit[query])
                rows = np.intersect1d(rows, kept, assume_unique=True)
            nearest.examine(self.keys, rows)
        rows, squared = stacked(best)
        self._audit(bounds, centred, rows, squared)
        unseen = bounds.masked_fill_(seen, -torch.inf).amax(1).double().numpy()
        margin = 2 * (score() - np.maximum(unseen, dropped))
        return rows, np.sqrt(squared) / reduced.scale, np.array([b.examined for b in best]), margin

    def _closer(
        self, query: Float[np.ndarray, " d"], groups: Int[np.ndarray, " group"], limit: float
    ) -> tuple[Int[np.ndarray, " row"], float]:
        """Keys of some groups whose own bound reaches the limit, and the best of the other ones."""
        rows, bounds = self.reduced.key_scores(query, groups)
        kept = bounds >= limit
        return rows[kept], float(bounds[~kept].max(initial=-np.inf))

    def _promising(
        self,
        best: list[Nearest],
        bounds: Float[Tensor, "query group"],
        seen: Bool[Tensor, "query group"],
        leave: Int[np.ndarray, " query"],
        k: int,
    ) -> None:
        """Examine the groups of the best bounds until every query has k keys; note them as seen."""
        width, pending = max(4, k), np.arange(len(best))
        while len(pending):
            hopes = bounds[pending].masked_fill_(seen[pending], -torch.inf)
            width = min(self.reduced.n_groups, width)
            chosen = hopes.topk(width, dim=1, sorted=False).indices.numpy()
            for query, groups in zip(pending, chosen, strict=True):
                groups = groups[~seen[query, groups].numpy()]
                seen[query, groups] = True
                best[query].examine(self.keys, self._rows(groups, leave[query]))
            pending = np.array([q for q in pending if not best[q].full], dtype=np.int64)
            width *= 4

    def _left_out(self, leave: Int[np.ndarray, " query"]) -> Bool[Tensor, "query group"]:
        """Groups all of whose keys belong to the episode that a query leaves out."""
        if self.episodes is None or (leave == _NO_EPISODE).all():
            return torch.zeros(len(leave), self.reduced.n_groups, dtype=torch.bool)
        own = group_labels(self.episodes, self.reduced.group, absent=_NO_EPISODE)
        return torch.from_numpy((own == leave[:, None]) & (own != _NO_EPISODE))

    def _rows(self, groups: Int[np.ndarray, " group"], leave: int) -> Int[np.ndarray, " row"]:
        """The keys of some groups that do not belong to an episode, in order."""
        group = self.reduced.group
        rows = (np.sort(groups)[:, None] * group + np.arange(group)).reshape(-1)
        rows = rows[rows < self.reduced.n]
        if self.episodes is None or leave == _NO_EPISODE:
            return rows
        return rows[self.episodes[rows] != leave]

    def _audit(
        self,
        bounds: Float[Tensor, "query group"],
        centred: Float[np.ndarray, "query d"],
        rows: Int[np.ndarray, "query k"],
        squared: Float[np.ndarray, "query k"],
    ) -> None:
        """The bounds must hold for what was found: they assume that products add up in float32."""
        held = bounds.numpy()[np.arange(len(rows))[:, None], rows // self.reduced.group]
        for column in range(rows.shape[1]):
            if (held[:, column] < self.reduced.threshold(centred, squared[:, column])).any():
                raise RetrievalError(
                    f"Products in {self.reduced.dtype} are less exact here than their bound says: "
                    "this machine adds them up in less than float32. Search with "
                    "dtype=torch.float32."
                )


def fastest_dtype() -> torch.dtype:
    """bfloat16 where its products take less than three quarters of the time of float32's.

    Measured here and now; of float32 as it is by default, which is what the bound holds for.
    """
    measured = calibrate()
    pays = measured.seconds_bfloat16 < 0.75 * measured.seconds_default
    return torch.bfloat16 if pays else torch.float32
