"""Distance to the nearest demonstration as a warning that the policy has left its data."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import optimize, stats

from actlens.retrieval.jackknife import Undefined, Value
from actlens.retrieval.keys import RetrievalError
from actlens.retrieval.metric import KeyMap, Metric
from actlens.retrieval.search import NearestNeighbours
from actlens.statistics import Interval


@dataclass(frozen=True)
class Monitor:
    """Demonstrations' keys at one site, and how far from them is too far."""

    metric: KeyMap
    index: NearestNeighbours
    threshold: float
    """A distance."""
    false_alarms: float
    """At most this share of episodes like the demonstrations has an alarm at any of its frames."""
    calibration: Float[np.ndarray, " episode"]
    """The largest distance in every demonstrated episode to the other ones."""

    @classmethod
    def of(
        cls,
        keys: Float[np.ndarray, "scene d"],
        episodes: Int[np.ndarray, " scene"],
        *,
        false_alarms: float = 0.05,
        metric: Metric = Metric.STANDARDISED,
    ) -> "Monitor":
        """Calibrate the threshold on the demonstrations, each against all other episodes.

        The threshold is the order statistic that holds for a new episode, exchangeable with the
        demonstrations, with the promised probability (split conformal prediction, Vovk et al. 2005,
        up to the one episode by which the calibrating index is smaller).

        Raises:
            RetrievalError: if there are too few episodes for so few false alarms.
        """
        n = len(np.unique(episodes))
        rank = int(np.ceil((n + 1) * (1 - false_alarms)))
        if not 0 < false_alarms < 1 or rank > n:
            raise RetrievalError(
                f"{n} episodes cannot promise at most {false_alarms:g} false alarms; that takes a "
                "share between 0 and 1, and one episode fewer than its inverse."
            )
        same = KeyMap.of(metric, keys)
        index = NearestNeighbours.of(same(keys), episodes=episodes)
        nearest = index.search(same(keys), leaving_out=episodes).distances[:, 0]
        _, number = np.unique(episodes, return_inverse=True)
        largest = np.zeros(n)
        np.maximum.at(largest, number, nearest)
        return cls(same, index, float(np.sort(largest)[rank - 1]), false_alarms, largest)

    def distances(self, keys: Float[np.ndarray, "scene d"]) -> Float[np.ndarray, " scene"]:
        """To the nearest demonstration, in any episode."""
        return self.index.search(self.metric(keys)).distances[:, 0]

    def alarms(self, keys: Float[np.ndarray, "scene d"]) -> Bool[np.ndarray, " scene"]:
        """Which scenes are farther from every demonstration than the threshold."""
        return self.distances(keys) > self.threshold


@dataclass(frozen=True)
class Detection:
    """How well a score that was known before tells failures from successes."""

    auc: Value
    """Probability that a failure scores higher than a success; 0.5 by chance."""
    thresholds: Float[np.ndarray, " point"]
    """Descending; a rollout is flagged where its score reaches it."""
    hits: Float[np.ndarray, " point"]
    """Share of failures that are flagged."""
    false_alarms: Float[np.ndarray, " point"]
    """Share of successes that are."""


def detection(
    scores: Float[np.ndarray, " rollout"],
    failed: Bool[np.ndarray, " rollout"],
    *,
    confidence: float = 0.95,
) -> Detection:
    """The ROC curve of a score, one for each rollout, and its area.

    The interval is Newcombe's (2006, method 5), which is not empty even where the area is 1.

    Args:
        scores: for instance the largest `Monitor.distances` of a rollout's frames, or those of its
            start. Rollouts must be independent.
    """
    scores, failed = np.asarray(scores, dtype=np.float64), np.asarray(failed, dtype=bool)
    if scores.shape != failed.shape or not np.isfinite(scores).all():
        raise RetrievalError("Every rollout has one finite score and one outcome.")
    levels = np.unique(scores)[::-1]
    reached = lambda who: (scores[who][None] >= levels[:, None]).sum(1) / max(1, who.sum())
    hits, false = np.r_[0.0, reached(failed)], np.r_[0.0, reached(~failed)]
    auc = _area(scores, failed, confidence)
    return Detection(auc, np.r_[np.inf, levels], hits, false)


def _area(scores: np.ndarray, failed: np.ndarray, confidence: float) -> Value:
    n_failed, n_succeeded = int(failed.sum()), int((~failed).sum())
    if not n_failed or not n_succeeded:
        which = "failed" if n_succeeded else "succeeded" if n_failed else "was made"
        return Undefined(f"no rollout {which}")
    pairs = n_failed * n_succeeded
    area = float(stats.mannwhitneyu(scores[failed], scores[~failed]).statistic) / pairs
    z = stats.norm.ppf((1 + confidence) / 2)
    n = (n_failed + n_succeeded) / 2 - 1

    def beyond(true: float) -> float:
        spread = true * (1 - true) * (1 + n * (1 - true) / (2 - true) + n * true / (1 + true))
        return float((area - true) ** 2 - z**2 * spread / pairs)

    bound = lambda *bracket: optimize.root_scalar(beyond, bracket=bracket).root
    # At 0 and at 1 the spread is zero, which would be a root of its own.
    low = 0.0 if area == 0 else bound(0.0, min(area, 1 - 1e-9))
    high = 1.0 if area == 1 else bound(max(area, 1e-9), 1.0)
    return Interval(*(np.asarray(x) for x in (area, low, high)))
