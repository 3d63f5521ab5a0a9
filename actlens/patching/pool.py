"""Numbers of many scene pairs pooled as ratios of sums, with intervals over clusters of pairs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from actlens.patching.sweep import PairSweep
from actlens.statistics import Interval, pooled_ratio

Of = Callable[[PairSweep], Float[np.ndarray, "..."] | float]
"""A number, or an array of them, of one pair's sweep."""


@dataclass(frozen=True)
class Pool:
    """The sweeps of several pairs in one direction, and which of the pairs belong together."""

    sweeps: Sequence[PairSweep]
    clusters: Int[np.ndarray, " pair"]
    seed: int

    def stacked(self, of: Of) -> Float[np.ndarray, "*rows pair"]:
        """One number or array of every pair, the pairs on the last axis."""
        return np.stack([np.asarray(of(sweep)) for sweep in self.sweeps], -1)

    def ratio(self, numerator: Of, denominator: Of) -> Interval:
        """Sum over pairs of one by that of the other, with its interval.

        A pair counts for a row where it has the row's numerator and weighs anything.
        """
        above, below = self._present(numerator, denominator)
        return pooled_ratio(above, below, clusters=self.clusters, seed=self.seed)

    def estimate(self, numerator: Of, denominator: Of) -> Float[np.ndarray, "*rows"]:
        """As `ratio`, without the interval."""
        above, below = self._present(numerator, denominator)
        count = np.isfinite(above)
        sums = [np.where(count, values, 0.0).sum(-1) for values in (above, below)]
        return np.divide(*sums, out=np.full(sums[0].shape, np.nan), where=sums[1] > 0)

    def _present(self, numerator: Of, denominator: Of) -> tuple[np.ndarray, np.ndarray]:
        above, below = np.broadcast_arrays(self.stacked(numerator), self.stacked(denominator))
        return np.where(below > 0, above, np.nan), below
