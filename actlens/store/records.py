"""The list of a store's finished shards: a line each, which is all that a crash can cut off."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actlens.store.errors import StoreError
from actlens.store.files import append_line
from actlens.store.json_values import count, integer, sha256
from actlens.text import quoted

SHARDS = "shards.jsonl"


@dataclass(frozen=True)
class ShardRecord:
    """One finished shard, as the store's list of shards has it."""

    index: int
    first: int
    """The store's number of its first scene."""
    nbytes: int
    """Of the file."""
    sha256: str
    """Of the file."""
    scenes_sha256: str
    """Of its scenes, observations included (`scene_tensors.scenes_sha256`)."""
    addresses: tuple[tuple[int, int], ...]
    """Episode and frame of every scene."""

    def __len__(self) -> int:
        return len(self.addresses)

    @property
    def file(self) -> str:
        """Its name in the store's folder."""
        return shard_file(self.index)

    @property
    def rows(self) -> slice:
        """The store's numbers of its scenes."""
        return slice(self.first, self.first + len(self))


def shard_file(index: int) -> str:
    """The name of a shard."""
    return f"shard-{index:06d}.safetensors"


def append_record(folder: Path, record: ShardRecord) -> None:
    """Add a finished shard to the list of shards."""
    content = {
        "shard": record.index,
        "bytes": record.nbytes,
        "sha256": record.sha256,
        "scenes_sha256": record.scenes_sha256,
        "episodes": [episode for episode, _ in record.addresses],
        "frames": [frame for _, frame in record.addresses],
    }
    append_line(folder / SHARDS, json.dumps(content, separators=(",", ":")).encode())


def read_records(folder: Path, scenes_per_shard: int) -> tuple[ShardRecord, ...]:
    """The finished shards, in order; a last line that was cut off does not count.

    Raises:
        StoreError: if a line is damaged: it is named.
    """
    path = folder / SHARDS
    try:
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror or error}).") from error
    records: list[ShardRecord] = []
    first = 0
    for index, line in enumerate(lines):
        try:
            record = _record(json.loads(line), index, first)
            if not 1 <= len(record) <= scenes_per_shard:
                raise ValueError(f"{len(record)} scenes")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise StoreError(
                f"{path}: line {index + 1} is damaged ({quoted(error)}); remove it and those after "
                "it, and write the same scenes again: the shards before it are kept."
            ) from error
        records.append(record)
        first += len(record)
    return tuple(records)


def _record(content: Mapping[str, Any], index: int, first: int) -> ShardRecord:
    if content["shard"] != index:
        raise ValueError(f"it is of shard {content['shard']}, not {index}")
    episodes, frames = ([integer(i) for i in content[k]] for k in ("episodes", "frames"))
    return ShardRecord(
        index=index,
        first=first,
        nbytes=count(content["bytes"]),
        sha256=sha256(content["sha256"]),
        scenes_sha256=sha256(content["scenes_sha256"]),
        addresses=tuple(zip(episodes, frames, strict=True)),
    )
