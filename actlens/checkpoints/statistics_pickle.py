"""The original ACT's `dataset_stats.pkl`, read without letting the pickle construct anything.

Even numpy's own reconstruction is not called: a pickle may lie to `numpy.dtype.__setstate__` about
what lies in memory. Every allowed global is replaced by an inert stand-in that keeps what it is
given, and numbers are read from the bytes afterwards.
"""

import io
import math
import pickle
import pickletools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actlens.errors import CheckpointError, UnsafeFileError
from actlens.text import listed, quoted

# A real one holds one episode of joint positions beside the statistics: tens of kilobytes.
_LIMIT = 16 * 2**20
_NUMBERS = re.compile(r"[<>|=]?[fiu][1248]")


class _DType:
    """What stands in for `numpy.dtype`: its name, and its byte order from the state."""

    def __init__(self, *arguments: Any):
        self.name = arguments[0] if arguments else None
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("a dtype without a byte order")
        self.order = state[1]

    def resolve(self) -> np.dtype:
        if not isinstance(self.name, str) or not _NUMBERS.fullmatch(self.name):
            raise pickle.UnpicklingError(f"dtype {quoted(self.name)} is no plain number")
        return np.dtype(self.order + self.name.lstrip("<>|="))


class _Array:
    """What stands in for `numpy.ndarray`: shape, dtype and bytes, checked against each other."""

    def __init__(self, *_arguments: Any):
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array without shape, dtype and data")
        self.state = state

    def resolve(self) -> np.ndarray:
        if not self.state:
            raise pickle.UnpicklingError("an array without data")
        _, shape, dtype, is_fortran, data = self.state
        return _from_bytes(data, dtype, shape, order="F" if is_fortran else "C")


class _Buffer(_Array):
    """What stands in for numpy's array from a buffer, as protocol 5 writes it."""

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any = "C"):
        self.state = (1, shape, dtype, order == "F", data)


class _Scalar(_Array):
    """What stands in for a numpy scalar."""

    def __init__(self, dtype: Any, data: Any):
        self.state = (1, (), dtype, False, data)


def _from_bytes(data: object, dtype: object, shape: object, *, order: str) -> np.ndarray:
    if not isinstance(dtype, _DType) or not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("an array of something else than numbers")
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise pickle.UnpicklingError(f"an array of shape {quoted(shape)}")
    resolved = dtype.resolve()
    if len(data) != math.prod(shape) * resolved.itemsize:
        raise pickle.UnpicklingError(f"{len(data)} bytes for an array of shape {quoted(shape)}")
    return np.frombuffer(bytes(data), resolved).reshape(shape, order="F" if order == "F" else "C")


class _Latin1:
    """What stands in for `_codecs.encode`: protocols below 3 write bytes as text to be encoded."""

    def __new__(cls, text: object, encoding: object) -> Any:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("text in an unknown encoding")
        return text.encode("latin-1")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("text with a state")


class _NoBytes:
    """What stands in for `bytes` itself, which those protocols call for empty data."""

    def __new__(cls) -> Any:
        return b""

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("bytes with a state")


# All are classes with a `__setstate__`, so that a pickle cannot change the stand-ins themselves:
# for a class, its BUILD instruction calls that method with one argument too few.
_STAND_INS: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _Latin1,
    ("__builtin__", "bytes"): _NoBytes,
    ("builtins", "bytes"): _NoBytes,
}
# numpy 2 renamed `numpy.core` to `numpy._core`.
for _core in ("numpy.core", "numpy._core"):
    _STAND_INS |= {
        (f"{_core}.multiarray", "_reconstruct"): _Array,
        (f"{_core}.multiarray", "scalar"): _Scalar,
        (f"{_core}.numeric", "_frombuffer"): _Buffer,
    }


class _InertUnpickler(pickle.Unpickler):
    """Knows the stand-ins and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise UnsafeFileError(f"it asks for {quoted(f'{module}.{name}')}")
        return _STAND_INS[module, name]

    def persistent_load(self, pid: object) -> Any:
        raise UnsafeFileError("it asks for objects outside the file")


def read_statistics_pickle(path: Path) -> dict[str, Tensor]:
    """Named arrays of numbers from a pickled dictionary, of protocol 0 to 5 and any numpy.

    Raises:
        UnsafeFileError: if the pickle asks for anything but numpy arrays; nothing of it was run.
        CheckpointError: if the file is missing, too large or damaged, or holds something else.
    """
    try:
        size = path.stat().st_size
        if size > _LIMIT:
            raise CheckpointError(f"{path}: {size} bytes are too many for statistics.")
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error
    try:
        _bound_memory(content)
        loaded = _InertUnpickler(io.BytesIO(content)).load()
        if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
            raise pickle.UnpicklingError("no dictionary of names")
        return {key: _tensor(value) for key, value in loaded.items()}
    except UnsafeFileError as error:
        raise UnsafeFileError(
            f"{path}: refused, because {error}; statistics are arrays of numbers and need no code."
        ) from error
    except _DAMAGED as error:
        raise CheckpointError(
            f"{path}: is no pickled dictionary of arrays ({type(error).__name__}: {quoted(error)})."
        ) from error


# What reading a pickle of arbitrary bytes was seen to raise, or may by the documentation.
_DAMAGED = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


def _bound_memory(content: bytes) -> None:
    """Refuse a memo index beyond the file's length, for which the unpickler would make room."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in {"PUT", "BINPUT", "LONG_BINPUT"} and (argument or 0) > len(content):
            raise pickle.UnpicklingError(f"a memo of {argument} entries")


def _tensor(value: object) -> Tensor:
    array = value.resolve() if isinstance(value, _Array) else value
    if not isinstance(array, np.ndarray | int | float) or isinstance(array, bool):
        raise pickle.UnpicklingError(f"{type(value).__name__} is no array of numbers")
    native = np.asarray(array)
    native = native.astype(native.dtype.newbyteorder("="))
    if native.dtype.kind == "u" and native.dtype.itemsize > 1:
        native = native.astype(np.int64)
    return torch.from_numpy(native.copy())


def require_statistics(
    path: Path, statistics: Mapping[str, Tensor], names: tuple[str, ...]
) -> None:
    """Refuse statistics that lack one of the names.

    Raises:
        CheckpointError: listing what is missing and what is there.
    """
    if missing := [name for name in names if name not in statistics]:
        raise CheckpointError(
            f"{path}: {', '.join(missing)} is missing; it holds {listed(statistics)}."
        )
