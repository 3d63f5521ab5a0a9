"""Decoded chunks beside what they are compared with: the policy's, the expert's, the mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Int

from actlens.errors import SceneError
from actlens.lens.decoding import BATCH, decode, forward
from actlens.lens.lenses import Lens
from actlens.lens.places import MEAN_ACTION, Place, Variant
from actlens.lens.tuning import DATASET_ACTIONS, Tuned
from actlens.metrics import Positions, position_weights
from actlens.model.act import HookedACT
from actlens.scene import Scene, episode_numbers

Chunks = Float[np.ndarray, "*batch chunk joint"]


class When(StrEnum):
    """Moments of an episode, of which the first is apart: nothing has moved towards the object."""

    START = "frame 0"
    LATER = "later"


@dataclass(frozen=True)
class State:
    """What was decoded, and in which way."""

    place: Place
    variant: Variant


@dataclass(frozen=True, eq=False)
class Decodings:
    """Scenes of one set, all at frame 0 or none, decoded through some lenses; in dataset units."""

    name: str
    states: tuple[State, ...]
    """One for every lens; the mean action last."""
    chunks: Float[np.ndarray, "state scene chunk joint"]
    policy: Float[np.ndarray, "scene chunk joint"]
    """What the policy does."""
    expert: Float[np.ndarray, "scene chunk joint"]
    """What was demonstrated."""
    weights: Float[np.ndarray, "scene chunk"]
    """What each position counts; 0 beyond the demonstration's end."""
    episodes: Int[np.ndarray, " scene"]
    frames: Int[np.ndarray, " scene"]
    cube: Float[np.ndarray, "scene 3"]
    """Metres; NaN where the dataset does not say it."""

    @classmethod
    def of(
        cls,
        name: str,
        model: HookedACT,
        scenes: Sequence[Scene],
        lenses: Sequence[Lens],
        tuned: Tuned,
        positions: Positions = Positions.WHOLE,
        progress: Callable[[int], None] = lambda n_scenes: None,
    ) -> Self:
        """Run and decode scenes.

        Raises:
            SceneError: if there is no scene, or one without demonstrated actions.
        """
        if not scenes:
            raise SceneError(f"There is no scene in {name!r}.")
        parts = []
        for start in range(0, len(scenes), BATCH):
            some = scenes[start : start + BATCH]
            run = forward(model, some, lenses, also=[DATASET_ACTIONS])
            own = run[DATASET_ACTIONS].numpy(force=True)
            parts.append((decode(model, run, lenses).numpy(force=True), own))
            progress(len(some))
        decoded, policy = (
            np.concatenate(x, axis)
            for x, axis in zip(zip(*parts, strict=True), (1, 0), strict=True)
        )
        at = lambda frame: tuned.mean(DATASET_ACTIONS, frame).numpy(force=True)
        mean = np.stack([at(scene.frame) for scene in scenes])
        states = [State(lens.place, lens.variant) for lens in lenses]
        counted = [position_weights(model.config, positions, [scene]).numpy() for scene in scenes]
        axes = ("cube_x", "cube_y", "cube_z")
        return cls(
            name,
            (*states, State(MEAN_ACTION, Variant.MEAN)),
            np.concatenate([decoded, mean[None]]),
            policy,
            np.stack([demonstrated(scene) for scene in scenes]),
            np.stack(counted),
            episode_numbers(scenes),
            np.array([scene.frame for scene in scenes]),
            np.array([[scene.labels.get(axis, np.nan) for axis in axes] for scene in scenes]),
        )

    @property
    def when(self) -> "When":
        """Whether these are first moments."""
        return When.START if (self.frames == 0).all() else When.LATER

    def only(self, chosen: Bool[np.ndarray, " scene"]) -> "Decodings":
        """Some of the scenes."""
        return replace(
            self,
            chunks=self.chunks[:, chosen],
            policy=self.policy[chosen],
            expert=self.expert[chosen],
            weights=self.weights[chosen],
            episodes=self.episodes[chosen],
            frames=self.frames[chosen],
            cube=self.cube[chosen],
        )


def demonstrated(scene: Scene) -> Float[np.ndarray, "chunk joint"]:
    """The expert's chunk.

    Raises:
        SceneError: if the scene has none.
    """
    if scene.action is None:
        raise SceneError(f"Scene {scene.address} of {scene.source} has no demonstrated actions.")
    return scene.action.numpy(force=True)
