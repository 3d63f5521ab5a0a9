"""A scene: what the policy sees at one moment, and what is known about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from actlens.config import IMAGE_PREFIX
from actlens.errors import SceneError
from actlens.notebook import Drawn

if TYPE_CHECKING:
    from actlens.page import Block

Observation = Mapping[str, Tensor]
"""LeRobot's keys -> tensors: `observation.images.top` (uint8 0..255 or float 0..1, `3 h w`),
`observation.state` (dataset units, `joint`), each with or without a leading batch axis."""


@dataclass(frozen=True)
class Scene(Drawn):
    """One frame of an episode (or one rendered moment) with the action chunk that follows it.

    `observation` is unbatched and in dataset units. `labels` holds what the dataset or the
    simulator knows of the world: `cube_x`, `cube_y`, `cube_z` in metres, `cube_yaw` in radians, ….
    """

    observation: Observation
    action: Float[Tensor, "chunk joint"] | None = None
    """The demonstrated actions from this frame on, in dataset units."""
    action_is_pad: Bool[Tensor, " chunk"] | None = None
    """True where the episode had ended and the last action is repeated."""
    episode: int = 0
    frame: int = 0
    labels: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    """Where the scene comes from, for reports: a dataset's name, or `simulator`."""

    @property
    def address(self) -> str:
        """`EPISODE:FRAME`, as the command line takes it."""
        return f"{self.episode}:{self.frame}"

    def picture(self, key: str) -> UInt8[np.ndarray, "h w 3"]:
        """What a camera saw, as pixels to be drawn on.

        Args:
            key: of the observation, `observation.images.top`.
        """
        image = self.observation[key].detach().cpu()
        image = image.reshape(image.shape[-3:])  # with or without a batch axis of one
        image = (image * 255).round().clamp(0, 255) if image.dtype.is_floating_point else image
        return image.to(torch.uint8).numpy().transpose(1, 2, 0)

    def drawn_as(self) -> "Sequence[Block]":
        """In a notebook: where it comes from, its labels, and what the cameras see."""
        from actlens.page import Beside, Facts, Picture, jpeg

        labels = ", ".join(f"{name} {value:.3f}" for name, value in self.labels.items())
        pictures = tuple(
            Picture(jpeg(self.picture(key)), alt=f"{key} of scene {self.address}", caption=key)
            for key in self.observation
            if key.startswith(IMAGE_PREFIX)
        )
        facts = (("scene", f"{self.address} {self.source}".strip()), ("labels", labels or "none"))
        return (Facts(facts), Beside(pictures))


@dataclass(frozen=True)
class ScenePair(Drawn):
    """Two scenes that differ in one thing; `clean` is patched into `corrupt` (denoising).

    `unrelated_clean` and `unrelated_corrupt` agree with `clean` and `corrupt` in that one thing and
    differ in everything else: donors whose patch must not restore the action (the null).
    """

    clean: Scene
    corrupt: Scene
    differs_in: str
    unrelated_clean: Scene | None = None
    unrelated_corrupt: Scene | None = None

    def swapped(self) -> "ScenePair":
        """The same pair with the roles of clean and corrupt exchanged (noising)."""
        return ScenePair(
            self.corrupt, self.clean, self.differs_in, self.unrelated_corrupt, self.unrelated_clean
        )

    def drawn_as(self) -> "Sequence[Block]":
        """In a notebook: both scenes, and what differs."""
        from actlens.page import Section

        return (
            Section(f"clean (differs in {self.differs_in})", tuple(self.clean.drawn_as())),
            Section("corrupt", tuple(self.corrupt.drawn_as())),
        )


def stack(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """The scenes' observations as one batch.

    Raises:
        SceneError: if there is no scene, or if the scenes do not have the same keys and shapes.
    """
    if not scenes:
        raise SceneError("There is no scene to stack.")
    first = scenes[0].observation
    for scene in scenes[1:]:
        for key in first.keys() | scene.observation.keys():
            a, b = first.get(key), scene.observation.get(key)
            if a is None or b is None or a.shape != b.shape:
                raise SceneError(
                    f"Scenes {scenes[0].address} and {scene.address} cannot share a batch: {key} "
                    f"is {'absent' if a is None else tuple(a.shape)} in one and "
                    f"{'absent' if b is None else tuple(b.shape)} in the other."
                )
    return {key: torch.stack([scene.observation[key] for scene in scenes]) for key in first}


def episode_numbers(scenes: Sequence[Scene]) -> Int[np.ndarray, " scene"]:
    """The scenes' episodes as numbers from 0, in the order in which they come.

    Episodes of different datasets are different ones, whatever their index.
    """
    names = {(scene.source, scene.episode): None for scene in scenes}
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([numbers[scene.source, scene.episode] for scene in scenes], dtype=np.int64)
