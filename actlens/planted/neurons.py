"""Neurons of a planted MLP: a function of what it reads, with the role of every neuron."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class Role(StrEnum):
    """What a planted neuron is there for."""

    TABLE = "table"
    """A cell of a lookup table."""
    RULE = "rule"
    """Part of a map that is the same everywhere."""
    CLEARING = "clearing"
    """Takes what the stream already holds out of the directions that are read."""
    DISTRACTOR = "distractor"
    """Active, and writes where nothing reads."""
    CANCELLING = "cancelling"
    """One of two that write opposite things: without effect together."""
    UNUSED = "unused"
    """Never on, writes nothing."""


@dataclass(frozen=True)
class Neurons:
    """f(x) = relu(x @ weight.T + bias) @ value + constant, neuron by neuron; float64."""

    weight: Float[Tensor, "neuron d"]
    bias: Float[Tensor, " neuron"]
    value: Float[Tensor, "neuron target"]
    constant: Float[Tensor, " target"]
    roles: tuple[Role, ...]
    entry: Int[np.ndarray, " neuron"]
    """Which stored vector a cell of a table belongs to; -1 for everything else."""

    def __len__(self) -> int:
        return len(self.bias)

    def coefficients(self, inputs: Float[Tensor, "n d"]) -> Float[Tensor, "n neuron"]:
        """What is recalled."""
        return (inputs @ self.weight.T + self.bias).relu()

    def __call__(self, inputs: Float[Tensor, "n d"]) -> Float[Tensor, "n target"]:
        """The function."""
        return self.coefficients(inputs) @ self.value + self.constant

    def times(self, factor: float) -> "Neurons":
        """A multiple of the function, of the same neurons."""
        return replace(self, value=factor * self.value, constant=factor * self.constant)

    def at(self, order: Int[np.ndarray, " kept"]) -> "Neurons":
        """Some of the neurons, in another order; the constant stays."""
        index = torch.from_numpy(order)
        return Neurons(
            self.weight[index],
            self.bias[index],
            self.value[index],
            self.constant,
            tuple(self.roles[i] for i in order),
            self.entry[order],
        )

    def rescaled(self, factor: Float[Tensor, " neuron"]) -> "Neurons":
        """The same function: a positive factor moved from each value to its key."""
        column = factor[:, None]
        return replace(
            self, weight=self.weight * column, bias=self.bias * factor, value=self.value / column
        )


def make_neurons(
    weight: Float[Tensor, "neuron d"],
    bias: Float[Tensor, " neuron"],
    value: Float[Tensor, "neuron target"],
    role: Role,
    *,
    constant: Float[Tensor, " target"] | None = None,
    entry: Int[np.ndarray, " neuron"] | None = None,
) -> Neurons:
    """Neurons of one role."""
    return Neurons(
        weight,
        bias,
        value,
        value.new_zeros(value.shape[1]) if constant is None else constant,
        (role,) * len(bias),
        np.full(len(bias), -1) if entry is None else entry,
    )


def together(parts: Sequence[Neurons]) -> Neurons:
    """The sum of functions, all their neurons side by side."""
    return Neurons(
        torch.cat([part.weight for part in parts]),
        torch.cat([part.bias for part in parts]),
        torch.cat([part.value for part in parts]),
        torch.stack([part.constant for part in parts]).sum(0),
        tuple(role for part in parts for role in part.roles),
        np.concatenate([part.entry for part in parts]),
    )
