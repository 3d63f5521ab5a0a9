"""What is to be written where, as the solvers of v* see it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.interventions.mlp_runs import MLPRuns
from actlens.interventions.rest import Rest
from actlens.rome.metric import Readers
from actlens.rome.request import Resolved

Write = Float[Tensor, "d_model direction"]
"""An edit in units of its cost: it writes `write @ inverse_root.T @ along @ h` at key h, and the
drift E|change of the MLP's output|^2 over the data is the square of its norm."""


@dataclass(frozen=True)
class Problem:
    """Find the smallest write after which every point says its target.

    A point is one chunk position of one request. Its action depends on what is written in its unit:
    at that position alone behind the last decoder MLP, at all of the scene's positions elsewhere.
    """

    rest: Rest
    output: Float[Tensor, "unit position d_model"]
    """What the MLP writes now."""
    reading: Float[Tensor, "direction unit*position"]
    """How much of each direction of a write arrives at each of the units' positions."""
    target: Float[Tensor, "point joint"]
    """Normalised."""
    unit: Int[Tensor, " point"]
    chunk_position: Int[Tensor, " point"]
    """Where in the unit's actions the point stands."""
    request: Int[Tensor, " point"]
    """Which request the point belongs to."""

    @classmethod
    def of(cls, runs: MLPRuns, readers: Readers, resolved: Sequence[Resolved]) -> Self:
        """The problem of some requests, one scene of `runs` each, for keys read by `readers`."""
        request = torch.tensor([i for i, one in enumerate(resolved) for _ in one.positions])
        position = torch.tensor([k for one in resolved for k in one.positions])
        target = torch.cat([one.target for one in resolved])
        if runs.rest.positionwise:
            rest = runs.rest.at(request, position)
            output, keys = (x[request, position][:, None] for x in (runs.output, runs.keys))
            unit, place = torch.arange(len(request)), torch.zeros_like(request)
        else:
            rest, output, keys, unit, place = runs.rest, runs.output, runs.keys, request, position
        reading = readers.inverse_root.T @ (readers.along @ keys.flatten(0, 1).to(readers.along).T)
        return cls(rest, output, reading, target, unit, place, request)

    @property
    def nothing(self) -> Write:
        """The write that changes nothing."""
        return self.reading.new_zeros(self.output.shape[-1], len(self.reading))

    def written(self, write: Write) -> Float[Tensor, "unit position d_model"]:
        """What a write adds to the MLP's output."""
        return (write @ self.reading).T.view(self.output.shape)

    def actions(
        self, written: Float[Tensor, "unit position d_model"]
    ) -> Float[Tensor, "point joint"]:
        """What the points say then; gradients pass."""
        actions = self.rest(self.output + written.to(self.output))
        return actions[self.unit, self.chunk_position]

    def missing(self, write: Write) -> Float[Tensor, "point joint"]:
        """What is left to the targets, in float64 on the CPU."""
        with torch.no_grad():
            return (self.target - self.actions(self.written(write))).double().cpu()
