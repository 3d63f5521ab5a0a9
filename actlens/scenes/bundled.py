"""Scene pairs in one parquet file: PNG pictures, numbers and labels, exact in both directions.

A row is a scene; scenes that several pairs share are stored once. The file's metadata say, as JSON
under the key `actlens.pairs`, which rows make which pair and which shape each observation has.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from actlens.errors import SceneError
from actlens.scene import Scene, ScenePair
from actlens.scenes.features import MAX_DIM, MAX_SIDE
from actlens.scenes.hub import BUNDLED
from actlens.scenes.pictures import decode_picture, encode_png
from actlens.scenes.tables import reading
from actlens.scenes.untrusted import checked_key
from actlens.text import clean_text

if TYPE_CHECKING:
    import pyarrow as pa

Shapes = Mapping[str, Sequence[int]]
"""Observation key -> its shape: `3 h w` for pictures, one number for vectors."""

_HEADER = b"actlens.pairs"
_VERSION = 1
_MAX_SCENES = 100_000
_DONORS = ("unrelated_clean", "unrelated_corrupt")


def bundled_pairs() -> tuple[str, ...]:
    """Names of the sets of scene pairs that come with actlens."""
    return tuple(sorted(path.stem for path in BUNDLED.glob("scenes/*.parquet")))


def save_pairs(pairs: Sequence[ScenePair], path: str | Path) -> None:
    """Writes pairs to a parquet file, from which `load_pairs` gives back equal ones.

    Raises:
        SceneError: if there is no pair, if a scene's images are not uint8 or its numbers not
            float32, or if the scenes' observations differ in shape.
    """
    import pyarrow.parquet as pq

    scenes = {id(s): s for pair in pairs for s in _roles(pair).values() if s is not None}
    if not scenes:
        raise SceneError("There is no pair to save.")
    row_of = {identity: row for row, identity in enumerate(scenes)}
    shapes = _shapes(list(scenes.values()))
    header = {
        "version": _VERSION,
        "observations": shapes,
        "pairs": [
            {"differs_in": pair.differs_in}
            | {role: row_of.get(id(scene)) for role, scene in _roles(pair).items()}
            for pair in pairs
        ],
    }
    table = _table(list(scenes.values()), shapes).replace_schema_metadata(
        {_HEADER: json.dumps(header, ensure_ascii=False).encode()}
    )
    pq.write_table(table, Path(path), compression="zstd")


def load_pairs(source: str | Path) -> tuple[ScenePair, ...]:
    """The pairs of a file that `save_pairs` wrote, or of a bundled set's name.

    Raises:
        SceneError: if there is no such file or set, or if it does not hold what its header says.
    """
    import pyarrow.parquet as pq

    path = Path(source)
    if isinstance(source, str) and source in bundled_pairs():
        path = BUNDLED / "scenes" / f"{source}.parquet"
    if not path.is_file():
        raise SceneError(
            f"{clean_text(source)} is no file and none of the bundled sets of scenes: "
            f"{', '.join(bundled_pairs()) or 'none is bundled'}."
        )
    with reading(path):
        with pq.ParquetFile(path) as file:
            n_rows = file.metadata.num_rows
            header = (file.schema_arrow.metadata or {}).get(_HEADER)
            if header is None or n_rows > _MAX_SCENES:
                raise SceneError(f"{path} is no set of scene pairs of actlens.")
            pairs, shapes = _read_header(header, n_rows, path)
            if not file.schema_arrow.equals(_schema(shapes)):
                raise SceneError(f"{path} has other columns than its header says.")
            table = file.read()
        for name in set(table.column_names) - {"action", "action_is_pad"}:
            if table.column(name).null_count:
                raise SceneError(f"{path} has scenes without {name}.")
        columns = table.to_pydict()
        scenes = [_scene(columns, row, shapes, path) for row in range(n_rows)]
    return tuple(
        ScenePair(
            scenes[rows["clean"]],
            scenes[rows["corrupt"]],
            differs_in,
            *(scenes[rows[role]] if role in rows else None for role in _DONORS),
        )
        for differs_in, rows in pairs
    )


def _roles(pair: ScenePair) -> dict[str, Scene | None]:
    return {
        "clean": pair.clean,
        "corrupt": pair.corrupt,
        "unrelated_clean": pair.unrelated_clean,
        "unrelated_corrupt": pair.unrelated_corrupt,
    }


def _shapes(scenes: Sequence[Scene]) -> Shapes:
    """The observations' shapes, which all scenes must share."""
    shapes = {key: list(value.shape) for key, value in scenes[0].observation.items()}
    for scene in scenes:
        own = {key: list(value.shape) for key, value in scene.observation.items()}
        if own != shapes:
            raise SceneError(f"Scene {scene.address} has the observations {own}, not {shapes}.")
        for key, value in scene.observation.items():
            wanted = torch.uint8 if value.ndim == 3 else torch.float32
            if value.ndim not in (1, 3) or value.dtype != wanted:
                raise SceneError(
                    f"Scene {scene.address} has {key} as {value.dtype} of shape "
                    f"{tuple(value.shape)}; only uint8 `3 h w` and float32 vectors are stored "
                    "without loss."
                )
        if scene.action is not None and scene.action.dtype != torch.float32:
            raise SceneError(f"Scene {scene.address} has actions as {scene.action.dtype}.")
    return shapes


