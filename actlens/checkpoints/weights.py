"""Tensors from safetensors files, compared with what they should be before they are read."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from actlens.errors import CheckpointError
from actlens.text import did_you_mean, quoted

Shape = tuple[int, ...]

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SHOWN = 10


@dataclass(frozen=True)
class Header:
    """The table of contents of a safetensors file: shapes and dtypes by tensor name."""

    path: Path
    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, str]
    """safetensors' own names: `F32`, `BF16`, …"""


class Fault(StrEnum):
    """How a tensor of a file can differ from what the configuration asks for."""

    MISSING = "missing"
    UNEXPECTED = "unexpected"
    SHAPE = "wrong shape"


@dataclass(frozen=True)
class Difference:
    """One tensor that a file lacks, has too many, or has in another shape."""

    fault: Fault
    key: str
    expected: Shape | None
    found: Shape | None


def read_header(path: Path) -> Header:
    """The table of contents of a safetensors file; no tensor is read.

    Raises:
        CheckpointError: if the file is missing, truncated, or something else than safetensors.
    """
    size = 0
    try:
        size = path.stat().st_size
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(piece.get_shape()) for name, piece in slices.items()}
            dtypes = {name: piece.get_dtype() for name, piece in slices.items()}
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except SafetensorError as error:
        raise CheckpointError(_damaged(path, size, error)) from error
    return Header(path, shapes, dtypes)


def _damaged(path: Path, size: int, error: SafetensorError) -> str:
    """What is wrong with a file that is not safetensors: its beginning and sizes say most of it."""
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return (
            f"{path}: is a pickle under a safetensors name and was not opened; ask for the "
            "safetensors file."
        )
    if start.startswith(b"version https://"):
        return f"{path}: is a Git LFS pointer, not the file itself; run `git lfs pull` there."
    if len(start) >= 8:
        header = int.from_bytes(start[:8], "little")
        if size < header + 8:
            return (
                f"{path}: is cut short or foreign: {size} bytes, but its header alone should take "
                f"{header + 8}; download it again."
            )
    return f"{path}: is damaged or foreign, {size} bytes ({quoted(error)}); download it again."


def find_differences(
    expected: Mapping[str, Shape], found: Mapping[str, Shape]
) -> tuple[Difference, ...]:
    """Every tensor that is missing, unexpected or of another shape, in the order of `expected`."""
    missing_or_wrong = [
        Difference(Fault.SHAPE if key in found else Fault.MISSING, key, shape, found.get(key))
        for key, shape in expected.items()
        if found.get(key) != shape
    ]
    unexpected = [
        Difference(Fault.UNEXPECTED, key, None, shape)
        for key, shape in found.items()
        if key not in expected
    ]
    return (*missing_or_wrong, *unexpected)


def require_equal(
    path: Path,
    expected: Mapping[str, Shape],
    found: Mapping[str, Shape],
    *,
    against: str = "config.json's",
) -> None:
    """Refuse a file whose tensors are not the expected ones.

    Args:
        path: the file, for the message.
        expected: shapes by name, as they should be.
        found: shapes by name, as they are.
        against: where `expected` comes from, for the message.

    Raises:
        CheckpointError: with a table of at most ten differences.
    """
    if differences := find_differences(expected, found):
        raise CheckpointError(f"{path}: {describe(differences, against=against)}")


def describe(differences: Sequence[Difference], *, against: str) -> str:
    """The differences as a sentence and a table of at most ten rows."""
    counts = [
        f"{n} {fault.value}"
        for fault in Fault
        if (n := sum(difference.fault is fault for difference in differences))
    ]
    unexpected = [d.key for d in differences if d.fault is Fault.UNEXPECTED]
    rows = [_row(difference, unexpected) for difference in differences[:_SHOWN]]
    if len(differences) > _SHOWN:
        rows.append(f"… and {len(differences) - _SHOWN} more")
    return f"its tensors are not {against} ({', '.join(counts)}):\n  " + "\n  ".join(rows)


def _row(difference: Difference, unexpected: list[str]) -> str:
    key = quoted(difference.key)
    if difference.fault is Fault.SHAPE:
        return f"wrong shape {key}: expected {difference.expected}, found {difference.found}"
    if difference.fault is Fault.UNEXPECTED:
        return f"unexpected {key} {difference.found}"
    hint = did_you_mean(difference.key, unexpected, most=1)
    return (
        f"missing {key} {difference.expected}.{hint}"
        if hint
        else f"missing {key} {difference.expected}"
    )


def require_floats(header: Header, names: Iterable[str]) -> None:
    """Refuse weights that are not float32, float16 or bfloat16.

    Raises:
        CheckpointError: naming the first such tensor.
    """
    for name in names:
        if header.dtypes[name] not in _FLOATS:
            raise CheckpointError(
                f"{header.path}: {quoted(name)} has dtype {header.dtypes[name]}; weights must be "
                "float32, float16 or bfloat16."
            )


def read_tensors(header: Header, names: Iterable[str]) -> dict[str, Tensor]:
    """The named tensors, in the file's dtype and in memory of their own.

    Raises:
        CheckpointError: if the file has changed or vanished since its header was read.
    """
    try:
        with safe_open(header.path, framework="pt") as file:
            # A clone, because the original maps the file, which another process may cut short.
            return {name: file.get_tensor(name).clone() for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{header.path}: cannot be read ({quoted(error)}).") from error


def require_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors with NaN or infinity in them.

    Raises:
        CheckpointError: naming the first such tensor and how many there are.
    """
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        rest = f" (and {len(bad) - 1} more tensors)" if len(bad) > 1 else ""
        count = int((~torch.isfinite(tensors[bad[0]])).sum())
        raise CheckpointError(
            f"{path}: {quoted(bad[0])} holds {count} values that are NaN or infinite{rest}; the "
            "training diverged or the file is damaged."
        )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
