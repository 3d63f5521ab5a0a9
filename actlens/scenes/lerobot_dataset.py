"""LeRobotDataset folders of the versions 2.0, 2.1 and 3.0, read without LeRobot."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeGuard

import numpy as np
from jaxtyping import UInt8

from actlens.config import ACTION_KEY, Camera
from actlens.errors import SceneError
from actlens.scenes.episode import Episode, Track
from actlens.scenes.features import LABEL_PREFIX, Features, read_features
from actlens.scenes.pictures import decode_picture
from actlens.scenes.tables import Rows, read_pictures, read_records, read_rows
from actlens.scenes.untrusted import Folder, fill_template, read_json
from actlens.scenes.video import TOLERANCE_S, decode_frames
from actlens.text import clean_text

INFO = "meta/info.json"


@dataclass(frozen=True)
class Segment:
    """The part of a video file that shows one episode; times in seconds in the file."""

    file: str
    start: float = 0.0
    end: float = math.inf


@dataclass(frozen=True)
class Place:
    """Where one episode lies: paths relative to the dataset's folder."""

    table: str
    videos: Mapping[str, Segment]


class LeRobotFiles(NamedTuple):
    """An opened folder: its description and the reader of its episodes."""

    version: str
    fps: float
    features: Features
    episodes: tuple[Episode, ...]
    reader: "LeRobotReader"


def open_lerobot(root: Path) -> LeRobotFiles:
    """The description of a LeRobotDataset folder; tables and videos are read later, on demand.

    Raises:
        SceneError: if the metadata is incomplete, malformed, or of a version before 2.0.
        UnsafeFileError: if a path template or a path leaves the folder.
    """
    folder = Folder(root)
    info_path = folder.file(INFO)
    info = read_json(info_path)
    version = clean_text(info.get("codebase_version"))
    features = read_features(info.get("features"), where=info_path)
    fps = _number(info, "fps", info_path)
    if not 0 < fps <= 1000:
        raise SceneError(f"{info_path}: fps must lie in 0..1000, got {fps}.")
    if version.startswith("v3."):
        described = _episodes_v3(folder, info, features)
    elif version in ("v2.0", "v2.1"):
        described = _episodes_v2(folder, info, features)
    else:
        raise SceneError(
            f"{info_path} has the version {version}; actlens reads v2.0, v2.1 and v3.x. LeRobot's "
            "conversion scripts bring older datasets to v2.1 and further."
        )
    places = {episode.index: place for episode, place in described}
    if len(places) < len(described):
        raise SceneError(f"{root}: the metadata describes an episode index more than once.")
    episodes = tuple(sorted((episode for episode, _ in described), key=lambda e: e.index))
    return LeRobotFiles(version, fps, features, episodes, LeRobotReader(folder, features, places))


class LeRobotReader:
    """Tables, pictures and videos of a LeRobotDataset, one table file held in memory at a time."""

    def __init__(self, folder: Folder, features: Features, places: Mapping[int, Place]) -> None:
        self._folder = folder
        self._features = features
        self._places = places
        self._latest: tuple[str, Rows] | None = None

    def track(self, episode: Episode) -> Track:
        """The episode's vectors and labels.

        Raises:
            SceneError: if the table does not hold the episode's frames, in order and whole.
        """
        rows = self._rows(episode)
        features = self._features
        return Track(
            action=rows[ACTION_KEY],
            observations={key: rows[key] for key in features.observations},
            labels={
                name: rows[key][:, i]
                for key, names in features.labels.items()
                for i, name in enumerate(names)
            },
        )

    def images(
        self, episode: Episode, camera: Camera, frames: Sequence[int]
    ) -> Iterator[UInt8[np.ndarray, "3 h w"]]:
        """The camera's pictures at ascending frame indices.

        Raises:
            SceneError: while iterating, if a picture is missing, damaged or of another size.
            UnsafeFileError: if a picture's path leaves the folder.
        """
        if camera.key in self._features.video_keys:
            return self._from_video(episode, camera, frames)
        return self._from_table(episode, camera, frames)

    def _from_video(
        self, episode: Episode, camera: Camera, frames: Sequence[int]
    ) -> Iterator[UInt8[np.ndarray, "3 h w"]]:
        segment = self._places[episode.index].videos[camera.key]
        path = self._folder.file(segment.file)
        times = [segment.start + float(t) for t in self._rows(episode)["timestamp"][list(frames)]]
        if times and times[-1] >= segment.end + TOLERANCE_S:
            raise SceneError(
                f"{path}: episode {episode.index} has a frame at {times[-1]:.4f} s, but its part "
                f"of the file ends at {segment.end:.4f} s; the metadata contradicts the table."
            )
        return decode_frames(path, times, height=camera.height, width=camera.width)

    def _from_table(
        self, episode: Episode, camera: Camera, frames: Sequence[int]
    ) -> Iterator[UInt8[np.ndarray, "3 h w"]]:
        path = self._folder.file(self._places[episode.index].table)
        pictures = read_pictures(path, camera.key, episode=episode.index)
        if len(pictures) != episode.length:
            raise SceneError(
                f"{path} has {len(pictures)} pictures {camera.key} of episode {episode.index}, the "
                f"metadata promises {episode.length}."
            )
        for frame in frames:
            content = self._picture_bytes(pictures[frame], path)
            where = f"{path}, episode {episode.index}, frame {frame}, {camera.key},"
            yield decode_picture(content, height=camera.height, width=camera.width, where=where)

    def _picture_bytes(self, picture: Mapping[str, object] | None, path: Path) -> bytes:
        content, name = (picture or {}).get("bytes"), (picture or {}).get("path")
        if isinstance(content, bytes):
            return content
        if not isinstance(name, str):
            raise SceneError(f"{path} has a picture with neither bytes nor a path.")
        return self._folder.file(name).read_bytes()

    def _rows(self, episode: Episode) -> Rows:
        """The episode's rows, checked against the metadata."""
        table = self._places[episode.index].table
        path = self._folder.file(table)
        if self._latest is None or self._latest[0] != table:
            rows = read_rows(
                path,
                scalars=("episode_index", "frame_index", "timestamp"),
                vectors=self._features.vectors,
            )
            self._latest = table, rows
        rows = self._latest[1]
        own = np.flatnonzero(rows["episode_index"] == episode.index)
        if len(own) != episode.length:
            raise SceneError(
                f"{path} holds {len(own)} frames of episode {episode.index}, the metadata promises "
                f"{episode.length}."
            )
        selected = {column: values[own] for column, values in rows.items()}
        if not np.array_equal(selected["frame_index"], np.arange(episode.length)):
            raise SceneError(f"{path}: the frames of episode {episode.index} are not in order.")
        if not np.isfinite(selected["timestamp"]).all():
            raise SceneError(f"{path}: episode {episode.index} has times that are not numbers.")
        return selected


