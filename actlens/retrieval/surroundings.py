"""Which scenes lie beyond the demonstrations, and which between them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from scipy.spatial import ConvexHull, QhullError

from actlens.retrieval.demonstrations import Demonstrations
from actlens.retrieval.growth import POSITION, distance_to_demonstrations, starts_of
from actlens.retrieval.search import NearestNeighbours


def beyond_demonstrations(
    demonstrations: Demonstrations, scenes: Demonstrations, labels: Sequence[str] = POSITION
) -> Bool[np.ndarray, " scene"]:
    """Outside the convex hull of the demonstrated starts, and farther from each of them than they
    are from one another (median): a millimetre outside is no extrapolation.

    Demonstrations in a line, or fewer than it takes, have no hull: then the distance alone tells.

    Raises:
        RetrievalError: if a label is missing.
    """
    starts, _ = starts_of(demonstrations, labels)
    asked, of_scene = starts_of(scenes, labels)
    apart = distance_to_demonstrations(demonstrations, scenes, labels)
    spacing = 0.0
    if len(starts) > 1:
        itself = np.arange(len(starts))
        index = NearestNeighbours.of(starts, episodes=itself)
        spacing = float(np.median(index.search(starts, leaving_out=itself).distances))
    try:
        planes = ConvexHull(starts).equations
    except (QhullError, ValueError):  # in a line; of one dimension; too few
        return apart > spacing
    outside = np.any(asked @ planes[:, :-1].T + planes[:, -1] > 1e-12, axis=1)
    return np.asarray(outside)[of_scene] & (apart > spacing)
