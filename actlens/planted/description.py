"""A policy whose answer is known, and what is known about it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from actlens.model.act import HookedACT
from actlens.planted.neurons import Role
from actlens.planted.stored import Stored


@dataclass(frozen=True)
class Truth:
    """The answer that an analysis should come to."""

    table_fraction: float
    """Of the answer, what is looked up cell by cell: 0 for anything distributed and smooth."""
    generalises: bool | None
    """Whether new scenes are answered rightly, provided that demonstrations follow a rule; None
    for what lies between."""
    site: str | None
    """The block whose MLP makes the answer (`decoder.0`); None if no single one was made to."""


@dataclass(frozen=True)
class Planted:
    """A valid policy, its truth, what it was made to answer, and the role of every neuron."""

    model: HookedACT
    name: str
    """Of the kind: `table`, `rule`, `shuffled`, …"""
    truth: Truth
    stored: Stored
    roles: tuple[Role, ...]
    """By neuron of the site's MLP; empty where it was trained."""
    entry: Int[np.ndarray, " neuron"]
    """Which valid entry of `stored` a table's cell belongs to, -1 for all others."""
    error: float
    """Largest absolute difference (normalised) between the stored answers and the model's."""

    @property
    def alpha(self) -> float:
        """The table's share."""
        return self.truth.table_fraction

    def neurons(self, role: Role) -> Int[np.ndarray, " n"]:
        """Numbers of the site's neurons that have a role."""
        return np.array([i for i, own in enumerate(self.roles) if own is role], dtype=np.int64)
