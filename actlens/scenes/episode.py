"""An episode of a dataset, and what a reader of any format must be able to give of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from actlens.config import Camera


@dataclass(frozen=True)
class Episode:
    """One demonstration, as the dataset's metadata describes it."""

    index: int
    length: int
    """Frames."""
    task: str = ""
    labels: Mapping[str, float | str] = field(default_factory=dict)
    """What the metadata says of the whole episode, for instance `region`."""


@dataclass(frozen=True)
class Track:
    """Everything of one episode that is not an image, frame by frame, in dataset units."""

    action: Float32[np.ndarray, "frame joint"]
    observations: Mapping[str, Float32[np.ndarray, "frame _"]]
    """LeRobot's keys of the vectors that a policy may see -> values."""
    labels: Mapping[str, Float32[np.ndarray, " frame"]] = field(default_factory=dict)
    action_lead: int = 0
    """How many steps before its frame a training target begins: 1 in the original ACT's real-robot
    data, whose loader pairs frame t with the actions from t - 1 on."""


@runtime_checkable
class EpisodeReader(Protocol):
    """The files of one dataset, whatever their format."""

    def track(self, episode: Episode) -> Track:
        """Everything but images."""
        ...

    def images(
        self, episode: Episode, camera: Camera, frames: Sequence[int]
    ) -> Iterator[UInt8[np.ndarray, "3 h w"]]:
        """The camera's pictures at ascending frame indices, decoded as they are asked for.

        The arrays may be strided views: whoever keeps one copies it.
        """
        ...
