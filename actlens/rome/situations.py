"""Where and when a scene stands among the demonstrations: what is near, alike, and far.

A situation is a place (where the cube stood when its episode began) and a phase (how much of the
episode has passed). Datasets that do not say where anything stood still show it: two episodes whose
demonstrations move alike were about the same place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from actlens.rome.errors import EditError
from actlens.scene import Scene
from actlens.scenes.dataset import Dataset

CUBE = ("cube_x", "cube_y")
_RINGS_MM = (10.0, 20.0, 40.0, 80.0)
_ALIKE_MM = 60.0
_RING_SHARES = (0.013, 0.05, 0.16, 0.47)
_ALIKE_SHARE = 0.33
"""Of pairs of episodes: what the distances in mm are on the bundled demonstrations."""
_MOMENTS = 16


@dataclass(frozen=True)
class Situation:
    """A place in the unit of its `Places`, and a phase within 0 and 1."""

    place: tuple[float, ...]
    phase: float


@dataclass(frozen=True)
class Places:
    """Where every episode takes place, and which distances count as near and far."""

    at: Mapping[int, tuple[float, ...]]
    """By episode."""
    lengths: Mapping[int, int]
    """Frames, by episode."""
    labels: tuple[str, ...]
    """What the coordinates are; empty where they are demonstrations."""
    unit: str
    rings: tuple[float, float, float, float]
    """Ascending distances: within the second a scene is near, beyond the last it is far."""
    alike: float
    """Within this distance nobody can say whether a request should hold."""

    def of(self, scene: Scene) -> Situation:
        """The situation of a scene of these episodes, or of a labelled one at an episode's start.

        Raises:
            EditError: if it is neither.
        """
        if scene.episode in self.at and scene.source != "simulator":
            length = self.lengths[scene.episode]
            return Situation(self.at[scene.episode], scene.frame / max(1, length - 1))
        if self.labels and all(name in scene.labels for name in self.labels):
            return Situation(tuple(1000 * scene.labels[name] for name in self.labels), 0.0)
        raise EditError(
            f"Scene {scene.address} is of no episode of the demonstrations, and nothing says where "
            "it takes place."
        )

    def distances(self, place: Sequence[float], episodes: Sequence[int]) -> Float[np.ndarray, " e"]:
        """Of a place to those of some episodes."""
        return np.linalg.norm(np.array([self.at[e] for e in episodes]) - np.array(place), axis=1)


def places_of(dataset: Dataset, labels: Sequence[str] = CUBE) -> Places:
    """Places by labels in metres at the start of every episode; by what was demonstrated, without.

    The latter is the distance between demonstrations, each at 16 moments, in standard deviations of
    each joint: root mean square. What counts as near is then said by shares of pairs of episodes.

    Raises:
        EditError: if there are fewer than four episodes.
    """
    indices = [episode.index for episode in dataset.episodes]
    if len(indices) < 4:
        raise EditError(
            f"{dataset.name} has {len(indices)} episodes: it takes at least four, two to know the "
            "keys by and two to look at."
        )
    lengths = {episode.index: episode.length for episode in dataset.episodes}
    if labels and set(labels) <= set(dataset.label_names):
        said = {e: dataset.labels(e) for e in indices}
        at = {e: tuple(1000 * float(said[e][name][0]) for name in labels) for e in indices}
        return Places(at, lengths, tuple(labels), "mm", _RINGS_MM, _ALIKE_MM)
    moved = np.stack([_demonstrated(dataset.actions(e)) for e in indices])
    spread = moved.std((0, 1))
    moved = (moved / np.where(spread > 0, spread, 1)).reshape(len(indices), -1)
    moved /= np.sqrt(moved.shape[1])
    pairs = np.triu_indices(len(indices), 1)
    apart = np.linalg.norm(moved[pairs[0]] - moved[pairs[1]], axis=1)
    rings = np.quantile(apart, _RING_SHARES).tolist()
    at = {e: tuple(row) for e, row in zip(indices, moved.tolist(), strict=True)}
    alike = float(np.quantile(apart, _ALIKE_SHARE))
    return Places(at, lengths, (), "sd", (rings[0], rings[1], rings[2], rings[3]), alike)


def frame_at(phase: float, length: int) -> int:
    """The frame of an episode at a phase."""
    return round(phase * (length - 1))


def _demonstrated(actions: Float[np.ndarray, "frame joint"]) -> Float[np.ndarray, "moment joint"]:
    """The actions at even moments."""
    return actions[np.linspace(0, len(actions) - 1, _MOMENTS).round().astype(int)]
