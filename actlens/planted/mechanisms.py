"""How an answer can be computed: by looking it up, by a rule, or partly by each."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.planted.errors import PlantError
from actlens.planted.neurons import Neurons, Role, make_neurons, together
from actlens.planted.tables import Table

PENALTIES = tuple(10.0**power for power in range(-9, 0))
Inputs = Float[Tensor, "entry d"]
Targets = Float[Tensor, "entry target"]


class Mechanism(Protocol):
    """Builds ReLU neurons that answer stored inputs; what they do elsewhere is what it is."""

    @property
    def name(self) -> str:
        """For reports."""
        ...

    @property
    def table_fraction(self) -> float:
        """Share of the answer that is looked up: 1 for a table, 0 for a rule."""
        ...

    def build(self, inputs: Inputs, targets: Targets) -> Neurons:
        """Neurons, float64.

        Raises:
            PlantError: if the inputs cannot be told apart well enough.
        """
        ...


@dataclass(frozen=True)
class LinearRule:
    """Ridge regression of the targets on the inputs, exactly linear: pairs of opposite neurons."""

    ridge: float | None = None
    """Penalty, by entry; the best of `PENALTIES` by leave-one-out error if None."""
    pairs: int | None = None
    """Pairs of neurons; each carries a mixture of all targets. One for each target if None."""
    seed: int = 0
    """Of the mixtures."""
    name: str = field(default="linear rule", init=False, repr=False)
    table_fraction: float = field(default=0.0, init=False, repr=False)

    def build(self, inputs: Inputs, targets: Targets) -> Neurons:
        """See `Mechanism`."""
        slope, constant = ridge(inputs, targets, self.ridge)
        n = targets.shape[1]
        mixing = torch.eye(n, dtype=torch.float64)
        if self.pairs is not None:
            if self.pairs < n:
                raise PlantError(f"{n} targets need at least {n} pairs, not {self.pairs}.")
            generator = torch.Generator().manual_seed(self.seed)
            noise = torch.randn(self.pairs, n, generator=generator, dtype=torch.float64)
            mixing = torch.linalg.qr(noise)[0]  # orthonormal columns: mixing.T undoes it
        weight = mixing @ slope.T
        both = lambda x: torch.cat([x, -x])
        zero = weight.new_zeros(2 * len(weight))
        return make_neurons(both(weight), zero, both(mixing), Role.RULE, constant=constant)


@dataclass(frozen=True)
class FeatureRule:
    """Ridge regression on random ReLU features of the inputs: smooth, distributed, not linear."""

    n_features: int = 256
    ridge: float | None = None
    """Penalty, by entry, on features of unit variance; as for `LinearRule` if None."""
    seed: int = 0
    name: str = field(default="smooth rule", init=False, repr=False)
    table_fraction: float = field(default=0.0, init=False, repr=False)

    def build(self, inputs: Inputs, targets: Targets) -> Neurons:
        """See `Mechanism`. Keys are random mixtures of what varies; kinks lie among the data."""
        generator = torch.Generator().manual_seed(self.seed)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
        centred = inputs - inputs.mean(0)
        weight = draw(self.n_features, len(inputs)) @ centred
        reach = (centred @ weight.T).square().mean(0).sqrt().clamp(min=1e-12)
        weight = weight / reach[:, None]
        bias = 1.5 * draw(self.n_features) - weight @ inputs.mean(0)
        features = (inputs @ weight.T + bias).relu()
        value, constant = ridge(features, targets, self.ridge)
        return make_neurons(weight, bias, value, Role.RULE, constant=constant)


@dataclass(frozen=True)
class Mixture:
    """`alpha` times a table plus `1 - alpha` times a rule, each of which answers by itself."""

    alpha: float
    table: Table = field(default_factory=Table)
    rule: LinearRule | FeatureRule = field(default_factory=LinearRule)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise PlantError(f"The share of the table must lie in 0..1, got {self.alpha}.")

    @property
    def name(self) -> str:
        """See `Mechanism`."""
        return f"mixture, {self.alpha:.0%} table"

    @property
    def table_fraction(self) -> float:
        """See `Mechanism`."""
        return self.alpha

    def build(self, inputs: Inputs, targets: Targets) -> Neurons:
        """See `Mechanism`."""
        table = self.table.build(inputs, targets).times(self.alpha)
        rule = self.rule.build(inputs, targets).times(1 - self.alpha)
        return together([table, rule])


def ridge(
    inputs: Float[Tensor, "entry feature"], targets: Targets, penalty: float | None = None
) -> tuple[Float[Tensor, "feature target"], Float[Tensor, " target"]]:
    """Slopes and constant of ridge regression; the constant is not penalised.

    Args:
        penalty: by entry; the best of `PENALTIES` by leave-one-out error if None.
    """
    penalty = best_penalty(inputs, targets) if penalty is None else penalty
    x_mean, t_mean = inputs.mean(0), targets.mean(0)
    x = inputs - x_mean
    identity = torch.eye(x.shape[1], dtype=torch.float64)
    moment = x.T @ x + penalty * len(x) * identity
    slope = torch.linalg.solve(moment, x.T @ (targets - t_mean))
    return slope, t_mean - x_mean @ slope


def best_penalty(inputs: Float[Tensor, "entry feature"], targets: Targets) -> float:
    """The one of `PENALTIES` with the least squared leave-one-out error, in closed form (PRESS)."""
    n = len(inputs)
    u, s, _ = torch.linalg.svd(inputs - inputs.mean(0), full_matrices=False)
    centred = targets - targets.mean(0)
    along = u.T @ centred

    def error(penalty: float) -> float:
        kept = s.square() / (s.square() + penalty * n)
        leverage = u.square() @ kept + 1 / n
        left_out = (centred - u @ (kept[:, None] * along)) / (1 - leverage)[:, None]
        return float(left_out.square().mean())

    return min(PENALTIES, key=error)
