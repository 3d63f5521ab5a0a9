"""Bytes from a checkpoint folder: bounded JSON, and file names that cannot leave the folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actlens.errors import CheckpointError, UnsafeFileError
from actlens.text import quoted

# LeRobot's largest JSON file is a few kilobytes.
_JSON_LIMIT = 4 * 2**20


def read_json(path: Path) -> Mapping[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: if the file is missing, larger than 4 MiB, not UTF-8, not JSON (`NaN` and
            `Infinity` are not), nested too deeply, or something else than an object.
    """
    try:
        size = path.stat().st_size
        if size > _JSON_LIMIT:
            raise CheckpointError(
                f"{path}: {size} bytes are too many for a checkpoint's JSON (limit {_JSON_LIMIT})."
            )
        content = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON ({quoted(error)}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, found {type(content).__name__}.")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def inside(folder: Path, name: object, *, named_by: Path) -> Path:
    """The path of a file that another file names, if it lies in the checkpoint's own folder.

    Links may lead elsewhere only as the Hugging Face cache lays them out: from a snapshot to the
    blobs of the same repository.

    Args:
        folder: the checkpoint's folder.
        name: what `named_by` says, of any JSON type.
        named_by: the file that names it, for the message.

    Raises:
        CheckpointError: if `name` is not a file name.
        UnsafeFileError: if it is absolute, goes through another folder, or links out of this one.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise CheckpointError(f"{named_by}: a file name must be text, found {quoted(name)}.")
    if "/" in name or "\\" in name or ":" in name or name in {".", ".."}:
        raise UnsafeFileError(
            f"{named_by}: refused to read {quoted(name)}: a checkpoint may only name files of its "
            "own folder, without a path."
        )
    root = folder.resolve()
    allowed = [root]
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        allowed.append(root.parent.parent / "blobs")
    try:
        target = (folder / name).resolve()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{named_by}: {quoted(name)} cannot be resolved.") from error
    if not any(target.is_relative_to(place) for place in allowed):
        raise UnsafeFileError(
            f"{named_by}: refused to read {quoted(name)}: it is a link that leaves {folder}."
        )
    return folder / name
