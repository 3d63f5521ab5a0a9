"""How far estimates agree with exact patches of the same sites."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Figures:
    """What two lists of effects have in common; NaN where that is not defined."""

    pearson: Float[np.ndarray, "*draw"]
    spearman: Float[np.ndarray, "*draw"]
    relative_error: Float[np.ndarray, "*draw"]
    """|estimate - exact| / |exact|, norms over the audited sites."""
    found: Float[np.ndarray, "*draw"]
    """Share of the k strongest sites that are also among the k with the largest estimates."""


@dataclass(frozen=True)
class Agreement:
    """The audit of one cut in one direction."""

    n_sites: int
    n_top: int
    """Audited because their estimates are the largest."""
    n_random: int
    """Audited at random, of all others."""
    figures: Figures
    k: int
    """How many sites count as the strongest: at most half of those that were audited."""
    covered: float
    """Share of the audited sites whose exact effect lies within the error bar."""
    missed: int
    """Audited sites whose exact effect reaches the threshold while the estimate stays below it."""
    missed_at_random: int
    """Those of them that were drawn at random."""
    missed_bound: float
    """Upper bound on the share of missed ones among all sites that were not audited for their
    estimates; the share itself where all were audited."""


def agreement(
    estimate: Float[np.ndarray, " audited"],
    exact: Float[np.ndarray, " audited"],
    error_bar: Float[np.ndarray, " audited"],
    is_top: Bool[np.ndarray, " audited"],
    *,
    n_sites: int,
    top_k: int,
    threshold: float,
) -> Agreement:
    """What an audit says of the estimates of one cut.

    Args:
        is_top: whether a site was audited for its estimate, not at random.
        n_sites: that the cut has.
        threshold: what should not be missed, in the unit of the effects.
    """
    k = strongest(len(estimate), top_k)
    missed = (np.abs(exact) >= threshold) & (np.abs(estimate) < threshold)
    n_top, n_random = int(is_top.sum()), int((~is_top).sum())
    at_random = int((missed & ~is_top).sum())
    return Agreement(
        n_sites,
        n_top,
        n_random,
        figures(estimate, exact, k),
        k,
        float((np.abs(exact - estimate) <= error_bar).mean()),
        int(missed.sum()),
        at_random,
        missed_bound(at_random, n_random, n_sites - n_top),
    )


def strongest(n_audited: int, top_k: int) -> int:
    """How many of the audited sites count as the strongest: of more, chance finds most."""
    return max(1, min(top_k, n_audited // 2))


def figures(
    estimate: Float[np.ndarray, "*draw audited"], exact: Float[np.ndarray, "*draw audited"], k: int
) -> Figures:
    """Correlations, error and what was found, over the last axis."""
    size = np.linalg.norm(exact, axis=-1)
    error = np.linalg.norm(estimate - exact, axis=-1)
    of_exact, of_estimate = (
        np.argsort(-np.abs(x), axis=-1, kind="stable")[..., :k] for x in (exact, estimate)
    )
    shared = (of_exact[..., :, None] == of_estimate[..., None, :]).any(-1).mean(-1)
    undefined = np.full(size.shape, np.nan)
    return Figures(
        _pearson(estimate, exact),
        _pearson(stats.rankdata(estimate, axis=-1), stats.rankdata(exact, axis=-1)),
        np.divide(error, size, out=undefined.copy(), where=size > 0),
        np.where(size > 0, shared, np.nan),
    )


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (x - x.mean(-1, keepdims=True) for x in (a, b))
    scale = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    undefined = np.full(scale.shape, np.nan)
    return np.divide((a * b).sum(-1), scale, out=undefined, where=scale > 0)


def missed_bound(missed: int, drawn: int, of: int) -> float:
    """One-sided Clopper-Pearson bound (95 %) on a share, from sites drawn at random.

    Kramar et al. (2024) bound the false negatives of attribution patching by sampling; so does
    this. Drawing without replacement makes the bound larger than needed.

    Args:
        drawn: how many were drawn, of how many.
    """
    if drawn == of:
        return missed / of if of else 0.0
    if not drawn:
        return 1.0
    test = stats.binomtest(missed, drawn, alternative="less")
    return float(test.proportion_ci(CONFIDENCE, method="exact").high)
