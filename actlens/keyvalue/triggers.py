"""The entries at which each neuron fires most, kept while a dataset of any length streams by."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Triggers:
    """The strongest entries of every neuron, in descending order (Geva et al. 2020, section 3).

    A neuron that fired at fewer entries than were asked for has NaN and -1 in the rest.
    """

    coefficient: Float[np.ndarray, "neuron top"]
    episode: Int[np.ndarray, "neuron top"]
    """Numbered in the order in which episodes came by."""
    frame: Int[np.ndarray, "neuron top"]
    position: Int[np.ndarray, "neuron top"]
    traits: Float[np.ndarray, "neuron top trait"]


Described = Float[Tensor, "neuron candidate 3+trait"]
"""Number of the episode, frame, place of the position, then the traits; float64 holds all."""


class TopEntries:
    """The k largest of all that is offered, for every neuron; memory does not grow."""

    def __init__(self, n_neurons: int, k: int, n_traits: int):
        self._k = k
        self._values = torch.full((n_neurons, k), -torch.inf)
        shape = (n_neurons, k, 3 + n_traits)
        self._described = torch.full(shape, torch.nan, dtype=torch.float64)

    def offer(
        self,
        values: Float[Tensor, "neuron candidate"],
        describe: Callable[[Int[Tensor, "chosen 1"], Int[Tensor, "chosen best"]], Described],
    ) -> None:
        """Take in candidates; those that are not positive are none.

        Args:
            describe: what is to be known of some candidates of some neurons.
        """
        beaten = values.amax(1) > self._values[:, -1].clamp_min(0)
        if not beaten.any():
            return
        neurons = beaten.nonzero()
        at = neurons[:, 0]
        best = values[at].topk(min(self._k, values.shape[1]), dim=1)
        fired = torch.where(best.values > 0, best.values, -torch.inf)
        merged = torch.cat([self._values[at], fired], 1).topk(self._k, dim=1)
        described = torch.cat([self._described[at], describe(neurons, best.indices)], 1)
        order = merged.indices[..., None].expand(-1, -1, described.shape[2])
        self._values[at], self._described[at] = merged.values, described.gather(1, order)

    def triggers(self, positions: Int[np.ndarray, " position"]) -> Triggers:
        """What was kept; `positions` are what the places of positions mean."""
        values, known = self._values.numpy(), self._described.numpy()
        empty = ~np.isfinite(values)
        whole = lambda i: np.where(empty, -1, np.nan_to_num(known[..., i])).astype(np.int64)
        return Triggers(
            np.where(empty, np.nan, values),
            whole(0),
            whole(1),
            np.where(empty, -1, positions[whole(2).clip(0)]),
            np.where(empty[..., None], np.nan, known[..., 3:]).astype(np.float32),
        )
