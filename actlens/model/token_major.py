"""Linear layers and LayerNorm for batch-first views of token-major memory.

LeRobot's ACT computes with the token axis first, `(token, batch, d_model)`. Here every activation
is batch first, as hooks and nnsight need it, but is a *view* of the same token-major memory: sums
keep the strides of their first operand, and the two modules below hand torch the token-major
tensor. Every matrix product therefore sees the very layout it sees in LeRobot, which is what makes
the actions equal bit for bit.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from actlens.hooks import HookPoint


class Linear(nn.Linear):
    """`nn.Linear` over `batch token d`, computed token-major."""

    def forward(
        self, input: Float[Tensor, "batch token d_in"]
    ) -> Float[Tensor, "batch token d_out"]:
        """`input @ weight.T + bias`."""
        return F.linear(input.transpose(0, 1), self.weight, self.bias).transpose(0, 1)


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` over `batch token d_model`, with its internals as on-demand hook points.

    `hook_scale` is sqrt(var + eps), `hook_normalized` (x - mean) / scale, before weight and bias.
    Replacing either replaces what follows from it: freezing the scale makes the layer linear.
    """

    def __init__(self, d_model: int, position: str):
        super().__init__(d_model)
        self.hook_scale = HookPoint(f"batch {position} one", on_demand=True)
        self.hook_normalized = HookPoint(f"batch {position} d_model", on_demand=True)

    def forward(
        self, input: Float[Tensor, "batch token d_model"]
    ) -> Float[Tensor, "batch token d_model"]:
        """Normalise over the last axis."""
        fused = F.layer_norm(
            input.transpose(0, 1), self.normalized_shape, self.weight, self.bias, self.eps
        ).transpose(0, 1)
        if not (self.hook_scale.is_watched or self.hook_normalized.is_watched):
            return fused
        # Not the mean and deviation that the fused kernel returns: no gradient flows through those.
        centred = input - input.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + self.eps).sqrt()
        hooked_scale = self.hook_scale(scale)
        normalized = centred / hooked_scale
        hooked = self.hook_normalized(normalized)
        if hooked_scale is scale and hooked is normalized:
            return fused  # read, not edited: keep the fused kernel's very bits
        return hooked * self.weight + self.bias
