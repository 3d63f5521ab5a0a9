"""Intervals, nulls and multiple comparison over independent episodes or pairs, never frames."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided interval; NaN bounds where there were too few clusters."""

    estimate: Float[np.ndarray, "*rows"]
    low: Float[np.ndarray, "*rows"]
    high: Float[np.ndarray, "*rows"]


MIN_CLUSTERS = 5
"""Below this number of independent clusters an interval would only pretend to be one."""
_BLOCK = 2**22
"""Numbers that temporaries may hold: tables can have hundreds of thousands of rows."""


def pooled_ratio(
    numerator: Float[np.ndarray, "*rows unit"],
    denominator: Float[np.ndarray, "*rows unit"],
    *,
    clusters: Int[np.ndarray, " unit"] | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    draws: int = 2000,
) -> Interval:
    """sum(numerator) / sum(denominator) with a percentile bootstrap over clusters.

    The ratio of sums weighs a pair by the size of its effect; a mean of ratios would be ruled by
    pairs that hardly differ. Whole clusters are drawn, with replacement. With few clusters a
    percentile interval is somewhat too narrow.

    Args:
        numerator: NaN where a row does not have a unit; it is pooled over those that it has.
        clusters: which units belong together (scene pairs that share an episode); each is one of
            its own if not given. Clusters must be independent.
    """
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    shape, n_units = numerator.shape[:-1], numerator.shape[-1]
    labels = _labels(clusters, n_units)
    numerator, denominator = (x.reshape(-1, n_units) for x in (numerator, denominator))
    present = np.isfinite(numerator)
    found = np.full((3, len(numerator)), np.nan)
    patterns, pattern_of = np.unique(present, axis=0, return_inverse=True)
    for i, having in enumerate(patterns):
        rows = np.flatnonzero(pattern_of.reshape(-1) == i)
        if having.any():
            above, below = (
                _by_cluster(x[rows][:, having], labels[having]) for x in (numerator, denominator)
            )
            found[:, rows] = _bootstrap_ratio(above, below, seed, confidence, draws)
    return Interval(*(values.reshape(shape) for values in found))


def _labels(clusters: np.ndarray | None, n_units: int) -> Int[np.ndarray, " unit"]:
    if clusters is None:
        return np.arange(n_units)
    if len(clusters) != n_units:
        raise ValueError(f"{len(clusters)} clusters are named for {n_units} units.")
    return np.asarray(clusters)


def _by_cluster(
    values: Float[np.ndarray, "row unit"], labels: Int[np.ndarray, " unit"]
) -> Float[np.ndarray, "row cluster"]:
    """Sums over the units of each cluster."""
    order = np.argsort(labels, kind="stable")
    starts = np.unique(labels[order], return_index=True)[1]
    return np.add.reduceat(values[:, order], starts, axis=1, dtype=np.float64)


def _bootstrap_ratio(
    numerator: Float[np.ndarray, "row cluster"],
    denominator: Float[np.ndarray, "row cluster"],
    seed: int,
    confidence: float,
    draws: int,
) -> Float[np.ndarray, "3 row"]:
    """Estimate, low and high: scipy's percentile bootstrap, one resampling shared by all rows."""
    estimate = _divided(numerator.sum(1), denominator.sum(1))
    n = numerator.shape[1]
    if n < MIN_CLUSTERS:
        return np.stack([estimate, np.full_like(estimate, np.nan), np.full_like(estimate, np.nan)])
    drawn = np.random.default_rng(seed).integers(0, n, (draws, n))
    times = np.zeros((n, draws))  # how often each draw holds each cluster
    np.add.at(times, (drawn, np.arange(draws)[:, None]), 1.0)
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    bounds = [
        np.quantile(
            _divided(numerator[rows] @ times, denominator[rows] @ times),
            tails,
            axis=1,
            overwrite_input=True,
        )
        for rows in _blocks(len(estimate), draws)
    ]
    return np.concatenate([estimate[None], np.concatenate(bounds, 1)])