def _schema(shapes: Shapes) -> "pa.Schema":
    import pyarrow as pa

    observations = {
        key: pa.binary() if len(shape) == 3 else pa.list_(pa.float32())
        for key, shape in shapes.items()
    }
    return pa.schema(
        observations
        | {
            "action": pa.list_(pa.list_(pa.float32())),
            "action_is_pad": pa.list_(pa.bool_()),
            "episode": pa.int64(),
            "frame": pa.int64(),
            "labels": pa.map_(pa.string(), pa.float64()),
            "source": pa.string(),
        }
    )


def _table(scenes: Sequence[Scene], shapes: Shapes) -> "pa.Table":
    import pyarrow as pa

    columns: dict[str, list] = {
        key: [
            encode_png(value.numpy(force=True)) if len(shape) == 3 else value.tolist()
            for value in (scene.observation[key] for scene in scenes)
        ]
        for key, shape in shapes.items()
    }
    columns["action"] = [None if s.action is None else s.action.tolist() for s in scenes]
    columns["action_is_pad"] = [
        None if s.action_is_pad is None else s.action_is_pad.tolist() for s in scenes
    ]
    columns["episode"] = [s.episode for s in scenes]
    columns["frame"] = [s.frame for s in scenes]
    columns["labels"] = [list(s.labels.items()) for s in scenes]
    columns["source"] = [s.source for s in scenes]
    return pa.table(columns, schema=_schema(shapes))


def _read_header(
    header: bytes, n_rows: int, path: Path
) -> tuple[list[tuple[str, dict[str, int]]], dict[str, tuple[int, ...]]]:
    """For every pair what it differs in and role -> row; and the observations' shapes."""
    try:
        content = json.loads(header)
        version, declared, listed = (content[k] for k in ("version", "observations", "pairs"))
        if version != _VERSION:
            raise SceneError(
                f"{path} has version {clean_text(version)} of the format; this actlens reads "
                f"version {_VERSION}."
            )
        shapes = {checked_key(k, where=path): _shape(v, path) for k, v in declared.items()}
        pairs: list[tuple[str, dict[str, int]]] = []
        for pair in listed:
            rows = {role: pair[role] for role in ("clean", "corrupt")}
            rows |= {role: pair[role] for role in _DONORS if pair[role] is not None}
            if not all(type(row) is int and 0 <= row < n_rows for row in rows.values()):
                raise SceneError(f"{path} names the rows {rows}, but has 0..{n_rows - 1}.")
            pairs.append((clean_text(pair["differs_in"]), rows))
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as problem:
        raise SceneError(f"{path} has a malformed header: {clean_text(problem)}.") from problem
    return pairs, shapes


def _shape(shape: Sequence[int], path: Path) -> tuple[int, ...]:
    limits = (3, MAX_SIDE, MAX_SIDE) if len(shape) == 3 else (MAX_DIM,)
    if len(shape) != len(limits) or not all(
        type(n) is int and 1 <= n <= limit for n, limit in zip(shape, limits, strict=True)
    ):
        raise SceneError(f"{path} declares an observation of shape {clean_text(shape)}.")
    return tuple(shape)


def _scene(
    columns: Mapping[str, list], row: int, shapes: Mapping[str, tuple[int, ...]], path: Path
) -> Scene:
    episode, frame = columns["episode"][row], columns["frame"][row]
    observation: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        value = columns[key][row]
        if len(shape) == 3:
            where = f"{path}, scene {episode}:{frame}, {key},"
            picture = decode_picture(value, height=shape[1], width=shape[2], where=where)
            observation[key] = torch.from_numpy(picture)
        else:
            observation[key] = _floats(value, path)
            if observation[key].shape != torch.Size(shape):
                raise SceneError(f"{path}: {key} is not of shape {shape} in every scene.")
    action, is_pad = (columns[name][row] for name in ("action", "action_is_pad"))
    labels = dict(columns["labels"][row])
    if None in labels.values() or None in (is_pad or ()):
        raise SceneError(f"{path}, scene {episode}:{frame}, has labels or padding without a value.")
    return Scene(
        observation=observation,
        action=None if action is None else _floats(action, path),
        action_is_pad=None if is_pad is None else torch.tensor(is_pad, dtype=torch.bool),
        episode=episode,
        frame=frame,
        labels={clean_text(name): value for name, value in labels.items()},
        source=clean_text(columns["source"][row]),
    )


def _floats(values: Sequence, path: Path) -> Tensor:
    numbers = np.array(values, dtype=np.float32)
    if not np.isfinite(numbers).all():
        raise SceneError(f"{path} holds numbers that are not finite.")
    return torch.from_numpy(numbers)
