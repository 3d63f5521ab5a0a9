"""The MLP as a key-value memory (Geva et al. 2020)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from actlens.config import ACTConfig, Activation
from actlens.hooks import HookPoint
from actlens.model.token_major import Linear


class MLP(nn.Module):
    """Two linear layers: column i of `W_in` is key i, row i of `W_out` value i.

    `hook_post` holds the memory coefficients, one per neuron; the caller hooks the output.
    """

    def __init__(self, config: ACTConfig, position: str):
        super().__init__()
        self.linear1 = Linear(config.d_model, config.d_mlp)
        self.linear2 = Linear(config.d_mlp, config.d_model)
        self.activation = config.activation
        self.dropout = config.dropout
        self.hook_pre = HookPoint(f"batch {position} neuron")
        self.hook_post = HookPoint(f"batch {position} neuron")

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """`W_out.T @ act(W_in.T @ x + b_in) + b_out`."""
        pre = self.hook_pre(self.linear1(x))
        act = F.relu if self.activation is Activation.RELU else F.gelu
        # Token-major: torch picks another GELU kernel for strided memory, with other last bits.
        post = self.hook_post(act(pre.transpose(0, 1)).transpose(0, 1))
        return self.linear2(F.dropout(post, self.dropout, self.training))

    @property
    def W_in(self) -> Float[Tensor, "d_model neuron"]:
        """Keys as columns, TransformerLens' shape (a view)."""
        return self.linear1.weight.T

    @property
    def W_out(self) -> Float[Tensor, "neuron d_model"]:
        """Values as rows, TransformerLens' shape (a view)."""
        return self.linear2.weight.T

    @property
    def b_in(self) -> Float[Tensor, " neuron"]:
        """Bias before the activation."""
        return self.linear1.bias

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        """Bias of the output."""
        return self.linear2.bias
