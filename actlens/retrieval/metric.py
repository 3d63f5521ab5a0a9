"""What makes two keys alike: the distance that neighbours are nearest in."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float

_ROUNDING = 1e-6
"""Of a number's size, or of the largest spread: what float32 alone makes of a constant."""
_DECOMPOSED = 2500
"""Keys: beyond, a decomposition costs more than it saves."""


class Metric(StrEnum):
    """Distances between keys; both are Euclidean after a map of the keys."""

    STANDARDISED = "standardised"
    """Every number divided by its spread over the demonstrations; constant ones do not count. A
    picture's still background, of which only noise varies, weighs as much as the arm."""
    COSINE = "cosine"
    """Of the keys' angles from the demonstrations' mean; a key at the mean itself stays there."""
    PLAIN = "plain"
    """Of the keys as they are."""


@dataclass(frozen=True)
class KeyMap:
    """The map of one metric, fitted to demonstrations."""

    metric: Metric
    shift: Float[np.ndarray, " d"]
    factor: Float[np.ndarray, " d"]

    @classmethod
    def of(cls, metric: Metric, keys: Float[np.ndarray, "scene d"]) -> "KeyMap":
        """Fitted to the keys of demonstrations."""
        d = keys.shape[1]
        if metric is Metric.PLAIN:
            return cls(metric, np.zeros(d), np.ones(d))
        mean = keys.mean(0, dtype=np.float64)
        if metric is Metric.COSINE:
            return cls(metric, mean, np.ones(d))
        spread = keys.std(0, dtype=np.float64)
        varies = spread > _ROUNDING * np.maximum(np.abs(mean), spread.max())
        return cls(metric, mean, np.divide(1.0, spread, out=np.zeros(d), where=varies))

    def __call__(self, keys: Float[np.ndarray, "scene d"]) -> Float[np.ndarray, "scene d"]:
        """Keys whose Euclidean distance is the metric's; float32."""
        if self.metric is Metric.PLAIN:
            return keys
        mapped = (keys - self.shift) * self.factor
        if self.metric is Metric.COSINE:
            length = np.linalg.norm(mapped, axis=1, keepdims=True)
            mapped = np.divide(mapped, length, out=np.zeros_like(mapped), where=length > 0)
        return mapped.astype(np.float32)


def compact(
    keys: Float[np.ndarray, "scene d"], queries: Float[np.ndarray, "query d"]
) -> tuple[Float[np.ndarray, "scene e"], Float[np.ndarray, "query e"]]:
    """Fewer numbers with the same distances, where keys have more numbers than there are keys.

    Coordinates in the space that the keys span; the last is a query's distance from that space. A
    linear map of the keys loses nothing by it.
    """
    n, d = keys.shape
    if d <= n + 1 or n > _DECOMPOSED:
        return keys, queries
    mean = keys.mean(0, dtype=np.float64)
    centred, asked = keys - mean, queries - mean
    squares, vectors = np.linalg.eigh(centred @ centred.T)
    kept = squares > 1e-12 * max(squares[-1], np.finfo(float).tiny)
    lengths = np.sqrt(squares[kept])
    along = (asked @ centred.T) @ (vectors[:, kept] / lengths)
    outside = np.square(asked).sum(1) - np.square(along).sum(1)
    return (
        np.c_[vectors[:, kept] * lengths, np.zeros(n)],
        np.c_[along, np.sqrt(np.maximum(outside, 0.0))],
    )
