"""Affine maps between states, by ridge regression on sums that scenes are streamed into."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

PENALTIES = tuple(10.0**exponent for exponent in range(-8, 2))
"""Shares of the mean variance of a state's dimensions."""
_ROUNDING = 1e-13
"""Of sums of squares in float64, from states in float32: (6e-8)^2 and the sums' own."""


@dataclass(frozen=True, eq=False)
class Translator:
    """One linear map for all positions, and a bias for each of them (Belrose et al. 2023, 3).

    A position is a token or a place in the chunk. What a position holds in every scene alike (the
    table's corner, the middle of a movement) is no knowledge of the scene: the bias supplies it,
    and the linear map has to carry differences between scenes alone.
    """

    weight: Float64[Tensor, "d_in d_out"]
    bias: Float64[Tensor, "position d_out"]
    penalty: float

    def __call__(
        self, state: Float[Tensor, "batch position d_in"]
    ) -> Float[Tensor, "batch position d_out"]:
        """The state as the later one that it was fitted to."""
        return state @ self.weight.to(state) + self.bias.to(state)


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over scenes of states and of their products, which is all that ridge regression needs.

    Products are summed over positions, states position by position.
    """

    n: int
    """Scenes."""
    x: Float64[Tensor, "position d_in"]
    y: Float64[Tensor, "position d_out"]
    xx: Float64[Tensor, "d_in d_in"]
    xy: Float64[Tensor, "d_in d_out"]
    yy: float

    @classmethod
    def of(
        cls,
        x: Float[Tensor, "scene position d_in"],
        y: Float[Tensor, "scene position d_out"],
    ) -> "Moments":
        """Of some scenes: what is read, and what it should be mapped to."""
        x, y = x.double(), y.double()
        rows, targets = x.flatten(0, 1), y.flatten(0, 1)
        products = rows.T @ rows, rows.T @ targets
        return cls(len(x), x.sum(0), y.sum(0), *products, float(targets.square().sum()))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.n + other.n,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
        )

    def about(
        self, x: Float64[Tensor, "position d_in"], y: Float64[Tensor, "position d_out"]
    ) -> tuple[Float64[Tensor, "d_in d_in"], Float64[Tensor, "d_in d_out"], float]:
        """The products (x x, x y, y y) of differences from given states."""
        left, right = x.T @ self.x, x.T @ self.y
        xx = self.xx - left - left.T + self.n * x.T @ x
        xy = self.xy - right - self.x.T @ y + self.n * x.T @ y
        yy = self.yy - 2 * float((y * self.y).sum()) + self.n * float(y.square().sum())
        return xx, xy, yy


@dataclass(frozen=True, eq=False)
class _Solved:
    """One fit for any penalty: the spectrum of the states' centred products."""

    means: tuple[Float64[Tensor, "position d_in"], Float64[Tensor, "position d_out"]]
    values: Float64[Tensor, " d_in"]
    vectors: Float64[Tensor, "d_in d_in"]
    turned: Float64[Tensor, "d_in d_out"]
    """The centred products with the targets, in the basis of `vectors`."""

    @classmethod
    def of(cls, moments: Moments) -> "_Solved":
        means = moments.x / moments.n, moments.y / moments.n
        xx, xy, _ = moments.about(*means)
        values, vectors = torch.linalg.eigh(xx)
        # Where states never differed, what is left of their squares is rounding, and says nothing.
        rounding = _ROUNDING * moments.xx.trace()
        values = torch.where(values > rounding, values, torch.zeros_like(values))
        return cls(means, values, vectors, vectors.T @ xy)

    def translator(self, penalty: float) -> Translator:
        total = self.values + penalty * self.values.mean()
        scale = torch.where(self.values > 0, total, torch.inf).reciprocal()
        weight = self.vectors @ (scale[:, None] * self.turned)
        x, y = self.means
        return Translator(weight, y - x @ weight, penalty)


def ridge(moments: Moments, penalty: float) -> Translator:
    """The map that minimises the squared error plus a penalty on the squared weights.

    Args:
        penalty: a share of the mean variance of the state's dimensions. scikit-learn's `alpha` is
            that times the trace of the centred products over their number.
    """
    return _Solved.of(moments).translator(penalty)


def fitted(folds: Sequence[Moments], penalties: Sequence[float] = PENALTIES) -> Translator:
    """The map of all folds, with the penalty that is best where each fold is left out in turn.

    Args:
        folds: sums over disjoint sets of episodes, two at least.
    """
    errors = torch.zeros(len(penalties), dtype=torch.float64)
    for held_out in range(len(folds)):
        solved = _Solved.of(_total([f for i, f in enumerate(folds) if i != held_out]))
        products = folds[held_out].about(*solved.means)
        for i, penalty in enumerate(penalties):
            errors[i] += _squared_error(solved.translator(penalty), products)
    return ridge(_total(folds), penalties[int(errors.argmin())])


def _squared_error(
    translator: Translator,
    products: tuple[Float64[Tensor, "d_in d_in"], Float64[Tensor, "d_in d_out"], float],
) -> float:
    """Of a map on scenes whose products about the map's own means are given."""
    xx, xy, yy = products
    w = translator.weight
    return yy - 2 * float((w * xy).sum()) + float((w * (xx @ w)).sum())


def _total(moments: Sequence[Moments]) -> Moments:
    total = moments[0]
    for one in moments[1:]:
        total = total + one
    return total
