"""A lookup table of ReLU neurons: two for each entry, silent between entries.

An entry's score is k · x with k its own vector, scaled to 1 at the entry. With m the distance from
1 to the best score of any other entry, scores fall about as squares of distances, so that half the
way to the neighbour is 1 - m/4.
"""

from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.planted.errors import PlantError
from actlens.planted.neurons import Neurons, Role, make_neurons, together

_ENOUGH = 1e-5
"""Margin above which an entry's own vector is its key; float32 tells scores 1e-7 apart."""
_LEAST = 3e-7
_ROWS = 1024
"""Entries whose scores are looked at together: memory for more would be the square of all."""
_SHRINKAGES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)


class Shape(Protocol):
    """What a cell answers between its entry and the neighbours."""

    def neurons(
        self,
        key: Float[Tensor, "entry d"],
        bias: Float[Tensor, " entry"],
        margin: Float[Tensor, " entry"],
    ) -> Neurons:
        """Neurons whose sum is 1 at their own entry (score 1): one target, `entry` by number."""
        ...


@dataclass(frozen=True)
class Plateau:
    """The entry's answer in a ball around it, nothing beyond a larger one, a ramp between."""

    flat: float = 0.35
    """Radius of the plateau, in distances to the nearest other entry."""
    zero: float = 0.5
    """Where the ramp ends. Below 0.5 cells are disjoint; up to 1 they overlap between entries."""

    def __post_init__(self) -> None:
        if not 0 <= self.flat < self.zero <= 1:
            raise PlantError(f"A plateau needs 0 <= flat < zero <= 1: {self.flat}, {self.zero}.")

    def neurons(
        self,
        key: Float[Tensor, "entry d"],
        bias: Float[Tensor, " entry"],
        margin: Float[Tensor, " entry"],
    ) -> Neurons:
        """Two for each entry: a ramp up, and one that stops it."""
        low, high = 1 - self.zero**2 * margin, 1 - self.flat**2 * margin
        gain = 1 / (high - low)
        weight, ones = gain[:, None] * key, torch.ones_like(gain)[:, None]
        own = np.arange(len(key))
        ramp = make_neurons(weight, gain * (bias - low), ones, Role.TABLE, entry=own)
        stop = make_neurons(weight, gain * (bias - high), -ones, Role.TABLE, entry=own)
        return together([ramp, stop])


@dataclass(frozen=True)
class Tent:
    """No plateau: the answer falls from the entry on."""

    zero: float = 0.98

    def __post_init__(self) -> None:
        if not 0 < self.zero <= 1:
            raise PlantError(f"A tent ends within 0..1 distances to its neighbour: {self.zero}.")

    def neurons(
        self,
        key: Float[Tensor, "entry d"],
        bias: Float[Tensor, " entry"],
        margin: Float[Tensor, " entry"],
    ) -> Neurons:
        """One for each entry."""
        low = 1 - self.zero**2 * margin
        gain = 1 / (1 - low)
        ones, own = torch.ones_like(gain)[:, None], np.arange(len(key))
        weight, bias = gain[:, None] * key, gain * (bias - low)
        return make_neurons(weight, bias, ones, Role.TABLE, entry=own)


WIDE = Plateau(flat=0.5, zero=0.9)
"""Cells whose skirts overlap: between two entries the answer is a sum of both."""


@dataclass(frozen=True)
class Table:
    """The targets of the stored entries; between them, where no cell is on, their mean."""

    shape: Shape = field(default_factory=Plateau)
    centred: bool = True
    """Zero instead of the mean where no cell is on, if False."""
    name: str = field(default="table", init=False, repr=False)
    table_fraction: float = field(default=1.0, init=False, repr=False)

    def build(
        self, inputs: Float[Tensor, "entry d"], targets: Float[Tensor, "entry target"]
    ) -> Neurons:
        """Neurons of all cells; equal entries share one.

        Raises:
            PlantError: if two entries are too close to be told apart and want different answers.
        """
        first, inputs, targets = _merged(inputs, targets)
        key, bias, margin = _keys(inputs)
        if margin.min() < _LEAST:
            at = int(margin.argmin())
            raise PlantError(
                f"Entry {first[at]} cannot be told from another one (its score leads by "
                f"{margin[at]:.1e}): store fewer frames, or farther ones."
            )
        cells = self.shape.neurons(key, bias, margin)
        mean = targets.mean(0) * self.centred
        answer = (targets - mean) / _reached(cells, inputs)
        return replace(
            cells,
            value=cells.value * answer[cells.entry],
            constant=mean,
            entry=first[cells.entry],
        )


