"""Intervals, nulls and multiple comparison over independent episodes or pairs, never frames."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided interval; NaN bounds where there were too few clusters."""

    estimate: Float[np.ndarray, "*rows"]
    low: Float[np.ndarray, "*rows"]
    high: Float[np.ndarray, "*rows"]


MIN_CLUSTERS = 5
"""Below this number of independent clusters an interval would only pretend to be one."""


def pooled_ratio(
    numerator: Float[np.ndarray, "*rows cluster"],
    denominator: Float[np.ndarray, "*rows cluster"],
    *,
    seed: int = 0,
    confidence: float = 0.95,
    draws: int = 2000,
) -> Interval:
    """sum(numerator) / sum(denominator) with a percentile bootstrap over clusters.

    The ratio of sums weighs a pair by the size of its effect; a mean of ratios would be ruled by
    pairs that hardly differ. Clusters must be independent (episodes, or pairs from different ones).
    """
    ratio = lambda n, d, axis=-1: n.sum(axis) / d.sum(axis)
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    estimate = np.asarray(ratio(numerator, denominator))
    if numerator.shape[-1] < MIN_CLUSTERS:
        unknown = np.full_like(estimate, np.nan)
        return Interval(estimate, unknown, unknown)
    result = stats.bootstrap(
        (numerator, denominator),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=draws,
        batch=200,
        axis=-1,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    bounds = result.confidence_interval
    return Interval(estimate, np.asarray(bounds.low), np.asarray(bounds.high))


def sign_flip_p(
    differences: Float[np.ndarray, "*rows cluster"], *, seed: int = 0, draws: int = 9999
) -> Float[np.ndarray, "*rows"]:
    """Two-sided p that paired differences are centred on zero, by flipping signs of clusters.

    Exact (all 2^n sign patterns) when there are at most about 13 clusters. The smallest p that n
    clusters can give is 2 / 2^n.
    """
    result = stats.permutation_test(
        (differences,),
        lambda d, axis: d.mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=draws,
        batch=64,
        axis=-1,
        rng=np.random.default_rng(seed),
    )
    return np.asarray(result.pvalue)


def false_discovery(p: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """Benjamini-Hochberg adjusted p values over all rows."""
    return stats.false_discovery_control(p)


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a success rate."""
    bounds = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(bounds.low), float(bounds.high)
