"""The keys of an MLP: what makes which neuron fire."""

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from actlens.config import Activation
from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite


@dataclass(frozen=True)
class Keys:
    """An MLP's first layer: the coefficient of neuron n at input x is act(k_n · x + b_n).

    Geva et al. (2020) know no threshold b; ACT's is kept. A key with a very negative one is a
    detector, a key with a positive one hardly more than a linear unit.
    """

    site: MLPSite
    weight: Float[Tensor, "neuron d_model"]
    bias: Float[Tensor, " neuron"]
    activation: Activation

    @classmethod
    def of(cls, model: HookedACT, block: str) -> Self:
        """The keys of a block, `decoder.0` or `encoder.2`.

        Raises:
            HookNameError: if the policy has no such block.
        """
        site = MLPSite.of(model, block)
        layer = site.mlp(model).linear1
        return cls(site, layer.weight.detach(), layer.bias.detach(), model.config.activation)

    def shuffled(self, seed: int = 0) -> Self:
        """A control: every key's entries in another order, with its norm and its threshold.

        What such keys find in the same inputs, any direction finds there.
        """
        generator = torch.Generator().manual_seed(seed)
        order = torch.rand(self.weight.shape, generator=generator).argsort(1)
        return replace(self, weight=self.weight.gather(1, order.to(self.weight.device)))

    def coefficients(self, inputs: Float[Tensor, "entry d_model"]) -> Float[Tensor, "neuron entry"]:
        """How strongly every memory is recalled at every input."""
        pre = torch.addmm(self.bias[:, None], self.weight, inputs.T)
        return pre.relu_() if self.activation is Activation.RELU else F.gelu(pre)
