"""The inner product k^T C^-1 k' in which ROME measures keys."""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.rome.ridge import ridged_factor
from actlens.rome.statistics import KeyStatistics

Keys = Float[Tensor, "key neuron"]


@dataclass(frozen=True)
class KeyMetric:
    """Key statistics with a ridge, ready for any number of edits.

    A key that the data hardly enter is long in this metric: little has to be written along it.
    """

    statistics: KeyStatistics
    ridge: float
    """In mean eigenvalues of C."""
    factor: Float[Tensor, "neuron neuron"]
    """The lower Cholesky factor of C with its ridge."""

    @classmethod
    def of(cls, statistics: KeyStatistics, ridge: float | None = None) -> Self:
        """Factorise once; by default with the ridge that the statistics choose.

        Raises:
            EditError: if the ridge is not positive, or too small.
        """
        ridge = statistics.ridge_curve.chosen if ridge is None else ridge
        return cls(statistics, ridge, ridged_factor(statistics.moment, ridge))

    def solve(self, keys: Keys) -> Keys:
        """C^-1 k for every key: the direction along which an edit at k reads."""
        return torch.cholesky_solve(keys.to(self.factor).T, self.factor).T


@dataclass(frozen=True)
class Readers:
    """How an edit tells its keys from others: it writes `values @ (gram^-1 @ along) @ h` at key h.

    With keys K as rows, `along` = K C^-1 and `gram` = K C^-1 K^T; both are cleared of what earlier
    edits read by, so that these keep what they wrote.
    """

    along: Float[Tensor, "key neuron"]
    gram: Float[Tensor, "key key"]
    root: Float[Tensor, "key direction"]
    """A square root of `gram`, over the directions in which keys differ at all."""
    inverse_root: Float[Tensor, "key direction"]

    @classmethod
    def of(cls, metric: KeyMetric, keys: Keys, earlier: Keys | None = None) -> Self:
        """The readers of some keys.

        Args:
            earlier: keys at which nothing is to change.
        """
        keys = keys.to(metric.factor)
        along = metric.solve(keys)
        if earlier is not None and len(earlier):
            earlier = earlier.to(metric.factor)
            before = metric.solve(earlier)
            overlap = torch.linalg.pinv(before @ earlier.T, hermitian=True, rtol=_RANK_TOLERANCE)
            along = along - along @ earlier.T @ overlap @ before
        gram = along @ keys.T
        gram = (gram + gram.T) / 2
        squares, directions = torch.linalg.eigh(gram)
        kept = squares > _RANK_TOLERANCE * squares[-1]
        lengths, directions = squares[kept].sqrt(), directions[:, kept]
        return cls(along, gram, directions * lengths, directions / lengths)

    @property
    def exact(self) -> Float[Tensor, "key neuron"]:
        """Rows T with T K^T = I (on independent keys): `values @ T` writes the values exactly."""
        return self.inverse_root @ (self.inverse_root.T @ self.along)

    @property
    def condition(self) -> float:
        """Of the Gram matrix: how much larger an edit can get because keys resemble each other."""
        squares = torch.linalg.eigvalsh(self.gram)
        return float(squares[-1] / squares[0]) if squares[0] > 0 else float("inf")


_RANK_TOLERANCE = 1e-13
"""Keys that differ by less, in squared length, are one key."""
