"""Shows policies of small pictures what larger ones show, as they were trained."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import UInt8

from actlens.config import ACTConfig, Camera
from actlens.errors import SceneError
from actlens.model.act import HookedACT
from actlens.scene import Observation, Scene
from actlens.scenes.dataset import Dataset
from actlens.sim.environment import PickCube
from actlens.training_data import shrink

HEIGHT, WIDTH = 240, 320
"""The simulator's pictures, as they were recorded."""


def seen_by(config: ACTConfig, scenes: Iterable[Scene]) -> Iterator[Scene]:
    """The scenes with the cameras that a policy has, their pictures shrunk to its own size.

    Raises:
        SceneError: if a camera is missing, or its size is no multiple of the policy's.
    """
    for scene in scenes:
        yield replace(scene, observation=_shrunk(config, scene.observation))


def dataset_seen_by(
    model: HookedACT, dataset: Dataset, episodes: Sequence[int], frames: Sequence[int]
) -> Iterator[Scene]:
    """Frames of some episodes, as a policy sees them; videos of other cameras are not decoded."""
    names = {camera.key for camera in model.config.cameras}
    some = replace(dataset, cameras=tuple(c for c in dataset.cameras if c.key in names))
    config = model.config
    return seen_by(config, some.scenes(chunk=config.chunk, episodes=episodes, frames=frames))


def acting(
    model: HookedACT, env: PickCube
) -> tuple[Callable[[dict[str, np.ndarray]], np.ndarray], Callable[[], None]]:
    """A policy in the two calls that `rollout` makes, in a simulator of full-size pictures.

    Pictures are drawn when the network looks at them, so `env` needs none in its observations.
    """
    config, taken = model.config, 0

    def reset() -> None:
        nonlocal taken
        taken = 0
        model.reset()

    def select_action(seen: dict[str, np.ndarray]) -> np.ndarray:
        nonlocal taken
        observation = {k: torch.from_numpy(v.copy()) for k, v in seen.items()}
        if taken % config.n_action_steps == 0:
            for camera in config.cameras:
                picture = env.picture(camera.name).transpose(2, 0, 1)
                observation[camera.key] = torch.from_numpy(_fitted(camera, picture))
        taken += 1
        return model.select_action(observation)[0].numpy(force=True)

    return select_action, reset


def _shrunk(config: ACTConfig, observation: Observation) -> Observation:
    missing = [camera.key for camera in config.cameras if camera.key not in observation]
    if missing:
        raise SceneError(f"The policy looks at {missing[0]}, which the scenes do not have.")
    cameras = {camera.key: camera for camera in config.cameras}
    kept = {k: v for k, v in observation.items() if k in cameras or not _is_picture(v)}
    return {
        key: torch.from_numpy(_fitted(cameras[key], value.numpy())) if key in cameras else value
        for key, value in kept.items()
    }


def _is_picture(value: torch.Tensor) -> bool:
    return value.ndim == 3


def _fitted(
    camera: Camera, picture: UInt8[np.ndarray, "3 height width"]
) -> UInt8[np.ndarray, "3 small_height small_width"]:
    height, width = picture.shape[1:]
    factor = height // camera.height
    if (camera.height * factor, camera.width * factor) != (height, width):
        raise SceneError(
            f"{camera.key} shows {height}x{width}, which is no whole multiple of the policy's "
            f"{camera.height}x{camera.width}."
        )
    return shrink(picture[None], factor)[0] if factor > 1 else np.ascontiguousarray(picture)
