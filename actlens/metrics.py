"""How far an intervention moved an action chunk, as shares of a known difference and in units.

Everything is kept as sums, so that scenes can be pooled as ratios of sums: a pair weighs by how
much its two actions differ, and a mean of ratios would be ruled by pairs that hardly do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.config import ACTConfig
from actlens.scene import Scene

Chunks = Float[Tensor, "*batch chunk joint"]
Weights = Float[Tensor, " chunk"]


class Direction(StrEnum):
    """What is run and what is put in; the two answer different questions, so both are reported."""

    DENOISE = "denoise"
    """Run the corrupt scene, put the clean activation in: is the part sufficient?"""
    NOISE = "noise"
    """Run the clean scene, put the corrupt activation in: is the part necessary?"""


class Positions(StrEnum):
    """Which positions of an action chunk are measured."""

    WHOLE = "whole"
    """All that the policy predicts."""
    EXECUTED = "executed"
    """Those that are carried out before the next inference; under temporal ensembling all, by
    their weights."""


def position_weights(
    config: ACTConfig, positions: Positions = Positions.WHOLE, scenes: Sequence[Scene] = ()
) -> Weights:
    """What each chunk position weighs in a metric, float64.

    Args:
        scenes: whose demonstrations may end inside the chunk. No loss was taken on the positions
            that repeat a demonstration's last action, so they weigh nothing.
    """
    position = torch.arange(config.chunk)
    weights = torch.ones(config.chunk, dtype=torch.float64)
    if positions is Positions.EXECUTED and config.temporal_ensemble_coeff is not None:
        # Once the ensemble is full, position k is the (chunk - 1 - k)-th oldest prediction.
        age = (config.chunk - 1 - position).double()
        weights = torch.exp(-config.temporal_ensemble_coeff * age)
    elif positions is Positions.EXECUTED:
        weights[config.n_action_steps :] = 0.0
    for scene in scenes:
        if scene.action_is_pad is not None:
            padded = scene.action_is_pad[: config.chunk].to(position.device)
            weights[: len(padded)][padded] = 0.0
    return weights


def executed_positions(config: ACTConfig) -> tuple[int, ...]:
    """The chunk positions that ever reach the arm: all of them with a temporal ensemble."""
    weights = position_weights(config, Positions.EXECUTED)
    return tuple(weights.nonzero().flatten().tolist())


class Along(Enum):
    """The axis of a chunk that a sum keeps; its value is the axis that the sum runs over."""

    JOINT = -2
    POSITION = -1


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

    @property
    def cosine(self) -> Float[Tensor, "*batch"]:
        """Of the movement with the difference: 1 = straight at the target, 0 = across.

        NaN where less than a ten-thousandth of the difference moved: rounding has a direction too.
        """
        cosine = self.along / (self.moved * self.total).sqrt()
        return torch.where(self.moved > 1e-8 * self.total, cosine, torch.nan)

    @property
    def distance_recovered(self) -> Float[Tensor, "*batch"]:
        """1 - |A_target - A_x| / |A_target - A_start|: 1 = arrived, negative = farther than before.

        Unlike the share it cannot exceed 1, and movement off the axis counts against it.
        """
        left = self.total - 2 * self.along + self.moved
        return 1 - (left.clamp_min(0) / self.total).sqrt()


def project(
    moved: Chunks,
    start: Chunks,
    target: Chunks,
    *,
    weights: Weights | None = None,
    along: Along | None = None,
) -> Projection:
    """Project the movement `start -> moved` on the difference `start -> target`.

    Chunks are normalised actions, so that joints weigh by their spread in the demonstrations.
    Denoising starts at the corrupt scene and aims at the clean one, noising the other way round
    (Heimersheim and Nanda 2024; the share is the continuous counterpart of a logit difference).

    Args:
        weights: of the chunk positions; all alike if not given.
        along: keep this axis: one projection for each joint, or for each chunk position. Their
            `along`s add up to the whole one's.
    """
    # In float64, or what is left at the target would be rounding alone.
    delta, goal = (moved - start).double(), (target - start).double()
    weighted = goal if weights is None else goal * weights[:, None]
    dims = (-2, -1) if along is None else along.value
    square = delta.square() if weights is None else delta.square() * weights[:, None]
    inner = (delta * weighted).sum(dims)
    return Projection(inner, (goal * weighted).sum(dims).expand_as(inner), square.sum(dims))


@dataclass(frozen=True)
class Change:
    """How far actions moved in their own units, as sums over weighted chunk positions."""

    signed: Float[Tensor, "*batch joint"]
    size: Float[Tensor, "*batch joint"]
    """Of absolute changes."""
    by_position: Float[Tensor, "*batch chunk"]
    """Absolute changes, averaged over joints, times the position's weight."""


def change(moved: Chunks, start: Chunks, *, weights: Weights | None = None) -> Change:
    """The movement `start -> moved` in the units of the chunks: divide by the weights' sum.

    Take dataset units: degrees, radians or percent of a gripper, whatever the dataset records.
    """
    difference = (moved - start).double()
    if weights is not None:
        difference = difference * weights[:, None]
    size = difference.abs()
    return Change(difference.sum(-2), size.sum(-2), size.mean(-1))


def rms(difference: Chunks, *, weights: Weights | None = None) -> Float[Tensor, "*batch"]:
    """Root mean square over chunk positions and joints, in the units of `difference`."""
    squares = difference.square()
    if weights is None:
        return squares.mean((-1, -2)).sqrt()
    return ((squares.mean(-1) * weights).sum(-1) / weights.sum()).sqrt()
