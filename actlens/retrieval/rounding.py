"""Rounding keys to few bits and multiplying what is left."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from actlens.retrieval.keys import Keys, RetrievalError, read, rows_at_once, spans

UNIT = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}
"""Largest relative error of rounding to a dtype."""
NORM_PARTS = {torch.bfloat16: 3, torch.float32: 1}
"""Numbers that hold |k|^2 / 2 to 24 bits."""
COLUMNS = 4096
"""Of keys are summed in one product: the bound on a sum's rounding grows with its length."""
_LARGEST = 1e300
"""Beyond it differences of float64 may be infinite."""


def centre_and_scale(keys: Keys, n: int, d: int) -> tuple[Float[np.ndarray, " d"], float]:
    """The mean key, and the power of two that brings every centred key to a length below 1."""
    total, low, high = np.zeros(d), np.full(d, np.inf), np.full(d, -np.inf)
    for rows in spans(n, rows_at_once(d)):
        block = read(keys, rows)
        if not np.isfinite(block).all():
            first = rows.start + int(np.flatnonzero(~np.isfinite(block).all(1))[0])
            raise RetrievalError(f"Key {first} is not finite: drop it, or what made it.")
        total += block.sum(0, dtype=np.float64)
        np.minimum(low, block.min(0), out=low)
        np.maximum(high, block.max(0), out=high)
    largest = float(max(np.abs(low).max(), np.abs(high).max()))
    if largest > _LARGEST:
        raise RetrievalError(
            f"A key has the coordinate {largest:.3g}; float64 holds differences of numbers up to "
            f"{_LARGEST:g}. Divide keys and queries by a common factor."
        )
    centre = np.clip(total / n, low, high)  # not outside for rounding
    widest = np.maximum(high - centre, centre - low)
    if not widest.any():
        return centre, 1.0
    # In two steps, as the squares may be no numbers of float64.
    exponent = np.frexp(widest.max())[1]
    longest = np.linalg.norm(np.ldexp(widest, -exponent))
    return centre, float(np.ldexp(1.0, min(1000, -exponent - np.frexp(longest)[1])))


def reduce_block(
    keys: Float[np.ndarray, "row d"], group: int, out: Float[Tensor, "row d_norm"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Write a block's reduced keys, members of a group apart; its `_Lengths`."""
    n, d = keys.shape
    half = np.square(keys).sum(1) / 2
    rounded = torch.from_numpy(keys).to(out.dtype)
    parts, left = [], -half
    for _ in range(NORM_PARTS[out.dtype]):
        part = torch.from_numpy(left).to(out.dtype)
        left = left - part.double().numpy()
        parts.append(part)
    values = torch.zeros_like(out)
    values[n:, d] = -(2.0**110)  # rows that are not there win nothing
    values[:n, :d] = rounded
    values[:n, d : d + len(parts)] = torch.stack(parts, 1)
    out.view(group, -1, out.shape[1])[:] = values.view(-1, group, out.shape[1]).transpose(0, 1)
    kept = rounded.double().numpy()
    lengths = (
        np.linalg.norm(keys - kept, axis=1),
        np.linalg.norm(kept, axis=1),
        half,
        np.abs(left),
    )
    largest = (np.maximum.reduceat(values, np.arange(0, n, group)) for values in lengths)
    first, second, third, fourth = (torch.from_numpy(x * (1 + 2.0**-20)).float() for x in largest)
    return first, second, third, fourth


def product(
    left: Float[Tensor, "query d"], right: Float[Tensor, "row d"]
) -> Float[Tensor, "query row"]:
    """left @ right', in float32 from parts where rows are long."""
    if left.shape[1] <= COLUMNS:
        return left @ right.T
    total = torch.zeros(len(left), len(right))
    for part, other in zip(left.split(COLUMNS, 1), right.split(COLUMNS, 1), strict=True):
        total += part @ other.T
    return total


@contextmanager
def true_float32() -> Iterator[None]:
    """Products of float32 in float32 for the length of a `with` block: the bound relies on it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
