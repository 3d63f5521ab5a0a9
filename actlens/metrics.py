"""How far an intervention moved an action chunk, as shares of a known difference."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Chunks = Float[Tensor, "*batch chunk joint"]


@dataclass(frozen=True)
class Projection:
    """The parts of the restored share, kept apart so that pairs can be pooled as a ratio of sums.

    `along` = <A_x - A_start, A_target - A_start>, `total` = |A_target - A_start|^2 and `moved` =
    |A_x - A_start|^2, over chunk positions and joints, in normalised action units.
    """

    along: Float[Tensor, "*batch"]
    total: Float[Tensor, "*batch"]
    moved: Float[Tensor, "*batch"]

    @property
    def share(self) -> Float[Tensor, "*batch"]:
        """The restored share: 0 = nothing happened, 1 = the target's actions; may leave [0, 1]."""
        return self.along / self.total

    @property
    def off_axis(self) -> Float[Tensor, "*batch"]:
        """|movement orthogonal to the difference| / |difference|: it moved somewhere else."""
        orthogonal = self.moved - self.along.square() / self.total
        return (orthogonal.clamp_min(0) / self.total).sqrt()


def project(moved: Chunks, start: Chunks, target: Chunks) -> Projection:
    """Project the movement `start -> moved` on the difference `start -> target`.

    Chunks are normalised actions, so that joints weigh by their spread in the demonstrations.
    Denoising starts at the corrupt scene and aims at the clean one, noising the other way round
    (Heimersheim and Nanda 2024; the share is the continuous counterpart of a logit difference).
    """
    delta, goal = moved - start, target - start
    inner = lambda a, b: (a * b).sum((-1, -2), dtype=torch.float64)
    return Projection(
        inner(delta, goal), inner(goal, goal).expand_as(inner(delta, delta)), inner(delta, delta)
    )


def rms(difference: Chunks) -> Float[Tensor, "*batch"]:
    """Root mean square over chunk positions and joints, in the units of `difference`."""
    return difference.square().mean((-1, -2)).sqrt()
