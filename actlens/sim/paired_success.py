"""Success with and without, on the same starts: the exact test and the score interval."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from scipy import optimize, stats


@dataclass(frozen=True)
class PairedSuccess:
    """How success changed between two conditions that share their starts."""

    lost: int
    """Starts that succeeded without and failed with."""
    gained: int
    """Starts that failed without and succeeded with."""
    change: float
    """Success rate with minus without."""
    low: float
    high: float
    """Two-sided score interval of the change (Tango 1998)."""
    p: float
    """Two-sided exact McNemar test: whether losses and gains are equally likely."""


def paired_success(
    without: Bool[np.ndarray, " start"],
    under: Bool[np.ndarray, " start"],
    confidence: float = 0.95,
) -> PairedSuccess:
    """The change of success over the same starts.

    Only starts whose outcome differs speak; p comes from the binomial distribution of losses among
    them. The interval is that of T. Tango, Statistics in Medicine 17 (1998), 891-908: like
    Wilson's it inverts the score test, so it holds at 0 and 100 %, where Wald's shrinks to a point.
    """
    without, under = np.asarray(without, bool), np.asarray(under, bool)
    lost, gained, n = int((without & ~under).sum()), int((~without & under).sum()), len(without)
    p = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    estimate = (gained - lost) / n
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    edge = 1 - 1e-9

    def where_it_reaches(bound: float, bracket: tuple[float, float]) -> float:
        excess = lambda change: score(gained, lost, n, change) - bound
        return optimize.root_scalar(excess, bracket=bracket).root

    low = -1.0 if estimate < -edge else where_it_reaches(z, (-edge, estimate - 1e-9))
    high = 1.0 if estimate > edge else where_it_reaches(-z, (estimate + 1e-9, edge))
    return PairedSuccess(lost, gained, estimate, low, high, float(p))


def score(gained: int, lost: int, n: int, change: float) -> float:
    """Tango's statistic: standard normal if the true change of the success rate is `change`.

    Its variance is taken at the likeliest rates of loss and gain that differ by `change`.
    """
    linear = (2 * n - gained + lost) * change - gained - lost
    product = lost * change * (1 - change)
    loss_rate = (math.sqrt(max(linear**2 + 8 * n * product, 0.0)) - linear) / (4 * n)
    variance = n * (2 * loss_rate + change * (1 - change))
    return (gained - lost - n * change) / math.sqrt(max(variance, 1e-300))
