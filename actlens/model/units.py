"""Between dataset units and the network's, for changes rather than values."""

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.model.act import HookedACT


def spread_of(
    model: HookedACT, key: str, like: Float[Tensor, "*batch feature"]
) -> Float[Tensor, " feature"]:
    """What one normalised unit of a feature is in dataset units, by dimension.

    The network's outputs are scaled back by exactly this; 0 where the data never moved.
    """
    device = model.action_head.weight.device
    zero = torch.zeros(like.shape[-1], dtype=torch.float64, device=device)
    at = lambda x: model.normalizer.unnormalize(key, x)
    return (at(zero + 1) - at(zero)).to(like)
