"""Does the policy do better at unseen scenes than its nearest demonstration would?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from actlens.retrieval.errors import Errors
from actlens.retrieval.jackknife import Totals, Undefined, Value, by_episode, jackknife, ratio
from actlens.statistics import Interval

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class GeneralisationIndex:
    """GI = 1 - (E_policy(unseen) - E_policy(trained)) / (E_NN(unseen) - E_policy(trained)).

    1: as good at unseen scenes as at those it was trained on. 0: as bad as the nearest
    demonstration in task space. Below 0: worse than that. It speaks of behaviour alone: a smooth
    network can memorise, and a table that tiles the table top generalises.
    """

    measure: str
    index: Value
    trained: Interval
    """The policy's error on the scenes it was trained on."""
    unseen: Interval
    """The policy's error on the others."""
    retrieval: Interval
    """The nearest demonstration's error on the others."""
    headroom: Interval
    """E_NN(unseen) - E_policy(trained): what could be gained or lost."""


def generalisation(
    trained: Errors,
    unseen: Errors,
    retrieval: Errors,
    *,
    trained_episodes: Int[np.ndarray, " scene"],
    unseen_episodes: Int[np.ndarray, " scene"],
    measures: Sequence[str] | None = None,
) -> tuple[GeneralisationIndex, ...]:
    """The index by measure, with intervals by episode over both sets of scenes.

    The policy stands fixed: the intervals say nothing of other training seeds.

    Args:
        trained: of the policy, on demonstrations.
        unseen: of the policy, where nothing was demonstrated.
        retrieval: of the nearest demonstration by `TaskState`, on the same unseen scenes.
        measures: all that were measured if not given.
    """
    chosen = unseen.measures if measures is None else measures
    return tuple(
        _index(
            measure,
            by_episode(np.stack([trained.of(measure), trained.n]), trained_episodes),
            by_episode(
                np.stack([unseen.of(measure), unseen.n, retrieval.of(measure)]), unseen_episodes
            ),
        )
        for measure in chosen
    )


def _index(
    measure: str,
    trained: Float[np.ndarray, "episode sums"],
    unseen: Float[np.ndarray, "episode sums"],
) -> GeneralisationIndex:
    def headroom(known: Totals, new: Totals) -> np.ndarray:
        return ratio(new[:, [2, 1]]) - ratio(known)

    def lost(known: Totals, new: Totals) -> np.ndarray:
        return ratio(new[:, :2]) - ratio(known)

    def index(known: Totals, new: Totals) -> np.ndarray:
        return 1 - ratio(np.stack([lost(known, new), headroom(known, new)], 1))

    room = jackknife(headroom, trained, unseen)
    at_trained, at_unseen = jackknife(ratio, trained), jackknife(ratio, unseen[:, :2])
    nearest = jackknife(ratio, unseen[:, [2, 1]])
    value: Value = jackknife(index, trained, unseen)
    certain = room.low if np.isfinite(room.low) else room.estimate
    if not certain > 0:
        value = Undefined(
            f"the nearest demonstration errs {float(nearest.estimate):.3g} on unseen scenes, not "
            f"surely more than the policy on its training scenes ({float(at_trained.estimate):.3g})"
        )
    return GeneralisationIndex(measure, value, at_trained, at_unseen, nearest, room)


def generalisation_frame(indices: Sequence[GeneralisationIndex]) -> "pd.DataFrame":
    """One row a measure; `undefined` says why there is no index."""
    import pandas as pd

    rows = []
    for found in indices:
        value = found.index
        known = isinstance(value, Interval)
        rows.append(
            {
                "measure": found.measure,
                "index": float(value.estimate) if known else np.nan,
                "low": float(value.low) if known else np.nan,
                "high": float(value.high) if known else np.nan,
                "undefined": "" if known else value.reason,
                "policy_trained": float(found.trained.estimate),
                "policy_unseen": float(found.unseen.estimate),
                "nearest_unseen": float(found.retrieval.estimate),
            }
        )
    return pd.DataFrame(rows)
