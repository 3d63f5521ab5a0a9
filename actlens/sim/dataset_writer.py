"""Writes demonstrations as a LeRobotDataset v3.0 folder, one finished episode at a time.

Finished episodes wait in `.recording/` inside the folder; `finish` joins them into the final files
and removes it. An episode's staged files depend on that episode alone, so a recording that was
interrupted and resumed ends in the same bytes as one that was not.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actlens.sim import feature_statistics, video
from actlens.sim.kinematics import JOINTS

STAGING = ".recording"
CUBE = ("x", "y", "z", "yaw")
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
_FIRST_FILE = {"chunk_index": 0, "file_index": 0}


@dataclass(frozen=True)
class Episode:
    """One demonstration; the arrays share their first axis, time."""

    state: np.ndarray
    """Joint positions before each action, float32 `(time, 6)`, degrees and gripper percent."""
    action: np.ndarray
    """The demonstrator's joint targets, float32 `(time, 6)`, in the same units."""
    cube: np.ndarray
    """The cube's x, y, z in metres and yaw in radians before each action, float32 `(time, 4)`."""
    pictures: Mapping[str, np.ndarray]
    """LeRobot's image key -> uint8 `(time, height, width, 3)`."""
    region: str
    """The part of the table in which the cube started."""
    seed: int
    """With the cube's first position, what reproduces the start: `PickCube.reset(seed=…)`."""

    def __len__(self) -> int:
        return len(self.state)


@dataclass(frozen=True)
class DatasetFacts:
    """What is the same for all episodes of a dataset."""

    task: str
    robot_type: str
    fps: int
    video: video.VideoSettings
    card: str
    """The README, in Markdown."""
    provenance: Mapping[str, object]
    """How the dataset came to be, for `meta/actlens.json`; JSON values."""


def staged_episodes(folder: Path) -> int:
    """How many finished episodes wait in the folder's staging area, counted from episode 0."""
    count = 0
    while _staged(folder, count).is_dir():
        count += 1
    return count


def stage(folder: Path, index: int, episode: Episode, facts: DatasetFacts) -> None:
    """Stores a finished episode in the staging area; it appears there complete or not at all."""
    place = _staged(folder, index)
    unfinished = place.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    histograms = {}
    for key, pictures in episode.pictures.items():
        path = unfinished / f"{key}.mp4"
        video.encode(path, pictures, fps=facts.fps, settings=facts.video)
        # Of the decoded pictures: those are what a policy is trained on.
        histograms[f"histogram/{key}"] = feature_statistics.histogram(video.decode(path))
    shape = next(iter(episode.pictures.values())).shape[1:]
    arrays = {
        "state": episode.state,
        "action": episode.action,
        "cube": episode.cube,
        "region": np.array(episode.region),
        "seed": np.array(episode.seed),
        "shape": np.array(shape),
    }
    np.savez(unfinished / "arrays.npz", allow_pickle=False, **arrays, **histograms)
    unfinished.rename(place)


