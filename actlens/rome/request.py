"""What an edit is asked for: in this scene, at these chunk positions, these actions instead."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.config import ACTION_KEY
from actlens.metrics import executed_positions
from actlens.model.act import HookedACT
from actlens.model.units import spread_of
from actlens.rome.errors import EditError
from actlens.rome.statistics import KeyStatistics
from actlens.scene import Scene
from actlens.text import did_you_mean, quoted

Chunk = Float[Tensor, "chunk joint"]


@dataclass(frozen=True)
class Offset:
    """What is added to the policy's own actions, by joint, in dataset units."""

    by_joint: Mapping[str, float]

    def added_to(self, actions: Chunk, joints: Sequence[str]) -> Chunk:
        """The actions with the offset.

        Raises:
            EditError: if a joint does not exist, or nothing is asked for.
        """
        if not self.by_joint:
            raise EditError("An offset on no joint asks for nothing.")
        moved = actions.clone()
        for name, amount in self.by_joint.items():
            if name not in joints:
                raise EditError(
                    f"The policy has no joint {quoted(name)}; it has {', '.join(joints)}."
                    f"{did_you_mean(name, joints)}"
                )
            moved[:, list(joints).index(name)] += amount
        return moved


@dataclass(frozen=True)
class Request:
    """In this scene, at these positions of the chunk, do this instead."""

    scene: Scene
    target: Chunk | Offset
    """A whole chunk in dataset units, of which the positions are read; or what is added to what the
    policy does there now."""
    positions: tuple[int, ...] = ()
    """Of the chunk; those that are executed, if empty: the first `n_action_steps`, and all under
    temporal ensembling."""
    neighbours: tuple[Scene, ...] = ()
    """Scenes that are to count as the same, such as the frames around: k* is the mean over them."""


@dataclass(frozen=True)
class JointLimits:
    """Between what the arm's targets may lie, in dataset units, joint by joint."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    origin: str
    """What they are, for messages: "the demonstrations span"."""

    @classmethod
    def demonstrated(cls, statistics: KeyStatistics) -> Self | None:
        """What the actions span that the statistics were taken beside; None if there were none."""
        low, high = (tuple(bounds) for bounds in statistics.action_span.tolist())
        return cls(low, high, "the demonstrations span") if low else None

    def require_inside(self, target: Chunk, present: Chunk, joints: Sequence[str]) -> None:
        """Refuse targets beyond the limits, where the request moves anything.

        Raises:
            EditError: naming the joint, the position and the limits.
        """
        if not len(self.low) == len(self.high) == len(joints):
            raise EditError(
                f"The limits are of {len(self.low)} and {len(self.high)} joints; the policy has "
                f"{len(joints)}."
            )
        low, high = (torch.tensor(x).to(target) for x in (self.low, self.high))
        slack = 1e-4 * (high - low)  # statistics are stored in float32
        outside = (target < low - slack) | (target > high + slack)
        outside &= (target - present).abs() > slack
        if outside.any():
            row, joint = outside.nonzero()[0].tolist()
            raise EditError(
                f"The target of {joints[joint]} is {float(target[row, joint]):.4g}; {self.origin} "
                f"{self.low[joint]:.4g} to {self.high[joint]:.4g}. Ask for less, or give limits "
                "if the arm can go there."
            )


@dataclass(frozen=True)
class Resolved:
    """A request with its numbers: which positions, and what the network must say there."""

    positions: tuple[int, ...]
    target: Float[Tensor, "position joint"]
    """Normalised."""


def resolve(
    model: HookedACT, request: Request, present: Chunk, limits: JointLimits | None
) -> Resolved:
    """Check a request and put it in the network's units.

    Args:
        present: the policy's normalised actions in the request's scene.
        limits: not checked if None.

    Raises:
        EditError: if a position or joint does not exist, the target has another shape, is not
            finite, or lies beyond the limits.
    """
    config = model.config
    positions = request.positions or executed_positions(config)
    wrong = [k for k in positions if not 0 <= k < config.chunk]
    if wrong or len(set(positions)) < len(positions):
        raise EditError(
            f"The positions {positions} must be different ones out of 0..{config.chunk - 1}."
        )
    now = model.normalizer.unnormalize(ACTION_KEY, present)
    if isinstance(request.target, Offset):
        target = request.target.added_to(now, config.joints)
    else:
        target = request.target.to(now)
        if target.shape != now.shape:
            raise EditError(
                f"The target has shape {tuple(target.shape)}; give a whole chunk, "
                f"{tuple(now.shape)}, of which the positions are read."
            )
    at = list(positions)
    if not torch.isfinite(target[at]).all():
        raise EditError("The target holds NaN or infinite values.")
    if limits is not None:
        limits.require_inside(target[at], now[at], config.joints)
    # As a change, so that asking for what is done already asks for exactly nothing.
    spread = spread_of(model, ACTION_KEY, now)
    change = (target - now)[at]
    if (still := change.any(0) & (spread == 0)).any():
        joint = config.joints[int(still.nonzero()[0])]
        raise EditError(
            f"{joint} never moved in the policy's training data, and no weights can move it."
        )
    return Resolved(positions, present[at] + torch.where(change == 0, change, change / spread))
