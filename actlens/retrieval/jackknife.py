"""Intervals of smooth functions of sums over episodes, and what has no value at all."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from actlens.statistics import MIN_CLUSTERS, Interval


@dataclass(frozen=True)
class Undefined:
    """A statistic that has no value here, and why; never a silent NaN."""

    reason: str

    def __str__(self) -> str:
        return f"undefined: {self.reason}"


Value = Interval | Undefined


def bounds_of(interval: Interval) -> tuple[float, float, float]:
    """The estimate of one number, its low and its high."""
    return float(interval.estimate), float(interval.low), float(interval.high)


Totals = Float[np.ndarray, "row sums"]
"""Sums over episodes; every row is another set of episodes."""


def by_episode(
    values: Float[np.ndarray, "sums scene"], episodes: Int[np.ndarray, " scene"]
) -> Float[np.ndarray, "episode sums"]:
    """The sums of each episode's scenes."""
    _, number = np.unique(episodes, return_inverse=True)
    sums = np.zeros((number.max() + 1 if len(number) else 0, len(values)))
    np.add.at(sums, number, np.asarray(values, dtype=np.float64).T)
    return sums


def jackknife(
    statistic: Callable[..., Float[np.ndarray, " row"]],
    *samples: Float[np.ndarray, "episode sums"],
    confidence: float = 0.95,
) -> Interval:
    """A function of the sums of one or more independent samples, with an interval by episode.

    Every episode is left out once; the spread of what comes out gives a standard error, and
    Student's t with Welch's degrees of freedom the interval. With the tens of episodes that robots
    have it covers better than a percentile bootstrap. NaN bounds where a sample has too few
    episodes, or the statistic no value without one of them.

    Args:
        statistic: takes the `Totals` of every sample, all with the same rows.
        samples: the sums of each episode, by sample.
    """
    totals = [sample.sum(0, keepdims=True) for sample in samples]
    estimate = float(statistic(*totals)[0])
    variances, freedoms = [], []
    for i, sample in enumerate(samples):
        n = len(sample)
        if n < MIN_CLUSTERS:
            return _interval(estimate, np.nan)
        without = [np.repeat(total, n, 0) for total in totals]
        without[i] = totals[i] - sample
        left = statistic(*without)
        variances.append((n - 1) / n * np.square(left - left.mean()).sum())
        freedoms.append(n - 1)
    variance = np.array(variances)
    if not np.isfinite(variance).all():
        return _interval(estimate, np.nan)
    if variance.sum() == 0:
        return _interval(estimate, 0.0)
    freedom = variance.sum() ** 2 / (variance**2 / np.array(freedoms)).sum()
    reach = stats.t.ppf((1 + confidence) / 2, freedom) * np.sqrt(variance.sum())
    return _interval(estimate, float(reach))


def _interval(estimate: float, reach: float) -> Interval:
    return Interval(*(np.asarray(x) for x in (estimate, estimate - reach, estimate + reach)))


def ratio(totals: Totals) -> Float[np.ndarray, " row"]:
    """The first sum over the second."""
    above, below = totals.T
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below != 0)
