"""Are the shards of a store still the bytes that were written?"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from actlens.checkpoints.weights import sha256_of
from actlens.store.reading import ActivationStore
from actlens.store.records import ShardRecord


class Fault(StrEnum):
    """What can be wrong with a shard."""

    MISSING = "is missing"
    SIZE = "is cut short or too long"
    CONTENT = "has other content than was written"


@dataclass(frozen=True)
class Damage:
    """One shard that is not as it was written; `rebuild_shard` makes it again."""

    shard: int
    path: Path
    fault: Fault

    def __str__(self) -> str:
        return f"{self.path} {self.fault}."


def verify(
    store: ActivationStore, *, advance: Callable[[int], None] = lambda n: None
) -> tuple[Damage, ...]:
    """Every shard that is missing or has other bytes than were written, by its checksum.

    Args:
        advance: told the number of scenes of every shard that was checked.
    """
    found = []
    for record in store.shards:
        path = store.folder / record.file
        if fault := _fault(path, record):
            found.append(Damage(record.index, path, fault))
        advance(len(record))
    return tuple(found)


def _fault(path: Path, record: ShardRecord) -> Fault | None:
    if not path.is_file():
        return Fault.MISSING
    if path.stat().st_size != record.nbytes:
        return Fault.SIZE
    return Fault.CONTENT if sha256_of(path) != record.sha256 else None
