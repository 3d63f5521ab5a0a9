"""Keys to search among: an array, a tensor, a memory map, or an activation of a store."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from actlens.errors import ActlensError

_NUMBERS_AT_ONCE = 2**23
"""Of a block of keys in float64: 64 MiB."""


class RetrievalError(ActlensError, ValueError):
    """What was given cannot be searched or compared."""


class Keys(Protocol):
    """One key a row, of any shape; read in spans and in rows of any order.

    NumPy arrays and memory maps are keys, so are tensors and a store's `StoredActivation`.
    """

    @property
    def shape(self) -> Any:
        """Keys, then the axes of one key."""
        ...

    def __getitem__(self, rows: Any, /) -> Any:
        """The keys of a slice, or of an array of row numbers."""
        ...


def read(keys: Keys, rows: slice | Int[np.ndarray, " row"]) -> Float[np.ndarray, "row d"]:
    """Some keys in memory, each flattened to one row, in float32 or float64."""
    values = keys[rows]
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values if values.dtype.itemsize >= 4 else values.float()).numpy()
    values = np.asarray(values)
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    return values.reshape(len(values), -1)


def size(keys: Keys) -> tuple[int, int]:
    """How many keys there are, and how many numbers each has.

    Raises:
        RetrievalError: if there is no key, or nothing in one.
    """
    n, *axes = keys.shape
    d = int(np.prod(axes))
    if not n or not d:
        raise RetrievalError(f"Keys of shape {tuple(keys.shape)}: there is nothing to search.")
    return n, d


def rows_at_once(d: int, *, multiple_of: int = 1) -> int:
    """How many keys of `d` numbers are taken into memory together."""
    return max(1, min(16384, _NUMBERS_AT_ONCE // d) // multiple_of) * multiple_of


def spans(n: int, step: int) -> Iterator[slice]:
    """Rows 0..n in order, `step` at a time."""
    return (slice(start, min(start + step, n)) for start in range(0, n, step))
