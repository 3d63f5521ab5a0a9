"""How much of an outcome a score explains beyond the site (Hase et al. 2023, section 5)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from actlens.statistics import MIN_CLUSTERS

CONSTANT = 1e-3
"""Outcomes and scores with a smaller standard deviation do not vary: rounding needs no cause."""

Table = Float[np.ndarray, "request block"]


@dataclass(frozen=True)
class Explained:
    """Shares of variance over (request, block), and rank correlations; NaN where undefined.

    `low` and `high` bound 95 % intervals from resampling episodes. A share of variance cannot be
    negative, so an interval of `partial` that starts near 0 speaks for nothing; `p` does.
    """

    n_rows: int
    n_episodes: int
    site: float
    """R^2 of the block alone."""
    score: float
    """R^2 of the score alone."""
    both: float
    """R^2 of the block and the score."""
    partial: float
    """(both - site) / (1 - site): of what the block leaves, the share that the score explains."""
    partial_low: float
    partial_high: float
    p: float
    """Share of permutations of the scores among requests that explain as much; NaN if requests
    share episodes."""
    rho: float
    """Spearman's, over all rows."""
    rho_low: float
    rho_high: float
    rho_within: float
    """Mean over blocks of Spearman's over requests: which scenes are easy to edit here?"""
    rho_within_low: float
    rho_within_high: float


def explained(
    outcome: Table,
    score: Table,
    episodes: Int[np.ndarray, " request"],
    *,
    seed: int = 0,
    draws: int = 500,
) -> Explained:
    """How much of an outcome of edits the score of their sites explains.

    Linear regressions on a dummy for every block, on the score, and on both.

    Args:
        outcome: NaN where there is none.
        episodes: of the requests; they are what is resampled.
    """
    rng = np.random.default_rng(seed)
    rows = np.isfinite(outcome) & np.isfinite(score)
    found = _shares(outcome, score, rows)
    ranks = _ranks(outcome, score, rows)
    names, of = np.unique(episodes, return_inverse=True)
    members = [np.flatnonzero(of == i) for i in range(len(names))]
    drawn = np.full((draws, 3), np.nan)
    if len(names) >= MIN_CLUSTERS:
        for i in range(draws):
            at = np.concatenate([members[j] for j in rng.integers(0, len(names), len(names))])
            again = outcome[at], score[at], rows[at]
            drawn[i] = _shares(*again)[3], *_ranks(*again)
    low, high = _interval(drawn)
    p = np.nan
    if len(names) == len(outcome) and np.isfinite(found[3]):
        reached = 0
        for _ in range(draws):
            order = rng.permutation(len(outcome))
            both = rows & rows[order]
            reached += _shares(outcome, score[order], both)[3] >= found[3] - 1e-12
        p = (1 + reached) / (1 + draws)
    site, alone, both, partial = found
    return Explained(
        n_rows=int(rows.sum()),
        n_episodes=len(names),
        site=site,
        score=alone,
        both=both,
        partial=partial,
        partial_low=low[0],
        partial_high=high[0],
        p=float(p),
        rho=ranks[0],
        rho_low=low[1],
        rho_high=high[1],
        rho_within=ranks[1],
        rho_within_low=low[2],
        rho_within_high=high[2],
    )


def _shares(
    y: Table, t: Table, rows: Bool[np.ndarray, "request block"]
) -> tuple[float, float, float, float]:
    """R^2 of the block, of the score and of both, and the partial one.

    The score's part beyond the block is what is left of both about their means in the block
    (Frisch, Waugh and Lovell).
    """
    count = rows.sum(0)
    y, t = np.where(rows, y, 0.0), np.where(rows, t, 0.0)
    within = lambda x: np.where(rows, x - x.sum(0) / np.maximum(count, 1), 0.0)
    about = lambda x: np.where(rows, x - x.sum() / max(count.sum(), 1), 0.0)
    whole, inside, of_score, of_score_inside = about(y), within(y), about(t), within(t)
    total, left = (whole**2).sum(), (inside**2).sum()
    floor = CONSTANT**2 * max(count.sum(), 1)
    if total <= floor:
        return np.nan, np.nan, np.nan, np.nan
    site, alone = 1 - left / total, _squared_cosine(whole, of_score, floor)
    if left <= floor:
        return float(site), alone, float(site), np.nan
    partial = _squared_cosine(inside, of_score_inside, floor)
    return float(site), alone, float(site + (1 - site) * partial), partial


def _squared_cosine(y: Table, t: Table, floor: float) -> float:
    """0 for a score that does not vary."""
    length = (t**2).sum()
    return float((y * t).sum() ** 2 / ((y**2).sum() * length)) if length > floor else 0.0


def _ranks(y: Table, t: Table, rows: Bool[np.ndarray, "request block"]) -> tuple[float, float]:
    """Spearman's rho over all rows, and its mean over the blocks in which it is defined."""
    by_block = [_rho(y[own, i], t[own, i]) for i, own in enumerate(rows.T)]
    known = [rho for rho in by_block if np.isfinite(rho)]
    return _rho(y[rows], t[rows]), float(np.mean(known)) if known else np.nan


def _rho(y: Float[np.ndarray, " row"], t: Float[np.ndarray, " row"]) -> float:
    if len(y) < 3 or y.std() <= CONSTANT or t.std() <= CONSTANT:
        return np.nan
    first, second = (rankdata(x) - (len(x) + 1) / 2 for x in (y, t))
    return float((first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum()))


def _interval(
    drawn: Float[np.ndarray, "draw figure"],
) -> tuple[Float[np.ndarray, " figure"], Float[np.ndarray, " figure"]]:
    """Percentiles over the draws in which a figure is defined; NaN if in fewer than half."""
    bounds = np.full((2, drawn.shape[1]), np.nan)
    for i, column in enumerate(drawn.T):
        known = column[np.isfinite(column)]
        if 2 * len(known) >= len(column):
            bounds[:, i] = np.quantile(known, (0.025, 0.975))
    return bounds[0], bounds[1]
