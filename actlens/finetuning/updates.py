"""How a part may change: by all of its numbers, in a random subspace, or along one key."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.finetuning.errors import FinetuningError
from actlens.finetuning.parts import size

Weights = Mapping[str, Tensor]
Flat = Float[Tensor, " free"]


class Space(Protocol):
    """The changes that an update allows to some weights, by free numbers that start at zero."""

    @property
    def n_free(self) -> int:
        """How many free numbers there are."""
        ...

    def changes(self, free: Flat) -> Float[Tensor, " weight"]:
        """What is added to the weights, laid end to end; as long as `free` is."""
        ...


class Update(Protocol):
    """A kind of change; equal lengths of free numbers make changes of equal Frobenius norm."""

    def on(self, weights: Weights) -> Space:
        """The changes that it allows to these weights."""
        ...


@dataclass(frozen=True)
class Whole:
    """Every number of the part is free."""

    def on(self, weights: Weights) -> Space:
        """All changes."""
        return _Every(size(weights))


@dataclass(frozen=True)
class Subspace:
    """A random subspace: every weight moves with one of a few free numbers, or against it.

    The same dimension for every part is an equal budget in the exact sense, whatever the shapes of
    its matrices (Li et al. 2018 measure the dimension that a task needs this way). The subspace is
    that of a count sketch (Charikar et al. 2002): each weight belongs to one free number, with a
    random sign, so the map is an isometry and costs one pass over the weights. A part that has no
    more numbers than that is free as a whole.
    """

    dimension: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dimension < 1:
            raise FinetuningError(f"A subspace has at least one dimension, not {self.dimension}.")

    def on(self, weights: Weights) -> Space:
        """The changes within the subspace."""
        n = size(weights)
        if n <= self.dimension:
            return _Every(n)
        like = next(iter(weights.values()))
        generator = torch.Generator().manual_seed(self.seed)
        # Shuffled turns, not independent draws: all numbers get equally many weights.
        order = torch.randperm(n, generator=generator)
        bucket = torch.empty(n, dtype=torch.long)
        bucket[order] = torch.arange(n) % self.dimension
        sign = torch.randint(2, (n,), generator=generator) * 2.0 - 1
        scale = sign / bucket.bincount()[bucket].sqrt()
        return _Sketch(self.dimension, bucket.to(like.device), scale.to(like))


@dataclass(frozen=True)
class AlongKey:
    """W' = W + u r^T for one matrix: the update of ROME at one key, of which only u is free.

    With r = C^-1 k* / (k*^T C^-1 k*) it writes u wherever the key is k*, and as little as it can
    elsewhere (Meng et al. 2022). ROME finds u by gradients on one request; so it is here, on as
    many scenes as there are.
    """

    reader: Float[Tensor, " neuron"]

    def on(self, weights: Weights) -> Space:
        """The changes along the key.

        Raises:
            FinetuningError: if the part is not one matrix that reads as many neurons.
        """
        shapes = [tuple(weight.shape) for weight in weights.values()]
        if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][1] != len(self.reader):
            raise FinetuningError(
                f"A change along a key of {len(self.reader)} neurons needs one matrix that reads "
                f"so many; the part has {shapes}."
            )
        like = next(iter(weights.values()))
        return _Outer(shapes[0][0], (self.reader / self.reader.norm()).to(like))


@dataclass(frozen=True)
class _Every:
    n_free: int

    def changes(self, free: Flat) -> Float[Tensor, " weight"]:
        return free


@dataclass(frozen=True)
class _Sketch:
    n_free: int
    bucket: Int[Tensor, " weight"]
    scale: Float[Tensor, " weight"]

    def changes(self, free: Flat) -> Float[Tensor, " weight"]:
        return free[self.bucket] * self.scale


@dataclass(frozen=True)
class _Outer:
    n_free: int
    reader: Float[Tensor, " neuron"]

    def changes(self, free: Flat) -> Float[Tensor, " weight"]:
        return (free[:, None] * self.reader).flatten()
