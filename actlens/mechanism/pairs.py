"""Neighbouring scenes of different episodes: between them a table must jump and a rule must not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from actlens.errors import SceneError
from actlens.scene import Scene, episode_numbers


@dataclass(frozen=True)
class Neighbours:
    """Ordered pairs of scenes."""

    first: Int[np.ndarray, " pair"]
    second: Int[np.ndarray, " pair"]


def neighbours(
    points: Float[np.ndarray, "scene dim"],
    groups: Int[np.ndarray, " scene"],
    frames: Int[np.ndarray, " scene"],
    *,
    n: int = 2,
) -> Neighbours:
    """The nearest scenes of other episodes, among those at the same frame.

    Args:
        points: where scenes are: task coordinates if they are known, else any vector of theirs.
        groups: the episode of every scene.
        n: neighbours of every scene; fewer where there are not so many.

    Raises:
        SceneError: if no scene has a neighbour.
    """
    pairs = []
    for scene in range(len(points)):
        others = np.flatnonzero((frames == frames[scene]) & (groups != groups[scene]))
        apart = np.linalg.norm(points[others] - points[scene], axis=1)
        pairs += [(scene, int(j)) for j in others[np.argsort(apart, kind="stable")[:n]]]
    if not pairs:
        raise SceneError(
            "No two scenes are of different episodes and the same frame: there are no neighbours."
        )
    first, second = np.array(pairs).T
    return Neighbours(first, second)


def neighbours_of(
    values: Float[Tensor, "scene ..."], scenes: Sequence[Scene], *, n: int = 2
) -> Neighbours:
    """Those of scenes by what some activation is in them.

    Raises:
        SceneError: if no scene has a neighbour.
    """
    points = values.flatten(1).double().cpu().numpy()
    frames = np.array([scene.frame for scene in scenes])
    return neighbours(points, episode_numbers(scenes), frames, n=n)
