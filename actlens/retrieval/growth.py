"""How fast errors grow with the distance to what was demonstrated."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from actlens.retrieval.demonstrations import Demonstrations
from actlens.retrieval.jackknife import Totals, Undefined, Value, jackknife
from actlens.retrieval.keys import RetrievalError
from actlens.retrieval.search import NearestNeighbours
from actlens.statistics import MIN_CLUSTERS

POSITION = ("cube_x", "cube_y")


def distance_to_demonstrations(
    demonstrations: Demonstrations, scenes: Demonstrations, labels: Sequence[str] = POSITION
) -> Float[np.ndarray, " scene"]:
    """How far from the nearest demonstrated start each scene's episode starts, in label units.

    Args:
        labels: the place; where it is in an episode's first frame at hand counts, as the object may
            be carried away later.

    Raises:
        RetrievalError: if a label is missing.
    """
    starts, _ = starts_of(demonstrations, labels)
    asked, of_scene = starts_of(scenes, labels)
    index = NearestNeighbours.of(starts)
    return index.search(asked).distances[of_scene, 0]


def starts_of(
    scenes: Demonstrations, labels: Sequence[str]
) -> tuple[Float[np.ndarray, "episode label"], Int[np.ndarray, " scene"]]:
    """The place where every episode starts, and each scene's episode among these."""
    missing = [label for label in labels if label not in scenes.labels]
    if missing:
        known = ", ".join(scenes.labels) or "none"
        raise RetrievalError(f"Scenes have no label {missing[0]!r} in common; they have {known}.")
    values = np.stack([scenes.labels[label] for label in labels], 1)
    order = np.lexsort((scenes.frames, scenes.episodes))
    _, first, of_scene = np.unique(scenes.episodes[order], return_index=True, return_inverse=True)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = of_scene
    return values[order[first]], place


def growth_exponent(
    distance: Float[np.ndarray, " scene"],
    error: Float[np.ndarray, " scene"],
    n: Int[np.ndarray, " scene"],
    episodes: Int[np.ndarray, " scene"],
) -> Value:
    """b of error ~ distance^b, by least squares in logarithms over episodes.

    Retrieval grows with exponent 1 where the expert is smooth, a local linear map with 2. An error
    that is there without any distance, as of a policy that was not trained to the end, pulls the
    exponent to 0: read it beside that of retrieval on the same scenes.

    Args:
        distance: to the nearest demonstration; the same for all scenes of an episode.
        error: sums, as in `Errors.of`.
        n: what they are divided by.
    """
    rows = []
    for episode in np.unique(episodes):
        here = episodes == episode
        mean, apart = error[here].sum() / max(1, n[here].sum()), distance[here].mean()
        if mean > 0 and apart > 0:
            rows.append((np.log(apart), np.log(mean)))
    if len(rows) < MIN_CLUSTERS:
        return Undefined(
            f"{len(rows)} episodes have an error and a distance that are not zero; a slope takes "
            f"{MIN_CLUSTERS}"
        )
    x, y = np.array(rows).T
    if np.ptp(x) < np.log(2):
        return Undefined("the distances differ by less than a factor of two")
    x, y = x - x.mean(), y - y.mean()
    return jackknife(_slope, np.stack([np.ones_like(x), x, y, x * x, x * y], 1))


def _slope(totals: Totals) -> Float[np.ndarray, " row"]:
    n, x, y, xx, xy = totals.T
    spread = xx - x * x / n
    return np.divide(xy - x * y / n, spread, out=np.full(len(n), np.nan), where=spread > 0)
