"""What the tail does between neighbouring scenes: slopes against secants, and the way across.

A table has plateaus: flat where it is looked at, with jumps in between. A smooth map goes across as
its slope says.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from actlens.mechanism.pairs import Neighbours
from actlens.mechanism.tail import Vectored

_POINTS = 33
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


@torch.no_grad()
def between(run: Vectored, pairs: Neighbours, *, block: int = 64) -> Between:
    """Both for every pair of neighbours, over all positions at once."""
    slopes, deviations = [], []
    shares = torch.linspace(0, 1, _POINTS, dtype=run.x.dtype)
    for start in range(0, len(pairs.first), block):
        some = slice(start, start + block)
        x, y = run.x[pairs.first[some]], run.x[pairs.second[some]]
        # The tail treats positions alike, so pairs x positions are one batch.
        fx, pushed = _pushed(run, x, y - x)
        secant = (run.tail(y) - fx).double()
        length = secant.flatten(1).norm(dim=1)
        slopes.append(pushed.double().flatten(1).norm(dim=1) / length)
        way = torch.stack([run.tail(p).double() for p in run.tail.on_the_way(x, y, shares)])
        deviations.append(_deviation((way - way[0]).flatten(2), shares.double()))
        still = length < STILL * secant[0].numel() ** 0.5
        slopes[-1][still] = deviations[-1][still] = torch.nan
    return Between(torch.cat(slopes).cpu().numpy(), torch.cat(deviations).cpu().numpy())


def _pushed(
    run: Vectored, x: Float[Tensor, "pair position d_model"], along: Tensor
) -> tuple[Float[Tensor, "pair position joint"], Float[Tensor, "pair position joint"]]:
    """The actions, and the Jacobian times a direction."""
    with warnings.catch_warnings():
        # Torch scripts its own decompositions when forward differentiation is first used.
        warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated")
        with forward_ad.dual_level():
            pair = forward_ad.unpack_dual(run.tail(forward_ad.make_dual(x, along)))
            assert pair.tangent is not None
            return pair.primal, pair.tangent


def _deviation(
    way: Float[Tensor, "point pair number"], shares: Float[Tensor, " point"]
) -> Float[Tensor, " pair"]:
    end = way[-1]
    progress = (way * end).sum(-1) / end.square().sum(-1).clamp_min(1e-30)
    return 4 * torch.trapezoid((progress - shares[:, None]).abs(), shares, dim=0)
