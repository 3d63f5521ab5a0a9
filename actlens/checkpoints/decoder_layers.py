"""Which decoder layers of a checkpoint were ever trained; shapes alone do not tell."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from actlens.errors import CheckpointError

# ACT starts these at exactly zero, and AdamW leaves a zero without a gradient at zero.
_ZERO_AT_FIRST = re.compile(
    r"decoder\.layers\.(\d{1,4})\."
    r"(?:(?:self|multihead)_attn\.(?:in_proj_|out_proj\.)bias|norm[123]\.bias)"
)


def count_trained_layers(tensors: Mapping[str, Tensor]) -> int:
    """The decoder layers up to the last one that was trained; 0 if none was.

    The original ACT builds seven layers and uses the first one's output (tonyzhaozh/act issue 25):
    the biases of the other six are still zero. In a fork that uses the last one's they are not.

    Args:
        tensors: by LeRobot's parameter names, without the leading `model.`.
    """
    trained = [
        int(found[1])
        for name, tensor in tensors.items()
        if (found := _ZERO_AT_FIRST.fullmatch(name)) and bool(tensor.any())
    ]
    return max(trained, default=-1) + 1


def require_live_layers(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a LeRobot policy whose actions would pass through layers that were never trained.

    Such a one comes from the original ACT with all its layers: LeRobot runs them in silence.

    Raises:
        CheckpointError: naming the layers and how to leave them out.
    """
    built, trained = count_layers("decoder", tensors), count_trained_layers(tensors)
    if 0 < trained < built:
        raise CheckpointError(
            f"{path}: decoder {numbered(trained, built - 1)} of {built} were never trained: all "
            "their biases are zero, as at the start. The original ACT builds such layers and does "
            "not use them; counted as live, they scramble every action. Convert its own files: "
            "save_checkpoint(load_checkpoint(original), new)."
        )


def count_layers(stack: str, tensors: Mapping[str, Tensor]) -> int:
    """How many layers `stack` has (`encoder`, `decoder`, `vae_encoder`), trained or not."""
    prefix = f"{stack}.layers."
    return len(
        {name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}
    )


def numbered(first: int, last: int) -> str:
    """`layer 3` or `layers 1 to 6`."""
    return f"layer {first}" if first == last else f"layers {first} to {last}"
