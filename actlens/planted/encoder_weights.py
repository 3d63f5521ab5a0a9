"""An encoder and a cross-attention with random weights that keep clear of a readout."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.model.act import HookedACT
from actlens.planted.readout import Readout

# Chosen so that a linear map of what the last decoder MLP reads comes within about 3 % of the
# experts' actions, and neighbouring demonstrations are told apart in float32.
_SIZES = {
    "embed.state_proj": 0.5,
    "embed.env_proj": 0.5,
    "embed.vector_pos": 3.0,
    "decoder.query_pos": 3.0,
    "cross_attn.out_proj": 10.0,
}
"""Of a layer's write, for inputs of unit size; 1 for all others."""
_BIAS_SIZES = {"embed.": 1.0, "linear1": 1.0}
_OTHER_BIASES = 0.3


@torch.no_grad()
def random_encoder(model: HookedACT, readout: Readout, seed: int) -> None:
    """Draw the weights in front of the last decoder MLP; that MLP and the head become zero.

    Everything that writes to the stream is projected off the readout, and norms keep the identity
    as their affine map: what the last decoder MLP reads has no component there.
    """
    generator = torch.Generator().manual_seed(seed)
    beside = readout.beside()
    last = f"decoder.{model.config.n_decoder_layers - 1}.mlp"
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        if ".ln" in f".{name}":
            parameter.fill_(1.0 if leaf == "weight" else 0.0)
        elif owner.startswith((last, "action_head")):
            parameter.zero_()
        else:
            parameter.copy_(_drawn(owner, parameter, generator))
            if owner.endswith(("_proj", "linear2")):
                parameter.copy_(beside @ parameter.double())


def _drawn(
    owner: str, like: Float[Tensor, "..."], generator: torch.Generator
) -> Float[Tensor, "..."]:
    noise = torch.randn(like.shape, generator=generator)
    if like.ndim == 1:
        return noise * next((s for part, s in _BIAS_SIZES.items() if part in owner), _OTHER_BIASES)
    size = next((s for part, s in _SIZES.items() if owner.endswith(part)), 1.0)
    if owner.startswith("embed.") or owner.endswith("_pos"):
        return size * noise
    return size * noise / math.sqrt(like.shape[1])
