"""Weights out of a PyTorch pickle, without letting it run anything."""

import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from actlens.errors import CheckpointError, UnsafeFileError
from actlens.text import quoted

# What torch.load(weights_only=True) was seen to raise on damaged files, beside UnpicklingError.
_DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a `torch.save`d state dict, by torch's restricted unpickler and no other.

    Raises:
        UnsafeFileError: if the pickle asks for more than tensors; nothing of it was run.
        CheckpointError: if the file is missing or damaged, or holds something else than
            floating-point tensors by name.
    """
    try:
        # torch warns of other pickle protocols than its own, which then load or not.
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message recommends the unsafe way; ours must not.
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = (
            f"asks for {quoted(asked[1])}"
            if asked
            else "holds instructions that a state dict does not need"
        )
        raise UnsafeFileError(
            f"{path}: refused, because its pickle {what}; nothing of it was run. An original ACT "
            "checkpoint is a state dict of tensors alone."
        ) from None
    except _DAMAGED as error:
        raise CheckpointError(
            f"{path}: is no PyTorch state dict ({type(error).__name__}: {quoted(error)})."
        ) from error
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{path}: must hold a state dict, found {type(state).__name__}.")
    for key, tensor in state.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path}: {quoted(key)} is a {type(tensor).__name__}, not a tensor; give the state "
                "dict itself."
            )
        if tensor.layout is not torch.strided or tensor.dtype not in (
            torch.float32,
            torch.float16,
            torch.bfloat16,
        ):
            raise CheckpointError(
                f"{path}: {quoted(key)} has dtype {tensor.dtype}; weights must be float32, float16 "
                "or bfloat16."
            )
    return {key: tensor.detach().contiguous() for key, tensor in state.items()}
