"""Directions of the residual stream that carry an answer through LayerNorms unharmed."""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.planted.errors import PlantError

LENGTH = 1e4
"""Of the constant vector. What is written beside it moves the norm's scale by |write|^2 / 2e8."""


@dataclass(frozen=True)
class Readout:
    """Orthonormal directions that are read, and one that is a large constant; all have mean zero.

    Behind a LayerNorm whose input is `length * anchor` plus little, everything else is divided by
    `length / sqrt(d_model)`: the norm is linear to about 1e-7 and a matrix undoes it.
    """

    basis: Float[Tensor, "d_model target"]
    anchor: Float[Tensor, " d_model"]
    length: float = LENGTH

    @classmethod
    def make(cls, d_model: int, n: int, seed: int = 0, *, spread: bool = False) -> Self:
        """Random directions.

        Args:
            n: how many directions are read.
            seed: of their rotation.
            spread: spread the anchor over all coordinates. By default it lives on two that the
                basis leaves alone, so that float32 keeps the digits of what stands beside it.

        Raises:
            PlantError: if the stream has no room for them.
        """
        if n + 4 > d_model:
            raise PlantError(f"A stream of {d_model} dimensions has no room for {n} directions.")
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(d_model, n + 1, generator=generator, dtype=torch.float64)
        anchor = torch.zeros(d_model, dtype=torch.float64)
        anchor[0], anchor[1] = 0.5**0.5, -(0.5**0.5)
        fixed = [torch.ones(d_model, 1, dtype=torch.float64)]
        if spread:
            q = torch.linalg.qr(torch.cat([*fixed, noise], 1))[0]
            return cls(q[:, 2:], q[:, 1])
        fixed += [torch.eye(d_model, 2, dtype=torch.float64)]
        q = torch.linalg.qr(torch.cat([*fixed, noise[:, :n]], 1))[0]
        return cls(q[:, 3:], anchor)

    @property
    def taken(self) -> Float[Tensor, "d_model taken"]:
        """Everything that nothing else may write to: the anchor, then the basis; orthonormal."""
        return torch.cat([self.anchor[:, None], self.basis], 1)

    def beside(self) -> Float[Tensor, "d_model d_model"]:
        """The projection onto what is neither read, nor anchor, nor the mean."""
        d_model = len(self.anchor)
        ones = torch.full((d_model, 1), d_model**-0.5, dtype=torch.float64)
        taken = torch.cat([ones, self.taken], 1)
        return torch.eye(d_model, dtype=torch.float64) - taken @ taken.T


def duals(
    codes: Float[Tensor, "code d_model"], blind_to: Float[Tensor, "other d_model"]
) -> Float[Tensor, "code d_model"]:
    """Row i has product 1 with code i, 0 with all other codes and with `blind_to`."""
    return torch.linalg.pinv(torch.cat([codes, blind_to]))[:, : len(codes)].T