def _episodes_v3(
    folder: Folder, info: Mapping[str, object], features: Features
) -> list[tuple[Episode, Place]]:
    """Many episodes share a table and a video; `meta/episodes` says which and from when."""
    info_path = folder.root / INFO
    files = sorted((folder.root / "meta/episodes").glob("*/*.parquet"))
    if not files:
        raise SceneError(f"{folder.root} has no meta/episodes/*/*.parquet: not a whole v3 dataset.")
    described: list[tuple[Episode, Place]] = []
    for file in files:
        path = folder.file(file.relative_to(folder.root).as_posix())
        for row in read_records(path, skip="stats/"):
            table = fill_template(
                info.get("data_path"), _file_fields(row, "data", path), where=info_path
            )
            videos = {}
            for key in features.video_keys:
                fields = _file_fields(row, f"videos/{key}", path) | {"video_key": key}
                videos[key] = Segment(
                    fill_template(info.get("video_path"), fields, where=info_path),
                    _number(row, f"videos/{key}/from_timestamp", path),
                    _number(row, f"videos/{key}/to_timestamp", path),
                )
            described.append((_episode(row, path), Place(table, videos)))
    return described


def _episodes_v2(
    folder: Folder, info: Mapping[str, object], features: Features
) -> list[tuple[Episode, Place]]:
    """Every episode has a table and videos of its own; `meta/episodes.jsonl` lists them."""
    info_path = folder.root / INFO
    path = folder.file("meta/episodes.jsonl")
    chunk_size = _integer(info, "chunks_size", info_path)
    if chunk_size < 1:
        raise SceneError(f"{info_path}: chunks_size must be positive, got {chunk_size}.")
    described: list[tuple[Episode, Place]] = []
    for row in _json_lines(path):
        episode = _episode(row, path)
        fields = {"episode_chunk": episode.index // chunk_size, "episode_index": episode.index}
        table = fill_template(info.get("data_path"), fields, where=info_path)
        videos = {
            key: Segment(
                fill_template(info.get("video_path"), fields | {"video_key": key}, where=info_path)
            )
            for key in features.video_keys
        }
        described.append((episode, Place(table, videos)))
    return described


def _json_lines(path: Path) -> list[Mapping[str, object]]:
    rows: list[Mapping[str, object]] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                rows.append(json.loads(line))
    except (OSError, ValueError, RecursionError) as problem:
        raise SceneError(
            f"{path} cannot be read as JSON lines: {clean_text(problem)}."
        ) from problem
    if not all(isinstance(row, dict) for row in rows):
        raise SceneError(f"{path} must hold one JSON object a line.")
    return rows


def _episode(row: Mapping[str, object], where: Path) -> Episode:
    index, length = _integer(row, "episode_index", where), _integer(row, "length", where)
    if length < 1:
        raise SceneError(f"{where}: episode {index} has {length} frames.")
    tasks = row.get("tasks")
    named = tasks if isinstance(tasks, list) else []
    labels: dict[str, float | str] = {}
    for key, value in row.items():
        if key == "region" or key.startswith(LABEL_PREFIX):
            name = clean_text(key.removeprefix(LABEL_PREFIX))
            if isinstance(value, str):
                labels[name] = clean_text(value)
            elif _is_number(value):
                labels[name] = float(value)
    return Episode(index, length, clean_text("; ".join(map(str, named))), labels)


def _file_fields(row: Mapping[str, object], prefix: str, where: Path) -> dict[str, int | str]:
    return {
        name: _integer(row, f"{prefix}/{name}", where) for name in ("chunk_index", "file_index")
    }


def _integer(row: Mapping[str, object], key: str, where: Path) -> int:
    value = row.get(key)
    if type(value) is float and value.is_integer():
        # A column of integers with gaps comes out of pandas as floats.
        value = int(value)
    if type(value) is not int or not 0 <= value < 2**53:
        raise SceneError(f"{where}: {key} must be a natural number, got {clean_text(value)}.")
    return value


def _is_number(value: object) -> TypeGuard[int | float]:
    # Compared and not asked for finiteness: JSON's integers may be too long for that.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _number(row: Mapping[str, object], key: str, where: Path) -> float:
    value = row.get(key)
    if not _is_number(value):
        raise SceneError(f"{where}: {key} must be a finite number, got {clean_text(value)}.")
    return float(value)
