"""What each column of a LeRobotDataset means, read from `info.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from actlens.config import ACTION_KEY, Camera
from actlens.errors import SceneError
from actlens.scenes.untrusted import checked_key
from actlens.text import clean_text

LABEL_PREFIX = "label."
OBSERVATION_PREFIX = "observation."

MAX_SIDE = 8192
MAX_DIM = 4096


@dataclass(frozen=True)
class Features:
    """The columns that concern a scene; all others are left alone."""

    cameras: tuple[Camera, ...]
    """RGB streams in the order of `info.json`; depth and other streams are left out."""
    video_keys: frozenset[str]
    """The cameras stored as videos; the rest are pictures inside the tables."""
    observations: Mapping[str, tuple[str, ...]]
    """Vectors `observation.…` -> names of their dimensions."""
    action: tuple[str, ...]
    """Names of the action's dimensions."""
    labels: Mapping[str, tuple[str, ...]]
    """Columns `label.…` -> the labels that their dimensions become."""

    @property
    def vectors(self) -> dict[str, int]:
        """Every column that holds numbers -> its dimension."""
        named = {ACTION_KEY: self.action, **self.observations, **self.labels}
        return {key: len(names) for key, names in named.items()}


def read_features(features: object, *, where: Path) -> Features:
    """The columns that `info.json` declares under `features`.

    Raises:
        SceneError: if the declaration is malformed or has no `action`.
    """
    if not isinstance(features, dict):
        raise SceneError(f"{where} declares no features.")
    cameras: list[Camera] = []
    videos: set[str] = set()
    observations: dict[str, tuple[str, ...]] = {}
    labels: dict[str, tuple[str, ...]] = {}
    action: tuple[str, ...] = ()
    for key, feature in features.items():
        key = checked_key(key, where=where)
        shape = _shape(feature, key, where)
        dtype = feature.get("dtype")
        if dtype in ("video", "image"):
            height, width, channels = _image_shape(feature, shape, key, where)
            if channels != 3:
                continue
            cameras.append(Camera(key, height, width))
            if dtype == "video":
                videos.add(key)
        elif dtype not in ("float32", "float64") or len(shape) != 1:
            continue
        elif key == ACTION_KEY:
            action = _names(feature.get("names"), shape[0])
        elif key.startswith(OBSERVATION_PREFIX):
            observations[key] = _names(feature.get("names"), shape[0])
        elif key.startswith(LABEL_PREFIX):
            labels[key] = _label_names(key.removeprefix(LABEL_PREFIX), feature, shape[0])
    if not action:
        raise SceneError(f"{where} declares no float vector `{ACTION_KEY}`, which ACT predicts.")
    return Features(tuple(cameras), frozenset(videos), observations, action, labels)


def _shape(feature: object, key: str, where: Path) -> tuple[int, ...]:
    shape = feature.get("shape") if isinstance(feature, dict) else None
    if not isinstance(shape, list) or not all(type(n) is int and n >= 1 for n in shape):
        raise SceneError(f"{where}: the feature {key} has the shape {clean_text(shape)}.")
    limit = MAX_SIDE if len(shape) == 3 else MAX_DIM
    # Only shapes that will be used are bounded: the sizes of other columns cost nothing.
    if len(shape) in (1, 3) and max(shape) > limit:
        raise SceneError(f"{where}: the feature {key} has the shape {shape}, above {limit}.")
    return tuple(shape)


def _image_shape(
    feature: Mapping[str, object], shape: tuple[int, ...], key: str, where: Path
) -> tuple[int, int, int]:
    """Height, width and channels, in whichever order the feature names them."""
    names = feature.get("names")
    if len(shape) != 3:
        raise SceneError(f"{where}: the images {key} have the shape {shape}, not three axes.")
    first_is_channel = (
        isinstance(names, list) and len(names) == 3 and str(names[0]).startswith("channel")
    )
    if first_is_channel:
        return shape[1], shape[2], shape[0]
    return shape[0], shape[1], shape[2]


def _names(names: object, dim: int) -> tuple[str, ...]:
    """Names of a vector's dimensions, however the dataset's version nests them."""
    if isinstance(names, dict):
        # LeRobot 2 wrote {"motors": [names]}; some converters {name: index}.
        lists = [value for value in names.values() if isinstance(value, list)]
        names = lists[0] if len(names) == len(lists) == 1 else list(names)
    if not isinstance(names, list) or len(names) != dim:
        return tuple(f"joint_{i}" for i in range(dim))
    return tuple(clean_text(name) for name in names)


def _label_names(stem: str, feature: Mapping[str, object], dim: int) -> tuple[str, ...]:
    """`label.cube` with the names x, y -> cube_x, cube_y; a single number keeps the stem."""
    stem = stem.replace(".", "_")
    names = feature.get("names")
    if isinstance(names, list) and len(names) == dim:
        return tuple(f"{stem}_{clean_text(name)}" for name in names)
    return (stem,) if dim == 1 else tuple(f"{stem}_{i}" for i in range(dim))
