"""One shard: a safetensors file that is written row by row and read by mapping it into memory."""

import json
import math
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from actlens.store.errors import StoreError
from actlens.store.files import NewFile, new_file
from actlens.text import clean_text, listed, quoted

# safetensors' own names, in the order in which its writer lays tensors out.
DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.bool: "BOOL",
}
"""What shards can hold -> safetensors' names."""
_SOURCES = "sources"


def bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's values row by row; a copy only where they do not lie so already."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


@dataclass(frozen=True)
class Entry:
    """One tensor of a shard; its first axis is the scene."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Of all its values."""
        return math.prod(self.shape) * self.dtype.itemsize


class NewShard:
    """A shard being written: any rows of any tensor, in any order."""

    def __init__(self, file: NewFile, entries: Iterable[Entry], sources: list[str]):
        self._file = file
        order = list(DTYPES)
        self._places: dict[str, tuple[Entry, int]] = {}
        contents: dict[str, Any] = {"__metadata__": {_SOURCES: json.dumps(sources)}}
        end = 0
        for entry in sorted(entries, key=lambda e: (order.index(e.dtype), e.name)):
            self._places[entry.name] = entry, end
            contents[entry.name] = {
                "dtype": DTYPES[entry.dtype],
                "shape": entry.shape,
                "data_offsets": [end, end + entry.nbytes],
            }
            end += entry.nbytes
        header = json.dumps(contents, ensure_ascii=False, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        self._start = 8 + len(header)
        self.nbytes = self._start + end
        """Of the file, once all is written."""
        file.write(len(header).to_bytes(8, "little") + header, 0)

    def put(self, name: str, first: int, rows: Tensor) -> None:
        """Write the values of some scenes, from the shard's scene `first` on.

        Raises:
            StoreError: if the values are of another shape or dtype than the entry, or the disk is
                full.
        """
        entry, offset = self._places[name]
        fits = rows.shape[1:] == entry.shape[1:] and first + len(rows) <= entry.shape[0]
        if not fits or rows.dtype != entry.dtype:
            raise StoreError(
                f"{name}: {tuple(rows.shape)} {rows.dtype} from scene {first} on does not fit "
                f"{entry.shape} {entry.dtype}."
            )
        row = entry.nbytes // entry.shape[0]
        self._file.write(bytes_of(rows), self._start + offset + first * row)


@contextmanager
def new_shard(path: Path, entries: Iterable[Entry], sources: list[str]) -> Generator[NewShard]:
    """A shard that is gone if the block raises; `files.settle` and `files.publish` come after it.

    Raises:
        StoreError: if it cannot be written.
    """
    with new_file(path) as file:
        yield NewShard(file, entries, sources)


class OpenShard:
    """A shard mapped into memory: nothing is read but what is used."""

    def __init__(self, path: Path, nbytes: int, n_scenes: int, expected: Iterable[Entry]):
        """Map the file, having compared its size and its table of contents with what was written.

        Args:
            path: the file.
            nbytes: its size.
            n_scenes: the length of every tensor.
            expected: what it must hold; all else are labels, one float64 a scene.

        Raises:
            StoreError: if it is missing, cut short, or not the shard that is meant.
        """
        self.path = path
        try:
            size = path.stat().st_size
            if size != nbytes:
                raise StoreError(f"{path}: has {size} bytes, not the {nbytes} that were written.")
            self._file = safe_open(path, framework="pt")
            slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
            found = {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
            self._said = self._file.metadata() or {}
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror or error}).") from error
        except SafetensorError as error:
            raise StoreError(f"{path}: is damaged or foreign ({quoted(error)}).") from error
        wanted = {e.name: (DTYPES[e.dtype], e.shape) for e in expected}
        label = (DTYPES[torch.float64], (n_scenes,))
        wrong = [n for n in wanted.keys() | found.keys() if found.get(n) != wanted.get(n, label)]
        if wrong:
            raise StoreError(
                f"{path}: is not the shard that was written: see {listed(sorted(wrong))}."
            )
        self.names = tuple(found)

    def tensor(self, name: str) -> Tensor:
        """A tensor over the mapped file, scene first; whoever writes to it changes no file."""
        return self._file.get_tensor(name)

    @property
    def sources(self) -> list[str]:
        """Where the shard's scenes come from."""
        try:
            said = json.loads(self._said.get(_SOURCES, ""))
        except (ValueError, RecursionError) as error:
            raise StoreError(
                f"{self.path}: its sources are not a list ({quoted(error)})."
            ) from error
        if not isinstance(said, list):
            raise StoreError(f"{self.path}: its sources are not a list ({quoted(said)}).")
        return [clean_text(source) for source in said]
