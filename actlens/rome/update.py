"""From keys and the values to be written at them to a change of the weights."""

from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.rome.errors import EditError
from actlens.rome.metric import KeyMetric, Keys, Readers
from actlens.rome.statistics import KeyStatistics


class Update(Protocol):
    """A rule that spreads values over the weights: the change is `values @ rows`."""

    joint: ClassVar[bool]
    """Whether it writes values exactly, so that those of all requests can be found together."""

    def rows(self, metric: KeyMetric, keys: Keys, earlier: Keys) -> Float[Tensor, "key neuron"]:
        """What tells the keys from others, one row for each; values as columns stand before them.

        Args:
            earlier: keys of earlier edits, at which nothing is to change.
        """
        ...


@dataclass(frozen=True)
class Exact:
    """Every key gets its value, and E|change of the MLP's output|^2 over the data is the least.

    For one key k the change is (v* - W k) (C^-1 k)^T / (k^T C^-1 k): rank one, Meng et al. 2022,
    equation 2. For several, R (K C^-1 K^T)^-1 K C^-1 with keys as the rows of K. Keys of earlier
    edits are further keys, with nothing to be written at them.
    """

    joint: ClassVar[bool] = True

    def rows(self, metric: KeyMetric, keys: Keys, earlier: Keys) -> Float[Tensor, "key neuron"]:
        """Rows that give 1 at their own key and 0 at all others."""
        return Readers.of(metric, keys, earlier).exact


@dataclass(frozen=True)
class SoftLeastSquares:
    """Least squares between the values and what is to stay: MEMIT (Meng et al. 2023, equation 14).

    R K (eta C + K^T K)^-1 with keys as the rows of K. Many edits at once stay small, and none is
    reached exactly. `softness` is eta relative to the mean of k^T C^-1 k over the keys, so that it
    has no scale: alone, an edit gets 1 / (1 + softness) of its way.
    """

    softness: float = 0.1
    joint: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.softness > 0:
            raise EditError(f"softness must be positive, got {self.softness:g}; 0 is Exact().")

    def rows(self, metric: KeyMetric, keys: Keys, earlier: Keys) -> Float[Tensor, "key neuron"]:
        """As (G + eta I)^-1 K C^-1, which is the same and never larger than the keys are many."""
        every = torch.cat([earlier.to(metric.factor), keys.to(metric.factor)])
        along = metric.solve(every)
        gram = along @ every.T
        eta = self.softness * gram.diagonal()[len(earlier) :].mean()
        softened = gram + eta * torch.eye(len(gram)).to(gram)
        return torch.linalg.solve(softened, along)[len(earlier) :]


@dataclass(frozen=True)
class NullSpace:
    """Least squares within the directions that the data hardly enter: AlphaEdit (Fang et al. 2025).

    R K P (K_p^T K_p P + K^T K P + alpha I)^-1, with P the projector on the eigenvectors of C whose
    eigenvalues lie below `threshold` times the largest, and K_p the keys of earlier edits. The
    published threshold is absolute and alpha is 1; both are relative here, alpha to the mean square
    of the projected keys.
    """

    projector: Float[Tensor, "neuron neuron"]
    n_directions: int
    """That are free to change."""
    threshold: float
    alpha: float
    joint: ClassVar[bool] = False

    @classmethod
    def of(cls, statistics: KeyStatistics, *, threshold: float = 1e-3, alpha: float = 0.01) -> Self:
        """The rule for some statistics: one eigendecomposition, for any number of edits.

        Raises:
            EditError: if a number is not positive, or no direction lies below the threshold.
        """
        if not (threshold > 0 and alpha > 0):
            raise EditError(f"threshold {threshold:g} and alpha {alpha:g} must be positive.")
        squares, directions = torch.linalg.eigh(statistics.moment)
        free = directions[:, squares < threshold * squares[-1]]
        if not free.shape[1]:
            raise EditError(
                f"No direction of the keys of {statistics.site.block} lies below {threshold:g} of "
                "the largest eigenvalue: raise the threshold."
            )
        return cls(free @ free.T, free.shape[1], threshold, alpha)

    def rows(self, metric: KeyMetric, keys: Keys, earlier: Keys) -> Float[Tensor, "key neuron"]:
        """As (B P B^T + alpha I)^-1 B P with B all keys, which is the same."""
        every = torch.cat([earlier.to(self.projector), keys.to(self.projector)])
        projected = every @ self.projector
        gram = projected @ projected.T
        alpha = self.alpha * gram.diagonal()[len(earlier) :].mean()
        softened = gram + alpha * torch.eye(len(gram)).to(gram)
        return torch.linalg.solve(softened, projected)[len(earlier) :]
