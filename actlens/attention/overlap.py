"""Are the tokens that are looked at others in every scene? Overlap of the sets of the largest."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from actlens.statistics import MIN_CLUSTERS, Interval


def top_sets(
    weights: Float[np.ndarray, "*batch token"], k: int
) -> Bool[np.ndarray, "*batch token"]:
    """True at each row's k largest entries."""
    chosen = np.argpartition(-weights, k - 1, axis=-1)[..., :k]
    found = np.zeros(weights.shape, dtype=bool)
    np.put_along_axis(found, chosen, values=True, axis=-1)
    return found


def jaccard(sets: Bool[np.ndarray, "scene token"]) -> Float[np.ndarray, "scene scene"]:
    """|A and B| / |A or B| of every two sets."""
    each = sets.astype(float)
    both = each @ each.T
    size = each.sum(1)
    return both / (size[:, None] + size - both)


def random_jaccard(k: int, n_tokens: int) -> float:
    """What two random sets of k tokens overlap on average: the null of permuted token identity."""
    shared = np.arange(k + 1)
    p = stats.hypergeom.pmf(shared, n_tokens, k, k)
    return float((p * shared / (2 * k - shared)).sum())


@dataclass(frozen=True)
class Overlap:
    """Mean overlaps of the sets of scenes that are paired in one way."""

    same_moment: Interval
    """Other episode, same moment: what differs is the image, not the phase of the task."""
    other_moment: Interval
    """Other episode, other moment."""
    same_episode: Interval
    """Same episode, other moment."""
    chance: float
    """Of sets whose tokens' identities are permuted."""
    k: int


def overlap(
    weights: Float[np.ndarray, "scene token"],
    episodes: Int[np.ndarray, " scene"],
    moments: Int[np.ndarray, " scene"],
    k: int,
    *,
    seed: int = 0,
) -> Overlap:
    """How alike the sets of the k most attended tokens are.

    Intervals draw whole episodes. A pair of an episode with its own copy is left out, so a draw
    holds pairs of different episodes alone, as the data do.
    """
    found = jaccard(top_sets(weights, k))
    other = episodes[:, None] != episodes
    again = moments[:, None] == moments
    pairs = (other & again, other & ~again, ~other & ~again)
    intervals = [_over_episodes(found, chosen, episodes, seed) for chosen in pairs]
    return Overlap(*intervals, chance=random_jaccard(k, weights.shape[1]), k=k)


def _over_episodes(
    values: Float[np.ndarray, "scene scene"],
    chosen: Bool[np.ndarray, "scene scene"],
    episodes: Int[np.ndarray, " scene"],
    seed: int,
    draws: int = 2000,
) -> Interval:
    """The mean over chosen pairs of scenes with a percentile bootstrap over episodes."""
    names: Sequence[int] = np.unique(episodes).tolist()
    member = (episodes == np.array(names)[:, None]).astype(float)
    count = member @ chosen @ member.T
    total = member @ np.where(chosen, values, 0.0) @ member.T
    estimate = total.sum() / count.sum() if count.sum() else np.nan
    n = len(names)
    if n < MIN_CLUSTERS or not count.sum():
        return Interval(*(np.array(x) for x in (estimate, np.nan, np.nan)))
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), draws).astype(float)
    if np.diagonal(count).any():  # pairs within an episode: as often as the episode is drawn
        above, below = (times @ np.diagonal(x) for x in (total, count))
    else:
        above, below = (((times @ x) * times).sum(1) for x in (total, count))
    known = below > 0  # not where one episode alone was drawn
    low, high = np.quantile(above[known] / below[known], (0.025, 0.975))
    return Interval(np.array(estimate), np.array(low), np.array(high))
