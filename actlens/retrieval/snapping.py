"""Where an action lies between the expert's and the nearest demonstrations'."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from actlens.retrieval.jackknife import Totals, Undefined, Value, by_episode, jackknife, ratio
from actlens.statistics import Interval

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Snap:
    """The policy's action projected on the way from the expert's to a demonstration's.

    0: as far along as the expert's, 1: as the demonstration's. A policy that errs towards the mean
    of all demonstrations is drawn towards each of them, so compare ranks: what retrieves the
    nearest is drawn to it more than to the next ones.
    """

    rank: int
    """Of the demonstration among those nearest to the scene, from 1."""
    fraction: Value
    aside: Value
    """Distance from that way, over its length: near 1 the fraction says little."""


def snap(
    policy: Float[np.ndarray, "scene ..."],
    expert: Float[np.ndarray, "scene ..."],
    demonstrated: Float[np.ndarray, "scene rank ..."],
    episodes: Int[np.ndarray, " scene"],
    *,
    counted: np.ndarray | None = None,
) -> tuple[Snap, ...]:
    """Snap fractions by rank: ratios of sums over scenes, with intervals by episode.

    Scenes whose nearest demonstration does what the expert does weigh nothing: nothing can be told
    there.

    Args:
        policy: chunks over the joints' spread, or points that a rollout reached.
        demonstrated: by the nearest demonstrations, nearest first.
        counted: False where nothing was demonstrated; broadcast against `policy`.
    """
    weight = np.broadcast_to(1.0 if counted is None else counted, policy.shape).reshape(
        len(policy), -1
    )
    flat = lambda x: np.asarray(x, dtype=np.float64).reshape(len(policy), -1)
    moved, found = flat(policy - expert), []
    for rank in range(demonstrated.shape[1]):
        way = flat(demonstrated[:, rank] - expert)
        inner = lambda a, b: (weight * a * b).sum(1)
        sums = by_episode(
            np.stack([inner(moved, way), inner(way, way), inner(moved, moved)]), episodes
        )
        if not sums[:, 1].any():
            same = Undefined("the nearest demonstrations do what the expert does")
            found.append(Snap(rank + 1, same, same))
            continue
        fraction = jackknife(lambda totals: ratio(totals[:, :2]), sums)
        found.append(Snap(rank + 1, fraction, jackknife(_aside, sums)))
    return tuple(found)


def _aside(totals: Totals) -> Float[np.ndarray, " row"]:
    along, length, moved = totals.T
    squared = np.divide(
        moved - along * np.divide(along, length, out=np.zeros_like(along), where=length > 0),
        length,
        out=np.full(len(along), np.nan),
        where=length > 0,
    )
    return np.sqrt(np.maximum(squared, 0.0))


def snap_frame(snaps: Sequence[Snap]) -> "pd.DataFrame":
    """One row a rank; `undefined` says why there is no fraction."""
    import pandas as pd

    rows = []
    for one in snaps:
        row: dict[str, object] = {"rank": one.rank}
        for name, value in (("snap", one.fraction), ("aside", one.aside)):
            known = isinstance(value, Interval)
            numbers = (value.estimate, value.low, value.high) if known else (np.nan,) * 3
            row |= zip((name, f"{name}_low", f"{name}_high"), map(float, numbers), strict=True)
        row["undefined"] = one.fraction.reason if isinstance(one.fraction, Undefined) else ""
        rows.append(row)
    return pd.DataFrame(rows)
