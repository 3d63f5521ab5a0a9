"""Activations that equal the base run's except at a few positions."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The base run's activation with some positions (tokens, queries) replaced.

    Entry i stands in batch row `batch[i]` at position `index[i]`; no two entries share a place, and
    all other places are as in the base run. The entries lie on the axis of positions, so that what
    is done to each position alone can be done to `values` as it is.
    """

    batch: Int[Tensor, " entry"]
    index: Int[Tensor, " entry"]
    values: Float[Tensor, "1 entry *rest"]
    n_batch: int
    is_even: bool = False
    """Whether all batch rows replace as many positions, and follow one another."""

    @classmethod
    def even(
        cls, index: Int[Tensor, "batch changed"], values: Float[Tensor, "batch changed *rest"]
    ) -> "Rows":
        """As many positions in every batch row."""
        n_batch, changed = index.shape
        batch = torch.arange(n_batch, device=index.device).repeat_interleave(changed)
        return cls(batch, index.flatten(), values.flatten(0, 1)[None], n_batch, is_even=True)

    @classmethod
    def where(
        cls, chosen: Bool[Tensor, "batch position"], whole: Float[Tensor, "batch position *rest"]
    ) -> "Rows":
        """Of a whole activation, the chosen positions."""
        batch, index = chosen.nonzero(as_tuple=True)
        return cls(batch, index, whole[batch, index][None], len(chosen))

    @property
    def per_row(self) -> float:
        """Positions replaced in a batch row, on average."""
        return len(self.index) / self.n_batch

    def mask(self, n_positions: int) -> Bool[Tensor, "batch position"]:
        """True at the replaced places."""
        here = torch.zeros(self.n_batch, n_positions, dtype=torch.bool, device=self.index.device)
        here[self.batch, self.index] = True
        return here

    def grid(self, n_positions: int) -> Int[Tensor, "batch changed"]:
        """The positions by batch row; rows that replace fewer are filled up with others."""
        if self.is_even:
            return self.index.view(self.n_batch, -1)
        mask = self.mask(n_positions)
        return mask.byte().argsort(dim=1, descending=True)[:, : int(mask.sum(1).max())]

    def holding(self, values: Float[Tensor, "1 entry *rest"]) -> "Rows":
        """Other values at the same places."""
        return replace(self, values=values)

    def on_grid(
        self, grid: Int[Tensor, "batch changed"], base: Float[Tensor, "1 position *rest"]
    ) -> Float[Tensor, "batch changed *rest"]:
        """The values on the grid; the base run's where the grid was filled up."""
        if self.is_even:
            return self.values[0].unflatten(0, grid.shape)
        return self.dense(base)[torch.arange(len(grid), device=grid.device)[:, None], grid]

    def shares_places(self, other: "Rows") -> bool:
        """Whether both replace the same positions, in the same order."""
        return self.index is other.index

    def covers(self, other: "Rows", n_positions: int) -> bool:
        """Whether every place of the other is also one of these."""
        return bool(self.mask(n_positions)[other.batch, other.index].all())

    def dense(self, base: Float[Tensor, "1 position *rest"]) -> Float[Tensor, "batch position ..."]:
        """The whole activation, in memory of its own."""
        whole = base.expand(self.n_batch, *base.shape[1:])
        whole = whole.clone(memory_format=torch.contiguous_format)
        whole[self.batch, self.index] = self.values[0]
        return whole

    def of(self, base: Float[Tensor, "1 position *rest"]) -> Float[Tensor, "1 entry ..."]:
        """The base run's values at the same positions."""
        return base[:, self.index]


Value = Tensor | Rows
"""A changed activation: whole, one batch row per intervention, or as the rows that differ."""


def whole(value: Value | None, base: Float[Tensor, "1 ..."]) -> Float[Tensor, "batch ..."]:
    """The activation as a tensor; the base run's, with a batch axis of one, where it is None."""
    if value is None:
        return base
    return value.dense(base) if isinstance(value, Rows) else value
