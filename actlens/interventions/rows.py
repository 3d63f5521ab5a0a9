"""Activations that equal the base run's except at a few positions."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The base run's activation with some positions (tokens, queries) replaced.

    In batch row b, position `index[b, i]` holds `values[b, i]`; all others are as in the base run.
    Positions of one batch row are distinct.
    """

    index: Int[Tensor, "batch changed"]
    values: Float[Tensor, "batch changed *rest"]

    def dense(self, base: Float[Tensor, "1 position *rest"]) -> Float[Tensor, "batch position ..."]:
        """The whole activation, in memory of its own."""
        batch = len(self.index)
        whole = base.expand(batch, *base.shape[1:]).clone(memory_format=torch.contiguous_format)
        whole[torch.arange(batch, device=self.index.device)[:, None], self.index] = self.values
        return whole

    def of(self, base: Float[Tensor, "1 position *rest"]) -> Float[Tensor, "batch changed ..."]:
        """The base run's values at the same positions."""
        return base[0][self.index]


Value = Tensor | Rows
"""A changed activation: whole, one batch row per intervention, or as the rows that differ."""