def _divided(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """NaN where both are zero: nothing was to be restored."""
    return np.divide(
        numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator != 0
    )


def _blocks(n_rows: int, width: int) -> list[slice]:
    step = max(1, _BLOCK // max(1, width))
    return [slice(start, start + step) for start in range(0, n_rows, step)]


def sign_flip_p(
    differences: Float[np.ndarray, "*rows unit"],
    *,
    clusters: Int[np.ndarray, " unit"] | None = None,
    seed: int = 0,
    draws: int = 9999,
) -> Float[np.ndarray, "*rows"]:
    """Two-sided p that paired differences are centred on zero, by flipping signs of clusters.

    Exact (all 2^n sign patterns) when there are at most about 13 clusters. The smallest p that n
    clusters can give is 2 / 2^n.

    Args:
        differences: NaN where a row does not have a unit, which then counts for nothing there; a
            row without any gets NaN.
        clusters: which units belong together; each is one of its own if not given.
    """
    flips = _Flips.of(differences, clusters, seed, draws)
    reached = [
        (flipped >= flips.observed[rows, None]).sum(1) for rows, flipped in flips.in_blocks()
    ]
    return flips.p(np.concatenate([*reached, []]), differences)


def max_t_p(
    differences: Float[np.ndarray, "*rows unit"],
    *,
    clusters: Int[np.ndarray, " unit"] | None = None,
    seed: int = 0,
    draws: int = 9999,
) -> Float[np.ndarray, "*rows"]:
    """As `sign_flip_p`, adjusted for all rows: Westfall and Young's (1993) single-step max-T.

    Every flip is made in all rows at once, so that their dependence is kept, and a row is compared
    with the largest of any row. Significant at 0.05 means: under the null, one false finding or
    more among all rows in at most 5 % of experiments. A row's statistic is |sum| / root of the sum
    of squares over clusters, so that rows of all scales have a say.
    """
    flips = _Flips.of(differences, clusters, seed, draws)
    largest = np.zeros(flips.signs.shape[1])
    for _, flipped in flips.in_blocks():
        np.maximum(largest, flipped.max(0), out=largest)
    return flips.p(len(largest) - np.searchsorted(np.sort(largest), flips.observed), differences)


@dataclass(frozen=True)
class _Flips:
    """Rows of cluster sums, each of length one, and the sign patterns to hold them against."""

    sums: Float[np.ndarray, "row cluster"]
    signs: Float[np.ndarray, "cluster flip"]
    known: Bool[np.ndarray, " given"]
    """Which of the rows that were given have any unit."""
    exact: bool
    """Whether the patterns are all that there are."""

    @classmethod
    def of(
        cls,
        differences: np.ndarray,
        clusters: Int[np.ndarray, " unit"] | None,
        seed: int,
        draws: int,
    ) -> "_Flips":
        rows = differences.reshape(-1, differences.shape[-1])
        known = np.asarray(np.isfinite(rows).any(axis=1))
        present = np.where(np.isfinite(rows[known]), rows[known], 0.0)
        sums = _by_cluster(present, _labels(clusters, rows.shape[1]))
        scale = np.sqrt((sums**2).sum(1, keepdims=True))
        sums = np.divide(sums, scale, out=np.zeros_like(sums), where=scale > 0)
        n = sums.shape[1]
        if 2**n > draws:
            signs = np.random.default_rng(seed).choice([-1.0, 1.0], (n, draws))
            return cls(sums, signs, known, exact=False)
        bits = np.arange(2**n) >> np.arange(n)[:, None] & 1
        return cls(sums, 1.0 - 2.0 * bits, known, exact=True)

    @property
    def observed(self) -> Float[np.ndarray, " row"]:
        """A little below the sums: patterns that reach it exactly must count despite rounding."""
        return np.abs(self.sums.sum(1)) - 1e-10

    def in_blocks(self) -> Iterator[tuple[slice, Float[np.ndarray, "row flip"]]]:
        """Absolute sums under every pattern of signs, some rows at a time."""
        for rows in _blocks(len(self.sums), self.signs.shape[1]):
            yield rows, np.abs(self.sums[rows] @ self.signs)

    def p(self, reached: np.ndarray, differences: np.ndarray) -> Float[np.ndarray, "*rows"]:
        """From how many patterns reached what was observed; NaN for rows without any unit."""
        itself = 0 if self.exact else 1  # among random patterns the observed one is not
        found = np.full(len(self.known), np.nan)
        found[self.known] = (reached + itself) / (self.signs.shape[1] + itself)
        return found.reshape(differences.shape[:-1])


def false_discovery(p: Float[np.ndarray, "*rows"]) -> Float[np.ndarray, "*rows"]:
    """Benjamini-Hochberg adjusted p values over all rows that have one."""
    adjusted = np.full(p.shape, np.nan)
    known = np.isfinite(p)
    adjusted[known] = stats.false_discovery_control(p[known])
    return adjusted


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a success rate."""
    bounds = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(bounds.low), float(bounds.high)
