"""Surrogates: simple functions that are fitted to stand in for the decoder's MLP, or its tail.

One list of them, for a contest offline (`substitutes`) and for a policy that acts with them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.neighbors import KNeighborsRegressor, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from actlens.mechanism.tail import Vectored

_WIDTHS = [0.25, 0.5, 1.0, 2.0, 4.0]
"""Of a kernel, in units of the spacing of the inputs."""

Inputs = Float[np.ndarray, "scene d"]
Outputs = Float[np.ndarray, "scene out"]
Predict = Callable[[Inputs], Outputs]


class KernelSmoother(RegressorMixin, BaseEstimator):
    """The mean of all outputs, weighted by a Gaussian of the distance (Nadaraya-Watson)."""

    def __init__(self, width: float = 1.0):
        self.width = width

    def fit(self, x: Inputs, y: Outputs) -> Self:
        """Remember them; the unit of the width is the median distance to the nearest other."""
        apart = NearestNeighbors(n_neighbors=min(2, len(x))).fit(x).kneighbors(x)[0][:, -1]
        self.scale_ = self.width * (float(np.median(apart)) or 1.0)
        self.x_, self.y_ = x, y
        return self

    def predict(self, x: Inputs) -> Outputs:
        """The weighted means."""
        squared = euclidean_distances(x, self.x_, squared=True)
        nearer = squared.min(1, keepdims=True) - squared  # the nearest weighs 1, however far it is
        weights = np.exp(nearer / (2 * self.scale_**2))
        return weights @ self.y_ / weights.sum(1, keepdims=True)


@dataclass(frozen=True)
class Surrogate:
    """A way to predict what a part of the network writes from what it reads."""

    name: str
    fit: Callable[[Inputs, Outputs, Int[np.ndarray, " scene"]], Any]
    """(inputs, outputs, episodes) -> something with `predict`."""


NOTHING = Surrogate(
    "nothing",
    lambda x, y, episodes: DummyRegressor(strategy="constant", constant=0 * y[0]).fit(x, y),
)
MEAN = Surrogate("mean", lambda x, y, episodes: DummyRegressor().fit(x, y))
LINEAR = Surrogate(
    "linear map", lambda x, y, episodes: make_pipeline(StandardScaler(), Ridge(1.0)).fit(x, y)
)
NEAREST = Surrogate("nearest entry", lambda x, y, episodes: KNeighborsRegressor(1).fit(x, y))


def _smoothed(x: Inputs, y: Outputs, episodes: Int[np.ndarray, " scene"]) -> Any:
    """The width is the one that predicts other episodes best."""
    folds = min(4, len(np.unique(episodes)))
    if folds < 2:
        return KernelSmoother().fit(x, y)
    search = GridSearchCV(
        KernelSmoother(), {"width": _WIDTHS}, cv=GroupKFold(folds), scoring="neg_mean_squared_error"
    )
    return search.fit(x, y, groups=episodes)


SMOOTH = Surrogate("kernel smoother", _smoothed)
SURROGATES = (NOTHING, MEAN, LINEAR, NEAREST, SMOOTH)


@dataclass(frozen=True)
class StandIn:
    """A fitted surrogate, one for every chunk position."""

    surrogate: Surrogate
    positions: tuple[int, ...]
    predict: tuple[Predict, ...]
    """By position."""

    def __call__(
        self, x: Float[Tensor, "*batch position d_model"]
    ) -> Float[Tensor, "*batch position out"]:
        """What it writes for action vectors at its positions."""
        flat = x.detach().double().cpu().numpy().reshape(-1, *x.shape[-2:])
        made = [
            np.asarray(predict(flat[:, i])).reshape(len(flat), -1)
            for i, predict in enumerate(self.predict)
        ]
        stacked = np.stack(made, 1)
        return torch.from_numpy(stacked).to(x).reshape(*x.shape[:-1], stacked.shape[-1])


def mlp_stand_in(
    run: Vectored,
    surrogate: Surrogate,
    episodes: Int[np.ndarray, " scene"],
) -> StandIn:
    """A surrogate of what the last decoder MLP writes, as a function of the action vector.

    Args:
        run: the scenes to fit it on.
    """
    tail = run.tail
    with torch.no_grad():
        read, wrote = tail.read(run.x), tail.output(tail.coefficients(run.x))
    fitted = _fitted(run, surrogate, (read, wrote), episodes)
    if not tail.model.config.pre_norm:
        return fitted
    as_read = lambda predict: lambda x: predict(_array(tail.read(torch.from_numpy(x).to(run.x))))
    return StandIn(surrogate, fitted.positions, tuple(map(as_read, fitted.predict)))


def tail_stand_in(
    run: Vectored,
    surrogate: Surrogate,
    episodes: Int[np.ndarray, " scene"],
) -> StandIn:
    """A surrogate of all behind the action vector: it answers normalised actions.

    Args:
        run: the scenes to fit it on.
    """
    return _fitted(run, surrogate, (run.x, run.actions), episodes)


def _fitted(
    run: Vectored,
    surrogate: Surrogate,
    pairs: tuple[Tensor, Tensor],
    episodes: Int[np.ndarray, " scene"],
) -> StandIn:
    x, y = (_array(part) for part in pairs)
    predict = tuple(surrogate.fit(x[:, i], y[:, i], episodes).predict for i in range(x.shape[1]))
    return StandIn(surrogate, run.positions, predict)


def _array(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
