"""Recorded demonstrations of any format -> scenes, chunks and arrays.

`open_dataset` takes a bundled name, a folder or a Hugging Face repository id. The `Dataset` it
returns is a description (cameras, names of joints, episodes) that reads files when asked:
`frames(episode, camera)`, `states(episode)` and `actions(episode)` are the arrays that a trainer
loads; `scene` and `scenes` are the observations and action chunks that an analysis walks over.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from actlens.config import STATE_KEY, Camera
from actlens.errors import SceneError
from actlens.scene import Scene
from actlens.scenes.act_hdf5 import EPISODE_FILE, FPS, open_act
from actlens.scenes.episode import Episode, EpisodeReader, Track
from actlens.scenes.hub import dataset_folder
from actlens.scenes.lerobot_dataset import open_lerobot
from actlens.text import clean_text


@dataclass(frozen=True)
class Dataset:
    """The description of a dataset; its files are read when an episode is asked for.

    Episodes are known by the index that the dataset gives them, which need not be their position
    in `episodes`. Cameras are known by their key (`observation.images.top`) or short name (`top`).
    """

    name: str
    path: Path
    layout: str
    """The format and version: `LeRobot v3.0`, `original ACT`."""
    fps: float
    cameras: tuple[Camera, ...]
    state_names: tuple[str, ...]
    """Names of the dimensions of `observation.state`; empty where there is none."""
    action_names: tuple[str, ...]
    label_names: tuple[str, ...]
    """Labels that every frame has, such as `cube_x`."""
    episodes: tuple[Episode, ...]
    reader: EpisodeReader = field(repr=False, compare=False)

    @property
    def n_frames(self) -> int:
        """Frames of all episodes together."""
        return sum(episode.length for episode in self.episodes)

    def episode(self, index: int) -> Episode:
        """The episode of that index.

        Raises:
            SceneError: if there is none.
        """
        for episode in self.episodes:
            if episode.index == index:
                return episode
        shown = ", ".join(str(episode.index) for episode in self.episodes[:5])
        more = ", …" if len(self.episodes) > 5 else ""
        raise SceneError(f"{self.name} has no episode {index}; it has {shown}{more}.")

    def camera(self, key: str) -> Camera:
        """The camera of that key or short name.

        Raises:
            SceneError: if there is none.
        """
        for camera in self.cameras:
            if key in (camera.key, camera.name):
                return camera
        known = ", ".join(camera.key for camera in self.cameras) or "none"
        raise SceneError(f"{self.name} has no camera {clean_text(key)!r}; it has {known}.")

    def track(self, episode: int) -> Track:
        """Everything but the images of an episode: actions, states, labels."""
        return self.reader.track(self.episode(episode))

    def actions(self, episode: int) -> Float32[np.ndarray, "frame joint"]:
        """The recorded actions of an episode, in dataset units."""
        return self.track(episode).action

    def states(self, episode: int) -> Float32[np.ndarray, "frame joint"]:
        """The states (`observation.state`) of an episode, in dataset units.

        Raises:
            SceneError: if the dataset records none.
        """
        observations = self.track(episode).observations
        if STATE_KEY not in observations:
            raise SceneError(f"{self.name} records no {STATE_KEY}.")
        return observations[STATE_KEY]

    def labels(self, episode: int) -> dict[str, Float32[np.ndarray, " frame"]]:
        """Label -> its value at every frame of an episode."""
        return dict(self.track(episode).labels)

    def frames(self, episode: int, camera: str) -> UInt8[np.ndarray, "frame 3 h w"]:
        """All pictures of an episode that one camera took, RGB, 0..255."""
        described, eye = self.episode(episode), self.camera(camera)
        pictures = np.empty((described.length, 3, eye.height, eye.width), np.uint8)
        stream = self.reader.images(described, eye, range(described.length))
        for i, picture in enumerate(stream):
            pictures[i] = picture
        return pictures

    def scene(self, episode: int, frame: int, *, chunk: int) -> Scene:
        """The scene at one frame with the `chunk` actions that a policy should predict there.

        Raises:
            SceneError: if there is no such frame, or if the files do not hold what they promise.
        """
        return next(self.scenes(episodes=[episode], frames=[frame], chunk=chunk))

    def scenes(
        self,
        *,
        chunk: int,
        episodes: Iterable[int] | None = None,
        frames: slice | Sequence[int] = slice(None),
    ) -> Iterator[Scene]:
        """Scenes in the order of `episodes` and, inside each, of ascending frames.

        Every video is opened once an episode and decoded forwards. `frames` is either a slice,
        which fits itself to each episode's length, or exact indices, which every episode must have.
        Images share no memory with one another.

        Raises:
            SceneError: at once if an episode or a frame does not exist or `chunk` is not positive;
                while iterating, if the files do not hold what they promise.
        """
        if chunk < 1:
            raise SceneError(f"A chunk has at least one action, got {chunk}.")
        indices = [e.index for e in self.episodes] if episodes is None else list(episodes)
        plan = [(e, _chosen(frames, e)) for e in map(self.episode, indices)]
        return self._stream(plan, chunk)

    def _stream(self, plan: Sequence[tuple[Episode, list[int]]], chunk: int) -> Iterator[Scene]:
        for episode, frames in plan:
            if not frames:
                continue
            track = self.reader.track(episode)
            streams = [self.reader.images(episode, camera, frames) for camera in self.cameras]
            for i, pictures in zip(frames, _together(streams, len(frames)), strict=True):
                observation = {
                    camera.key: torch.from_numpy(np.array(picture, order="C"))
                    for camera, picture in zip(self.cameras, pictures, strict=True)
                }
                for key, values in track.observations.items():
                    observation[key] = torch.from_numpy(values[i].copy())
                action, is_pad = following_actions(track, i, chunk)
                yield Scene(
                    observation=observation,
                    action=torch.from_numpy(action),
                    action_is_pad=torch.from_numpy(is_pad),
                    episode=episode.index,
                    frame=i,
                    labels={name: float(values[i]) for name, values in track.labels.items()},
                    source=self.name,
                )


def following_actions(track: Track, frame: int, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    """The training target at a frame: `chunk joint` actions, and where (`chunk`) they are padding.

    Beyond the episode's end the last action is repeated, as LeRobot does.
    """
    wanted = np.arange(chunk) + max(0, frame - track.action_lead)
    last = len(track.action) - 1
    return track.action[np.minimum(wanted, last)], wanted > last


def open_dataset(source: str | Path, *, revision: str | None = None) -> Dataset:
    """The dataset of a bundled name, a local folder, or a Hugging Face repository id.

    Raises:
        SceneError: if nothing is found under that name, or if what is found is not a dataset of
            LeRobot (v2.0, v2.1, v3.0) or of the original ACT (HDF5).
        UnsafeFileError: if the dataset's files point out of its folder.
    """
    root = dataset_folder(source, revision=revision)
    is_folder = root == Path(source).expanduser()
    name = clean_text(root.resolve().name if is_folder else source)
    if (root / "meta" / "info.json").is_file():
        return _lerobot(root, name)
    if any(EPISODE_FILE.fullmatch(path.name) for path in root.iterdir()):
        return _original_act(root, name)
    raise SceneError(
        f"{root} is no dataset: there is neither meta/info.json (LeRobot 2.0 and later) nor an "
        "episode_N.hdf5 (original ACT) in it."
    )


def _lerobot(root: Path, name: str) -> Dataset:
    files = open_lerobot(root)
    return Dataset(
        name=name,
        path=root,
        layout=f"LeRobot {files.version}",
        fps=files.fps,
        cameras=files.features.cameras,
        state_names=files.features.observations.get(STATE_KEY, ()),
        action_names=files.features.action,
        label_names=tuple(n for names in files.features.labels.values() for n in names),
        episodes=files.episodes,
        reader=files.reader,
    )


def _original_act(root: Path, name: str) -> Dataset:
    files = open_act(root)
    return Dataset(
        name=name,
        path=root,
        layout="original ACT",
        fps=FPS,
        cameras=files.cameras,
        state_names=files.state_names,
        action_names=files.action_names,
        label_names=(),
        episodes=files.episodes,
        reader=files.reader,
    )


def _chosen(frames: slice | Sequence[int], episode: Episode) -> list[int]:
    """The frame indices of one episode, ascending, each once."""
    if isinstance(frames, slice):
        return sorted(range(episode.length)[frames])
    for frame in frames:
        if not 0 <= frame < episode.length:
            raise SceneError(
                f"Episode {episode.index} has no frame {frame}; it has 0..{episode.length - 1}."
            )
    return sorted(set(frames))


def _together(streams: Sequence[Iterator[np.ndarray]], n: int) -> Iterator[tuple[np.ndarray, ...]]:
    """One picture of every camera at a time; `n` empty tuples where there is no camera."""
    return zip(*streams, strict=True) if streams else iter([()] * n)
