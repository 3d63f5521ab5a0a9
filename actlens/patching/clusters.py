"""Which scene pairs are independent of one another: those that share no episode."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from actlens.scene import ScenePair


def episode_clusters(
    pairs: Sequence[ScenePair], *, with_donors: bool = False
) -> Int[np.ndarray, " pair"]:
    """The number of each pair's cluster; pairs that share an episode are in one, and so are theirs.

    Frames of an episode are no independent samples, and one episode can be in many pairs. Scenes
    made by hand without an episode and a source all count as of the same one.

    Args:
        with_donors: also by the episodes of the null's donors (`unrelated_corrupt`). Only numbers
            that depend on the donors need it; pairs often share them.
    """
    number: dict[tuple[str, int], int] = {}
    links: list[tuple[int, int]] = []
    for i, pair in enumerate(pairs):
        donor = pair.unrelated_corrupt if with_donors else None
        for scene in (pair.clean, pair.corrupt, *([] if donor is None else [donor])):
            episode = number.setdefault((scene.source, scene.episode), len(number))
            links.append((i, len(pairs) + episode))
    n = len(pairs) + len(number)
    rows, columns = np.array(links, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(links)), (rows, columns)), shape=(n, n))
    return connected_components(graph, directed=False)[1][: len(pairs)]
