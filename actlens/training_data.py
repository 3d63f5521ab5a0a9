"""A dataset in memory for training: shrunk pictures, states, actions and their statistics."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from rich.progress import Progress
from torch import Tensor

from actlens.config import ACTION_KEY, STATE_KEY
from actlens.errors import ConfigError, SceneError
from actlens.scenes.dataset import Dataset

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TrainingData:
    """Episodes in memory, frame after frame."""

    images: tuple[UInt8[Tensor, "frame 3 height width"], ...]
    state: Float[Tensor, "frame joint"] | None
    action: Float[Tensor, "frame joint"]
    last: np.ndarray
    """For each frame, the index of its episode's last frame."""

    def chunks(
        self, frames: np.ndarray, length: int
    ) -> tuple[Float[Tensor, "batch chunk joint"], Bool[Tensor, "batch chunk"]]:
        """The actions that follow each frame, the last one repeated, and where they are padding."""
        ahead = frames[:, None] + np.arange(length)
        last = self.last[frames][:, None]
        return self.action[np.minimum(ahead, last)], torch.from_numpy(ahead > last)


def shrink(
    frames: UInt8[np.ndarray, "frame 3 height width"], factor: int
) -> UInt8[np.ndarray, "frame 3 small_height small_width"]:
    """Average blocks of `factor` x `factor` pixels.

    Raises:
        ConfigError: if the size is not a multiple of the factor.
    """
    n, channels, height, width = frames.shape
    if height % factor or width % factor:
        raise ConfigError(f"Images of {height}x{width} cannot be shrunk {factor} times.")
    blocks = frames.reshape(n, channels, height // factor, factor, width // factor, factor)
    return (blocks.mean((3, 5), dtype=np.float32) + 0.5).astype(np.uint8)


def load_training_data(
    dataset: Dataset,
    downscale: int,
    progress: Progress,
    *,
    episodes: Sequence[int] = (),
    cache: Path | None = None,
) -> TrainingData:
    """Decode a dataset's videos into memory.

    Args:
        downscale: the factor by which pictures are shrunk.
        episodes: only these; all if empty.
        cache: a folder that keeps the pictures of all episodes, so that another run on the same
            dataset decodes nothing.

    Raises:
        SceneError: if the dataset has no such episode.
    """
    known = [episode.index for episode in dataset.episodes]
    foreign = sorted(set(episodes) - set(known))
    if foreign:
        raise SceneError(f"{dataset.name} has no episodes {foreign}.")
    chosen = [e for e in dataset.episodes if not episodes or e.index in episodes]
    states, actions, last = [], [], []
    count = 0
    for episode in chosen:
        actions.append(dataset.actions(episode.index))
        if dataset.state_names:
            states.append(dataset.states(episode.index))
        count += episode.length
        last += [count - 1] * episode.length
    indices = [episode.index for episode in chosen]
    images = tuple(
        _pictures(dataset, camera.key, downscale, indices, progress, cache)
        for camera in dataset.cameras
    )
    return TrainingData(
        images,
        torch.from_numpy(np.concatenate(states)) if states else None,
        torch.from_numpy(np.concatenate(actions)),
        np.asarray(last),
    )


def _pictures(
    dataset: Dataset,
    camera: str,
    downscale: int,
    episodes: Sequence[int],
    progress: Progress,
    cache: Path | None,
) -> UInt8[Tensor, "frame 3 height width"]:
    if cache is None:
        parts = _decoded(dataset, camera, downscale, episodes, progress)
        return torch.from_numpy(np.concatenate(parts))
    known = [episode.index for episode in dataset.episodes]
    lengths = [episode.length for episode in dataset.episodes]
    path = cache / f"{dataset.name}-{_identity(dataset)}" / f"{camera}-over-{downscale}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Runs side by side may both find nothing: each writes a file of its own.
        fresh = path.with_suffix(f".{os.getpid()}.tmp")
        with fresh.open("wb") as file:
            np.save(file, np.concatenate(_decoded(dataset, camera, downscale, known, progress)))
        fresh.replace(path)
    kept = np.load(path, mmap_mode="r")
    chosen = np.repeat(np.isin(known, episodes), lengths)
    return torch.from_numpy(kept[chosen])


def _decoded(
    dataset: Dataset, camera: str, downscale: int, episodes: Sequence[int], progress: Progress
) -> list[UInt8[np.ndarray, "frame 3 height width"]]:
    task = progress.add_task(f"decoding {camera}", total=len(episodes))
    parts = []
    for index in episodes:
        parts.append(shrink(dataset.frames(index, camera), downscale))
        progress.advance(task)
    progress.remove_task(task)
    return parts


def _identity(dataset: Dataset) -> str:
    """Of the recorded actions: another recording of the same name has others."""
    digest = hashlib.sha256()
    for episode in dataset.episodes:
        digest.update(np.ascontiguousarray(dataset.actions(episode.index)).tobytes())
    return digest.hexdigest()[:12]


def statistics_of(data: TrainingData, dataset: Dataset) -> dict[str, dict[str, Tensor]]:
    """Mean and standard deviation by feature; ImageNet's for images, as LeRobot trains."""
    stats = {
        camera.key: {
            "mean": torch.tensor(IMAGENET_MEAN).view(3, 1, 1),
            "std": torch.tensor(IMAGENET_STD).view(3, 1, 1),
        }
        for camera in dataset.cameras
    }
    vectors = (
        (STATE_KEY, data.state, dataset.state_names),
        (ACTION_KEY, data.action, dataset.action_names),
    )
    for key, values, names in vectors:
        if values is not None:
            double = values.double()
            std = double.std(0, unbiased=False)
            if (std < 1e-6).any():
                still = [names[i] for i in (std < 1e-6).nonzero().flatten()]
                raise ConfigError(f"{dataset.name}: {key} never changes in {', '.join(still)}.")
            stats[key] = {"mean": double.mean(0).float(), "std": std.float()}
    return stats
