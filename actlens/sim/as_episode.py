"""A rollout as one more episode of a dataset: what looks at recordings can look at it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8

from actlens.config import IMAGE_PREFIX, STATE_KEY, Camera
from actlens.errors import SceneError
from actlens.scenes.dataset import Dataset
from actlens.scenes.episode import Episode, EpisodeReader, Track
from actlens.sim.environment import CAMERAS
from actlens.sim.rollout import RolloutResult

_LABELS = ("cube_x", "cube_y", "cube_z", "cube_yaw")


@dataclass(frozen=True, eq=False)
class _WithRollout:
    """Reads one episode from memory and the others as they were read."""

    index: int
    result: RolloutResult
    others: EpisodeReader

    def track(self, episode: Episode) -> Track:
        if episode.index != self.index:
            return self.others.track(episode)
        cubes = self.result.cube[:-1].astype(np.float32)
        return Track(
            self.result.actions,
            {STATE_KEY: self.result.states[:-1]},
            dict(zip(_LABELS, cubes.T, strict=True)),
        )

    def images(
        self, episode: Episode, camera: Camera, frames: Sequence[int]
    ) -> Iterator[UInt8[np.ndarray, "3 h w"]]:
        if episode.index != self.index:
            yield from self.others.images(episode, camera, frames)
            return
        assert self.result.frames is not None
        at = CAMERAS.index(camera.key.removeprefix(IMAGE_PREFIX))
        for frame in frames:
            picture = np.split(self.result.frames[frame], len(CAMERAS), axis=1)[at]
            yield np.ascontiguousarray(picture.transpose(2, 0, 1))


def with_rollout(dataset: Dataset, result: RolloutResult) -> tuple[Dataset, int]:
    """The dataset with a rollout behind its episodes, and the rollout's index in it.

    What was carried out stands where recordings have the demonstrated actions. The moment after
    the last action is left out.

    Raises:
        SceneError: if the rollout kept no pictures, or shows other cameras than the dataset.
    """
    if result.frames is None:
        raise SceneError("This rollout kept no pictures: roll_out(…, keep_frames=True).")
    height, width = result.frames.shape[1], result.frames.shape[2] // len(CAMERAS)
    own = {(f"{IMAGE_PREFIX}{name}", height, width) for name in CAMERAS}
    theirs = {(camera.key, camera.height, camera.width) for camera in dataset.cameras}
    if not theirs <= own:
        raise SceneError(
            f"The rollout shows {sorted(own)}; {dataset.name} has {sorted(theirs)}: no episode "
            "of one dataset."
        )
    index = 1 + max((episode.index for episode in dataset.episodes), default=-1)
    episode = Episode(index, len(result.actions), "rollout")
    reader = _WithRollout(index, result, dataset.reader)
    return replace(dataset, episodes=(*dataset.episodes, episode), reader=reader), index
