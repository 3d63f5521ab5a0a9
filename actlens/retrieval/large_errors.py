"""Would a monitor have warned of the episodes in which the policy errs most? Without rollouts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from actlens.retrieval.demonstrations import Demonstrations
from actlens.retrieval.errors import ALL_JOINTS, Errors
from actlens.retrieval.jackknife import Undefined, Value, bounds_of
from actlens.retrieval.monitor import Monitor, detection
from actlens.statistics import wilson

if TYPE_CHECKING:
    import pandas as pd

LARGE = 0.95
"""A large error is larger than in this share of the demonstrated episodes."""


def by_episode_mean(
    errors: Errors, episodes: Int[np.ndarray, " scene"], measure: str = ALL_JOINTS
) -> Float[np.ndarray, " episode"]:
    """Mean error in every episode, in the order of their numbers."""
    _, number = np.unique(episodes, return_inverse=True)
    sums, n = np.zeros((2, number.max() + 1))
    np.add.at(sums, number, errors.of(measure))
    np.add.at(n, number, errors.n)
    return sums / np.maximum(n, 1)


def large_errors(
    known: Float[np.ndarray, " episode"], asked: Float[np.ndarray, " other"]
) -> Bool[np.ndarray, " other"]:
    """Which episodes' errors would be unusual among demonstrations."""
    return asked > np.quantile(known, LARGE)


@dataclass(frozen=True)
class Warned:
    """A monitor at one site, and what it says of unseen episodes."""

    site: str
    threshold: float
    """A distance."""
    alarms: Mapping[str, tuple[int, int]]
    """By set of scenes: episodes with an alarm at any frame, and all of them."""
    auc: Value
    """That the largest distance in an episode tells large errors from others."""
    n_large: int


def warned(
    demonstrations: Demonstrations,
    unseen: Demonstrations,
    large: Bool[np.ndarray, " episode"],
    sets: Mapping[str, Bool[np.ndarray, " scene"]],
    *,
    sites: Sequence[str],
    positions: Sequence[int],
    false_alarms: float = 0.05,
) -> tuple[Warned, ...]:
    """A monitor at every site.

    Args:
        large: of the unseen episodes, in the order of their numbers.
        sets: unseen scenes by name.
        positions: of the chunk, those that are carried out: at sites that have a key for each,
            these are one key.

    Raises:
        RetrievalError: if demonstrations are too few for so few false alarms.
    """
    found = []
    _, number = np.unique(unseen.episodes, return_inverse=True)
    for site in sites:
        known, asked = (_flat(d.keys[site], positions) for d in (demonstrations, unseen))
        monitor = Monitor.of(known, demonstrations.episodes, false_alarms=false_alarms)
        distance = monitor.distances(asked)
        largest = np.zeros(number.max() + 1)
        np.maximum.at(largest, number, distance)
        raised = largest > monitor.threshold
        alarms = {
            name: (int(raised[here].sum()), len(here))
            for name, rows in sets.items()
            for here in [np.unique(number[rows])]
        }
        auc = detection(largest, large).auc
        found.append(Warned(site, monitor.threshold, alarms, auc, int(large.sum())))
    return tuple(found)


def _flat(keys: np.ndarray, positions: Sequence[int]) -> Float[np.ndarray, "scene d"]:
    return keys[:, list(positions)].reshape(len(keys), -1) if keys.ndim == 3 else keys


def warned_frame(found: Sequence[Warned]) -> "pd.DataFrame":
    """One row a site and set of scenes; the area is that of the site, over all of them."""
    import pandas as pd

    rows = []
    for one in found:
        area, reason = (np.nan,) * 3, ""
        if isinstance(one.auc, Undefined):
            reason = one.auc.reason
        else:
            area = bounds_of(one.auc)
        for scenes, (raised, n) in one.alarms.items():
            low, high = wilson(raised, n) if n else (np.nan, np.nan)
            rows.append(
                {
                    "site": one.site,
                    "threshold": one.threshold,
                    "scenes": scenes,
                    "episodes": n,
                    "alarms": raised,
                    "share": raised / n if n else np.nan,
                    "share_low": low,
                    "share_high": high,
                    "large_errors": one.n_large,
                    **dict(zip(("auc", "auc_low", "auc_high"), area, strict=True)),
                    "undefined": reason,
                }
            )
    return pd.DataFrame(rows)
