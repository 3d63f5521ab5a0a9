"""The original ACT's demonstrations: a folder of `episode_N.hdf5` (ALOHA, act, act-plus-plus)."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from actlens.config import IMAGE_PREFIX, STATE_KEY, Camera
from actlens.errors import SceneError, UnsafeFileError
from actlens.scenes.episode import Episode, Track
from actlens.scenes.features import MAX_DIM, MAX_SIDE
from actlens.scenes.pictures import decode_picture, picture_size
from actlens.scenes.untrusted import Folder, checked_key
from actlens.text import clean_text

if TYPE_CHECKING:
    import h5py

FPS = 50.0
"""The files record no rate; `DT = 0.02` is a constant of both original code bases."""

EPISODE_FILE = re.compile(r"episode_(\d+)\.hdf5")

MAX_FRAMES = 1_000_000

_QPOS = "observations/qpos"
_IMAGES = "observations/images"
_ACTION = "action"
_BASE_ACTION = "base_action"


class ActFiles(NamedTuple):
    """An opened folder: its description and the reader of its episodes."""

    cameras: tuple[Camera, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    episodes: tuple[Episode, ...]
    reader: "ActReader"


def open_act(root: Path) -> ActFiles:
    """The description of a folder of the original ACT's episodes, cameras in alphabetical order.

    Raises:
        SceneError: if there is no episode, or one whose shapes differ from the first one's.
        UnsafeFileError: if a file links to data outside itself.
    """
    numbers = {int(m[1]): p.name for p in root.iterdir() if (m := EPISODE_FILE.fullmatch(p.name))}
    if not numbers:
        raise SceneError(f"{root} holds no episode_N.hdf5.")
    reader = ActReader(Folder(root), numbers)
    shapes = {number: reader.shape(number) for number in sorted(numbers)}
    first = min(shapes)
    for number, shape in shapes.items():
        if shape[1:] != shapes[first][1:]:
            raise SceneError(
                f"{root / numbers[number]} has {shape[1:]}, unlike {numbers[first]} with "
                f"{shapes[first][1:]}: cameras and dimensions must agree."
            )
    _, state_dim, arm_dim, base_dim, cameras = shapes[first]
    return ActFiles(
        cameras,
        tuple(f"joint_{i}" for i in range(state_dim)),
        tuple(f"joint_{i}" for i in range(arm_dim)) + tuple(f"base_{i}" for i in range(base_dim)),
        tuple(Episode(number, shape.length) for number, shape in shapes.items()),
        reader,
    )


class EpisodeShape(NamedTuple):
    """What one file holds, without reading its values."""

    length: int
    state_dim: int
    arm_dim: int
    base_dim: int
    cameras: tuple[Camera, ...]


@dataclass(frozen=True)
class ActReader:
    """The files of one folder: episode number -> file name."""

    folder: Folder
    files: dict[int, str]

    def shape(self, number: int) -> EpisodeShape:
        """Sizes of an episode's data.

        Raises:
            SceneError: if something is missing, or the lengths of the parts contradict each other.
            UnsafeFileError: if a part lies outside the file.
        """
        with self._open(number) as file:
            state, action = _numbers(file, _QPOS), _numbers(file, _ACTION)
            base = _numbers(file, _BASE_ACTION) if _has_base(file) else None
            names = sorted(_group(file, _IMAGES))
            parts = {_QPOS: state, _ACTION: action, _BASE_ACTION: base}
            parts |= {f"{_IMAGES}/{name}": _member(file, f"{_IMAGES}/{name}") for name in names}
            lengths = {name: part.shape[0] for name, part in parts.items() if part is not None}
            if len(set(lengths.values())) != 1 or not 1 <= action.shape[0] <= MAX_FRAMES:
                raise SceneError(f"{file.filename}: its parts have the lengths {lengths}.")
            cameras = tuple(_camera(file, name) for name in names)
            return EpisodeShape(
                action.shape[0],
                state.shape[1],
                action.shape[1],
                0 if base is None else base.shape[1],
                cameras,
            )

    def track(self, episode: Episode) -> Track:
        """The episode's joint positions and actions.

        Real-robot files (attribute `sim` false or absent) have `action_lead` 1. The base's
        velocities of act-plus-plus are smoothed over five steps and appended, as its loader does.

        Raises:
            SceneError: if values are not finite or the file is damaged.
        """
        with self._open(episode.index) as file:
            action = _finite(_numbers(file, _ACTION))
            if _has_base(file):
                base = _smoothed(_finite(_numbers(file, _BASE_ACTION)))
                action = np.concatenate([action, base], axis=1)
            return Track(
                action=action,
                observations={STATE_KEY: _finite(_numbers(file, _QPOS))},
                action_lead=0 if bool(file.attrs.get("sim", False)) else 1,
            )

    def images(
        self, episode: Episode, camera: Camera, frames: Sequence[int]
    ) -> Iterator[UInt8[np.ndarray, "3 h w"]]:
        """The camera's pictures at ascending frame indices.

        Compressed pictures come out with the channels that `cv2.imdecode` gives, which is what
        act-plus-plus trains on: red and blue are exchanged against other viewers' decoding.

        Raises:
            SceneError: while iterating, if a picture is damaged or has another size.
        """
        size = {"height": camera.height, "width": camera.width}
        with self._open(episode.index) as file:
            rows = _member(file, f"{_IMAGES}/{camera.key.removeprefix(IMAGE_PREFIX)}")
            for frame in frames:
                where = f"{file.filename}, frame {frame}, {camera.key},"
                if _is_compressed(file):
                    yield decode_picture(rows[frame].tobytes(), **size, where=where)[::-1]
                else:
                    yield rows[frame].transpose(2, 0, 1)

    @contextmanager
    def _open(self, number: int) -> Iterator["h5py.File"]:
        import h5py

        path = self.folder.file(self.files[number])
        try:
            with h5py.File(path, "r") as file:
                yield file
        except (SceneError, UnsafeFileError):
            raise
        except (OSError, RuntimeError, ValueError, TypeError, KeyError, MemoryError) as problem:
            raise SceneError(
                f"{path} cannot be read as an ACT episode: {clean_text(problem)}."
            ) from problem


def _member(file: "h5py.File", name: str) -> "h5py.Dataset":
    """A data set inside the file, reached by hard links only and stored in the file itself."""
    import h5py

    node = _group(file, name.rpartition("/")[0])
    node = _child(node, name.rpartition("/")[2], file)
    if not isinstance(node, h5py.Dataset):
        raise SceneError(f"{file.filename}: {clean_text(name)} is no array.")
    if node.external or node.is_virtual:
        raise UnsafeFileError(
            f"{file.filename}: {clean_text(name)} keeps its data in other files; it was not read."
        )
    return node


def _group(file: "h5py.File", name: str) -> "h5py.Group":
    import h5py

    node: h5py.Group = file
    for part in filter(None, name.split("/")):
        child = _child(node, part, file)
        if not isinstance(child, h5py.Group):
            raise SceneError(f"{file.filename}: {clean_text(name)} is no group.")
        node = child
    return node


def _child(group: "h5py.Group", name: str, file: "h5py.File") -> object:
    import h5py

    link = group.get(name, getlink=True)
    where = f"{file.filename}: {clean_text(group.name)}/{clean_text(name)}".replace("//", "/")
    if link is None:
        raise SceneError(f"{where} is missing; it is part of every ACT episode.")
    if not isinstance(link, h5py.HardLink):
        raise UnsafeFileError(f"{where} is a link to somewhere else; it was not followed.")
    return group[name]


def _numbers(file: "h5py.File", name: str) -> "h5py.Dataset":
    node = _member(file, name)
    if node.ndim != 2 or node.dtype.kind != "f" or not 1 <= node.shape[1] <= MAX_DIM:
        raise SceneError(
            f"{file.filename}: {name} has shape {node.shape} and type {node.dtype}; float vectors, "
            "one a frame, were expected."
        )
    return node


def _finite(node: "h5py.Dataset") -> Float32[np.ndarray, "frame joint"]:
    values = node[()].astype(np.float32)
    if not np.isfinite(values).all():
        raise SceneError(f"{node.file.filename}: {node.name} holds values that are not finite.")
    return values


def _smoothed(base: Float32[np.ndarray, "frame dim"]) -> Float32[np.ndarray, "frame dim"]:
    if len(base) < 5:
        raise SceneError("A mobile base's actions need at least five frames to be smoothed.")
    columns = [np.convolve(column, np.ones(5) / 5, mode="same") for column in base.T]
    return np.stack(columns, axis=-1).astype(np.float32)


def _has_base(file: "h5py.File") -> bool:
    # Asked of the link and not by `in`, which would open the file that an external link names.
    return file.get(_BASE_ACTION, getlink=True) is not None


def _is_compressed(file: "h5py.File") -> bool:
    return bool(file.attrs.get("compress", False))


def _camera(file: "h5py.File", name: str) -> Camera:
    rows = _member(file, f"{_IMAGES}/{name}")
    key = checked_key(IMAGE_PREFIX + name, where=Path(file.filename))
    if rows.dtype != np.uint8 or rows.ndim != (2 if _is_compressed(file) else 4):
        raise SceneError(f"{file.filename}: {key} has shape {rows.shape} and type {rows.dtype}.")
    if _is_compressed(file):
        height, width = picture_size(rows[0].tobytes(), where=f"{file.filename}, {key},")
    else:
        height, width, channels = rows.shape[1:]
        if channels != 3:
            raise SceneError(f"{file.filename}: {key} has {channels} channels, 3 were expected.")
    if max(height, width) > MAX_SIDE:
        raise SceneError(f"{file.filename}: {key} is {height}x{width}, above {MAX_SIDE}.")
    return Camera(key, height, width)