def finish(folder: Path, facts: DatasetFacts) -> None:
    """Joins the staged episodes into the dataset's final files and clears the staging area."""
    count = staged_episodes(folder)
    if count == 0:
        raise ValueError(f"{folder} holds no staged episode to make a dataset of.")
    staged = [_load(_staged(folder, index)) for index in range(count)]
    cameras = [key.removeprefix("histogram/") for key in staged[0] if key.startswith("histogram/")]
    lengths = [len(episode["state"]) for episode in staged]
    for camera in cameras:
        path = folder / VIDEO_PATH.format(video_key=camera, **_FIRST_FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = [_staged(folder, index) / f"{camera}.mp4" for index in range(count)]
        video.join(path, parts, lengths=lengths, fps=facts.fps)

    columns = _columns(staged, lengths, facts.fps)
    _write_parquet(folder / DATA_PATH.format(**_FIRST_FILE), _data_table(columns))
    _write_parquet(
        folder / _EPISODES_PATH, _episode_table(staged, columns, lengths, cameras, facts)
    )
    _write_parquet(folder / "meta/tasks.parquet", _task_table([facts.task]))
    overall = {key: feature_statistics.of_vectors(values) for key, values in columns.items()}
    for camera in cameras:
        counts = np.sum([episode[f"histogram/{camera}"] for episode in staged], axis=0)
        overall[camera] = feature_statistics.of_histogram(counts, sum(lengths))
    _write_json(
        folder / "meta/stats.json",
        {
            key: {name: value.tolist() for name, value in found.items()}
            for key, found in overall.items()
        },
    )
    _write_json(folder / "meta/info.json", _info(staged, lengths, cameras, facts))
    _write_json(folder / "meta/actlens.json", dict(facts.provenance))
    (folder / "README.md").write_text(facts.card, encoding="utf-8")
    # A rename is atomic and a removal is not: an interrupted one must not look like a recording.
    shutil.rmtree((folder / STAGING).rename(folder / f"{STAGING}.finished"))


def _staged(folder: Path, index: int) -> Path:
    return folder / STAGING / f"episode-{index:06d}"


def _load(place: Path) -> dict[str, np.ndarray]:
    with np.load(place / "arrays.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def _columns(
    staged: Sequence[Mapping[str, np.ndarray]], lengths: Sequence[int], fps: int
) -> dict[str, np.ndarray]:
    """The per-frame columns, in the order of the features."""
    frame = np.concatenate([np.arange(length) for length in lengths])
    return {
        "observation.state": np.concatenate([episode["state"] for episode in staged]),
        "action": np.concatenate([episode["action"] for episode in staged]),
        "label.cube": np.concatenate([episode["cube"] for episode in staged]),
        "timestamp": (frame / fps).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.repeat(np.arange(len(lengths)), lengths),
        "index": np.arange(len(frame)),
        "task_index": np.zeros(len(frame), dtype=np.int64),
    }


def _data_table(columns: Mapping[str, np.ndarray]) -> pa.Table:
    return pa.table({key: _arrow(values) for key, values in columns.items()})


def _arrow(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _episode_table(
    staged: Sequence[Mapping[str, np.ndarray]],
    columns: Mapping[str, np.ndarray],
    lengths: Sequence[int],
    cameras: Sequence[str],
    facts: DatasetFacts,
) -> pa.Table:
    rows = []
    start = 0
    for index, (episode, length) in enumerate(zip(staged, lengths, strict=True)):
        row: dict[str, object] = {
            "episode_index": index,
            "tasks": [facts.task],
            "length": length,
            "data/chunk_index": 0,
            "data/file_index": 0,
            "dataset_from_index": start,
            "dataset_to_index": start + length,
        }
        for camera in cameras:
            row[f"videos/{camera}/chunk_index"] = 0
            row[f"videos/{camera}/file_index"] = 0
            row[f"videos/{camera}/from_timestamp"] = start / facts.fps
            row[f"videos/{camera}/to_timestamp"] = (start + length) / facts.fps
        row["meta/episodes/chunk_index"] = 0
        row["meta/episodes/file_index"] = 0
        row["region"] = str(episode["region"])
        row["seed"] = int(episode["seed"])
        found = {
            key: feature_statistics.of_vectors(values[start : start + length])
            for key, values in columns.items()
        }
        for camera in cameras:
            found[camera] = feature_statistics.of_histogram(episode[f"histogram/{camera}"], length)
        for key, figures in found.items():
            for name, value in figures.items():
                row[f"stats/{key}/{name}"] = value.tolist()
        rows.append(row)
        start += length
    return pa.Table.from_pylist(rows)


def _task_table(tasks: Sequence[str]) -> pa.Table:
    """Tasks as pandas stores a frame indexed by them: LeRobot reads the index, not a column."""
    index = "__index_level_0__"
    pandas = {
        "index_columns": [index],
        "column_indexes": [],
        "columns": [
            {
                "name": "task_index",
                "field_name": "task_index",
                "pandas_type": "int64",
                "numpy_type": "int64",
                "metadata": None,
            },
            {
                "name": None,
                "field_name": index,
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": None,
            },
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), index: list(tasks)})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _info(
    staged: Sequence[Mapping[str, np.ndarray]],
    lengths: Sequence[int],
    cameras: Sequence[str],
    facts: DatasetFacts,
) -> dict:
    height, width, _ = (int(size) for size in staged[0]["shape"])
    vector = {"dtype": "float32", "shape": [len(JOINTS)], "names": list(JOINTS)}
    features: dict[str, dict] = {
        "observation.state": vector,
        "action": vector,
        "label.cube": {"dtype": "float32", "shape": [len(CUBE)], "names": list(CUBE)},
    }
    for camera in cameras:
        features[camera] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height,
                "video.width": width,
                "video.codec": "h264",
                "video.pix_fmt": facts.video.pixel_format,
                "video.is_depth_map": False,
                "video.fps": facts.fps,
                "video.channels": 3,
                "has_audio": False,
            },
        }
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for key in ("frame_index", "episode_index", "index", "task_index"):
        features[key] = {"dtype": "int64", "shape": [1], "names": None}
    return {
        "codebase_version": "v3.0",
        "robot_type": facts.robot_type,
        "total_episodes": len(staged),
        "total_frames": sum(lengths),
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": facts.fps,
        "splits": {"train": f"0:{len(staged)}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
        "features": features,
    }


def _write_parquet(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Grouping the floats' bytes by significance halves the file; every Parquet reader knows it.
    floats = [
        f"{field.name}.list.element"
        for field in table.schema
        if pa.types.is_fixed_size_list(field.type) and pa.types.is_float32(field.type.value_type)
    ]
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=False,
        use_byte_stream_split=floats,
    )


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
