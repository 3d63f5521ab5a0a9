"""The ridge that a key's second moment needs, and how it is chosen.

Behind a ReLU the moment C is singular: neurons that are never active, and more neurons than
directions in which keys vary. ROME inverts it as it is, in float32; here
C_ridge = C + ridge * mean eigenvalue * I.

A small ridge lets an edit hide in directions that the data hardly enter. Beyond the data it was
fitted on that is an illusion: with too small a ridge an edit moves *more* elsewhere, and its norm
explodes. A large one ignores C, and spills along everything that keys have in common. In between,
the drift on episodes that C was not fitted on has a minimum: that is the rule.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.rome.errors import EditError
from actlens.rome.moments import Moment

RIDGES = tuple(10.0**exponent for exponent in range(-8, 2))
"""Where the rule looks, in mean eigenvalues."""
DEFAULT_RIDGE = 1e-2
"""Where there are not two episodes to choose by."""
_AS_GOOD = 1.05


@dataclass(frozen=True)
class RidgeCurve:
    """Drift on episodes that the moment was not fitted on, by ridge; empty if there were none.

    `drift` is the root mean square, over keys of other episodes, of what a unit write at one key
    writes there: 0.05 means that 5 % of an edit leaks.
    """

    ridges: tuple[float, ...]
    drift: tuple[float, ...]

    @property
    def chosen(self) -> float:
        """The largest ridge whose drift is within 5 % of the least: of equals, the smaller edit."""
        if not self.ridges:
            return DEFAULT_RIDGE
        enough = _AS_GOOD * min(self.drift)
        return max(r for r, d in zip(self.ridges, self.drift, strict=True) if d <= enough)


def held_out_drift(
    halves: tuple[Moment, Moment] | None,
    keys: tuple[Float[Tensor, "first neuron"], Float[Tensor, "second neuron"]],
    ridges: tuple[float, ...] = RIDGES,
) -> RidgeCurve:
    """Edit at keys of one half of the episodes, look at the other half, and the other way round.

    A unit write at key k with C_a writes u^T h / (u^T k) at another key h, u = C_a^-1 k; its mean
    square over the other half is u^T C_b u / (u^T k)^2. As in use, k's own episode is in C_a.

    Args:
        halves: the moments over either half of the episodes; None if there is but one. No curve
            comes of halves without any active neuron.
        keys: some keys of either half.
    """
    if halves is None or not all(map(len, keys)) or not all(half.any() for half in halves):
        return RidgeCurve((), ())
    drift = []
    for ridge in ridges:
        squares = []
        for (fitted, other), some in zip((halves, halves[::-1]), keys, strict=True):
            k = some.to(fitted).T
            u = torch.cholesky_solve(k, ridged_factor(fitted, ridge))
            squares.append((u * (other @ u)).sum(0) / (u * k).sum(0).square())
        drift.append(float(torch.cat(squares).mean().sqrt()))
    return RidgeCurve(ridges, tuple(drift))


def ridged_factor(moment: Moment, ridge: float) -> Float[Tensor, "neuron neuron"]:
    """The lower Cholesky factor of C + ridge * mean eigenvalue * I.

    Raises:
        EditError: if the ridge is not positive, or too small for the sum to be positive definite,
            or the moment is zero.
    """
    if not moment.any():
        raise EditError("No neuron of this MLP was ever active: no edit of its weights acts.")
    if not ridge > 0:
        raise EditError(
            f"The ridge must be positive, got {ridge:g}: behind a ReLU the keys' second moment is "
            "singular, and without a ridge an edit is undefined."
        )
    n = len(moment)
    shift = ridge * moment.diagonal().mean()
    ridged = moment + shift * torch.eye(n, dtype=moment.dtype, device=moment.device)
    factor, failed = torch.linalg.cholesky_ex(ridged)
    if failed:
        raise EditError(
            f"With a ridge of {ridge:g} mean eigenvalues the keys' second moment is still singular "
            "to rounding: take a larger one."
        )
    return factor
