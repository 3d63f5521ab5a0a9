"""What a part of the policy does between neighbouring scenes: slopes, secants and the way across.

A table has plateaus: flat where it is looked at, with jumps in between. A smooth map goes across as
its slope says.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from actlens.mechanism.pairs import Neighbours
from actlens.mechanism.tail import Vectored

POINTS = 33
STILL = 1e-3
"""Normalised actions that differ by less do not tell anything."""


@dataclass(frozen=True)
class Between:
    """By pair; NaN where the two scenes' actions hardly differ."""

    slope: Float[np.ndarray, " pair"]
    """|J (x_j - x_i)| / |F(x_j) - F(x_i)|: 1 for a linear map, 0 on a plateau, large on a spike."""
    deviation: Float[np.ndarray, " pair"]
    """4 times the area between the way of the action, projected on the straight one, and a straight
    line: 0 for a linear map, 1 for one jump half way, more for detours."""

    @property
    def jump(self) -> Float[np.ndarray, " pair"]:
        """How much of the difference between two neighbours is a jump: the lesser of
        |1 - slope| and `deviation`, at most 1.

        0 for a linear map, 1 for a table, and in a mixture of both the table's share, since its
        plateaus leave the rule's share of the slope. A curve may have another slope than its
        secant, or leave the straight way, but neither by much where scenes are near; what jumps,
        whether from plateau to plateau, off a spike or by a detour, does both.
        """
        return np.minimum(np.minimum(np.abs(1 - self.slope), self.deviation), 1.0)


@torch.no_grad()
def between(run: Vectored, pairs: Neighbours, *, block: int = 64) -> Between:
    """All measures of the tail for every pair of neighbours, over all positions at once."""
    shares = torch.linspace(0, 1, POINTS, dtype=run.x.dtype)
    parts = []
    for start in range(0, len(pairs.first), block):
        some = slice(start, start + block)
        x, y = run.x[pairs.first[some]], run.x[pairs.second[some]]
        # The tail treats positions alike, so pairs x positions are one batch.
        fx, pushed = _pushed(run.tail, x, y - x)
        way = torch.stack([run.tail(p) for p in run.tail.on_the_way(x, y, shares)])
        parts.append(measured(run.tail(y) - fx, pushed, way, shares))
    return together(parts)


def measured(
    secant: Float[Tensor, "pair position joint"],
    pushed: Float[Tensor, "pair position joint"],
    way: Float[Tensor, "point pair position joint"],
    shares: Float[Tensor, " point"],
) -> Between:
    """The measures from what was computed.

    Args:
        secant: the difference of the answers.
        pushed: the Jacobian times the difference of the inputs.
        way: the answers on the way from one input to the other.
        shares: how far on the way, from 0 to 1.
    """
    secant, pushed, way = (x.double() for x in (secant, pushed, way))
    length = secant.flatten(1).norm(dim=1)
    slope = pushed.flatten(1).norm(dim=1) / length
    deviation = _deviation((way - way[0]).flatten(2), shares.double())
    still = length < STILL * secant[0].numel() ** 0.5
    of_pair = (torch.where(still, torch.nan, x) for x in (slope, deviation))
    return Between(*(x.cpu().numpy() for x in of_pair))


def together(parts: list[Between]) -> Between:
    """The pairs of all of them."""
    columns = ([getattr(part, name) for part in parts] for name in Between.__dataclass_fields__)
    return Between(*(np.concatenate(column) for column in columns))


def _pushed(
    function: Callable[[Tensor], Tensor], x: Float[Tensor, "*shape"], along: Float[Tensor, "*shape"]
) -> tuple[Tensor, Tensor]:
    """The answers, and the Jacobian times a direction."""
    with warnings.catch_warnings():
        # Torch scripts its own decompositions when forward differentiation is first used.
        warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated")
        with forward_ad.dual_level():
            pair = forward_ad.unpack_dual(function(forward_ad.make_dual(x, along)))
            assert pair.tangent is not None
            return pair.primal, pair.tangent


def _deviation(
    way: Float[Tensor, "point pair number"], shares: Float[Tensor, " point"]
) -> Float[Tensor, " pair"]:
    end = way[-1]
    progress = (way * end).sum(-1) / end.square().sum(-1).clamp_min(1e-30)
    return 4 * torch.trapezoid((progress - shares[:, None]).abs(), shares, dim=0)