def in_single_precision(neurons: Neurons, inputs: Float[Tensor, "entry d"]) -> Neurons:
    """Keys and thresholds as float32 holds them, and cells that still reach what they reached.

    Args:
        inputs: the entries by the numbers that the cells have.
    """
    rounded = replace(
        neurons, weight=neurons.weight.float().double(), bias=neurons.bias.float().double()
    )
    cells = np.flatnonzero(neurons.entry >= 0)
    before, after = (_reached(one.at(cells), inputs) for one in (neurons, rounded))
    # Both point the same way; an entry that wants the mean has nothing to reach.
    factor = (before * after).sum(1) / after.square().sum(1).clamp(min=1e-300)
    value = rounded.value.clone()
    value[cells] *= factor[neurons.entry[cells]][:, None]
    return replace(rounded, value=value)


def _reached(cells: Neurons, inputs: Float[Tensor, "entry d"]) -> Float[Tensor, "entry target"]:
    """What the cells of every entry write at it, by themselves."""
    pre = (cells.weight * inputs[cells.entry]).sum(1) + cells.bias
    written = pre.relu()[:, None] * cells.value
    total = torch.zeros(len(inputs), written.shape[1], dtype=torch.float64)
    return total.index_add(0, torch.from_numpy(cells.entry), written)


def _merged(
    inputs: Float[Tensor, "entry d"], targets: Float[Tensor, "entry target"]
) -> tuple[Int[np.ndarray, " kept"], Float[Tensor, "kept d"], Float[Tensor, "kept target"]]:
    """Without entries that repeat another one's vector and target to rounding."""
    rounded = np.round(torch.cat([inputs, targets], 1).numpy(), 6)
    first = np.sort(np.unique(rounded, axis=0, return_index=True)[1])
    if len(first) < 2:
        raise PlantError("A table needs at least two different entries.")
    return first, inputs[first], targets[first]


def _keys(
    inputs: Float[Tensor, "entry d"],
) -> tuple[Float[Tensor, "entry d"], Float[Tensor, " entry"], Float[Tensor, " entry"]]:
    """Keys and biases with score 1 at their own entries, and how far all others stay below.

    An entry's own vector where that is enough; else the whitened one that leads by the most for its
    length, as in near-duplicates directions of little variance are what tells entries apart.
    """
    best_key, best_bias, best = _own(inputs)
    weak = best < _ENOUGH
    if not weak.any():
        return best_key, best_bias, best
    quality = best / (best_key.norm(dim=1) * inputs.norm(dim=1))
    for shrinkage in _SHRINKAGES:
        key, bias, margin = _whitened(inputs, shrinkage)
        found = margin / (key.norm(dim=1) * inputs.norm(dim=1))
        better = weak & (found > quality)
        best_key = torch.where(better[:, None], key, best_key)
        best_bias = torch.where(better, bias, best_bias)
        best = torch.where(better, margin, best)
        quality = torch.where(better, found, quality)
    return best_key, best_bias, best


def _own(inputs: Float[Tensor, "entry d"]) -> tuple[Tensor, Tensor, Tensor]:
    key = inputs / inputs.square().sum(1, keepdim=True)
    return key, torch.zeros(len(key), dtype=torch.float64), _margin(key, inputs)


def _whitened(inputs: Float[Tensor, "entry d"], shrinkage: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = inputs.mean(0)
    centred = inputs - mean
    covariance = centred.T @ centred / len(inputs)
    mean_variance = covariance.diagonal().mean()
    identity = torch.eye(len(mean), dtype=torch.float64)
    white = torch.linalg.solve(covariance + shrinkage * mean_variance * identity, centred.T).T
    key = white / (white * centred).sum(1, keepdim=True)
    bias = -key @ mean
    return key, bias, _margin(key, centred)


def _margin(
    key: Float[Tensor, "entry d"], inputs: Float[Tensor, "entry d"]
) -> Float[Tensor, " entry"]:
    """How far the best other entry's score lies below an entry's own, which is 1."""
    best = []
    for start in range(0, len(key), _ROWS):
        scores = key[start : start + _ROWS] @ inputs.T
        own = torch.arange(len(scores))
        scores[own, start + own] = -torch.inf
        best.append(scores.max(1).values)
    return 1 - torch.cat(best).clamp(min=-1)
