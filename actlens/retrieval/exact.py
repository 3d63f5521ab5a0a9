"""The nearest of a few keys, compared in float64."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import cdist

from actlens.retrieval.keys import Keys, read, rows_at_once, spans


class Nearest:
    """The k nearest keys of one query among those that it was shown; ties go to the lower row."""

    def __init__(self, query: Float[np.ndarray, " d"], k: int, scale: float):
        self.rows: Int[np.ndarray, " found"] = np.empty(0, dtype=np.int64)
        self.squared: Float[np.ndarray, " found"] = np.empty(0)
        """Squared distances, times the squared scale."""
        self.examined = 0
        self._query, self._k, self._scale = query, k, scale

    @property
    def full(self) -> bool:
        """Whether k keys have been seen."""
        return len(self.rows) == self._k

    def examine(self, keys: Keys, rows: Int[np.ndarray, " row"]) -> None:
        """Take in rows of the keys that were not seen before."""
        self.examined += len(rows)
        for span in spans(len(rows), rows_at_once(len(self._query))):
            difference = read(keys, rows[span]).astype(np.float64)
            difference -= self._query
            difference *= self._scale
            # Row by row, whatever other rows there are: equal keys get equal distances.
            self._offer(rows[span], np.einsum("rd,rd->r", difference, difference))

    def _offer(self, rows: Int[np.ndarray, " row"], squared: Float[np.ndarray, " row"]) -> None:
        rows, squared = np.r_[self.rows, rows], np.r_[self.squared, squared]
        if len(rows) > 8 * self._k:
            cut = np.partition(squared, self._k - 1)[self._k - 1]
            rows, squared = rows[squared <= cut], squared[squared <= cut]
        order = np.lexsort((rows, squared))[: self._k]
        self.rows, self.squared = rows[order], squared[order]


def stacked(found: Iterable[Nearest]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scaled squared distances, `query k` each."""
    found = list(found)
    return np.stack([best.rows for best in found]), np.stack([best.squared for best in found])


def distances(
    queries: Float[np.ndarray, "query d"], keys: Float[np.ndarray, "key d"]
) -> Float[np.ndarray, "query key"]:
    """All of them, from the differences in float64: equal keys are equally far."""
    return cdist(queries.astype(np.float64), keys.astype(np.float64))


def in_order(distance: Float[np.ndarray, "query key"]) -> Int[np.ndarray, "query key"]:
    """Keys of every query, nearest first; of equally near ones the first in order."""
    return np.argsort(distance, axis=1, kind="stable")
