"""Ridge regression on scaled features, grouped by episode, for many targets at once.

In the dual form: an activation has tens of thousands of numbers, and there are hundreds of scenes.
It is scikit-learn's `Ridge` on features divided by their spread (a test holds it to that), with the
products of scenes made once for all penalties, inner folds and targets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.model_selection import GroupKFold

ALPHAS = tuple(10.0**exponent for exponent in range(-4, 4))
"""Penalties; scikit-learn's, divided by the mean squared length of a scaled scene."""
SCALE_FLOOR = 0.1
"""A feature is divided by its spread, but by no less than this part of the usual one: a unit behind
a ReLU that fires in one training scene would otherwise rule the scene in which it fires next."""
_INNER = 4


@dataclass(frozen=True)
class Fold:
    """Scenes that are fitted on, and scenes that are predicted."""

    train: Int[np.ndarray, " train"]
    test: Int[np.ndarray, " test"]


def grouped_folds(groups: Int[np.ndarray, " scene"], n: int = 5) -> Iterator[Fold]:
    """Whole episodes left out in turn."""
    n = min(n, len(np.unique(groups)))
    split = GroupKFold(n_splits=n).split(np.zeros(len(groups)), groups=groups)
    return (Fold(train, test) for train, test in split)


def predictions(
    features: Float[np.ndarray, "scene feature"],
    targets: Float[np.ndarray, "scene target"],
    groups: Int[np.ndarray, " scene"],
    folds: Sequence[Fold],
    *,
    alphas: Sequence[float] = ALPHAS,
) -> Float[np.ndarray, "scene target"]:
    """Out-of-fold predictions; every target with the penalty that inner folds choose for it.

    Features are centred and scaled by the training scenes of each fold. NaN where no fold predicts
    a scene.

    Args:
        groups: episodes, which inner folds keep whole.
    """
    found = np.full(targets.shape, np.nan)
    for fold in folds:
        kernel, cross = _kernels(features[fold.train], features[fold.test])
        fitted = targets[fold.train]
        alpha = _chosen(kernel, fitted, groups[fold.train], alphas)
        for one in np.unique(alpha):
            at = alpha == one
            found[np.ix_(fold.test, at)] = _solve(kernel, cross, fitted[:, at], one)
    return found


def baselines(
    targets: Float[np.ndarray, "scene target"], folds: Sequence[Fold]
) -> Float[np.ndarray, "scene target"]:
    """The mean of the training scenes, which R2 is measured against."""
    found = np.full(targets.shape, np.nan)
    for fold in folds:
        found[fold.test] = targets[fold.train].mean(0)
    return found


def _kernels(
    train: Float[np.ndarray, "train feature"], test: Float[np.ndarray, "test feature"]
) -> tuple[Float[np.ndarray, "train train"], Float[np.ndarray, "test train"]]:
    """Products of scaled scenes; the mean squared length of a training scene is 1."""
    mean, spread = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    usual = float(np.sqrt(np.mean(spread**2)))
    scale = np.maximum(spread, SCALE_FLOOR * usual) if usual else np.ones_like(spread)
    scaled = lambda x: ((x - mean) / scale).astype(np.float32)
    a, b = scaled(train), scaled(test)
    size = max(float((a.astype(np.float64) ** 2).sum(1).mean()), 1e-12)
    return (a @ a.T).astype(np.float64) / size, (b @ a.T).astype(np.float64) / size


def _chosen(
    kernel: Float[np.ndarray, "train train"],
    targets: Float[np.ndarray, "train target"],
    groups: Int[np.ndarray, " train"],
    alphas: Sequence[float],
) -> Float[np.ndarray, " target"]:
    """The penalty with the least squared error over inner folds, for every target."""
    if len(np.unique(groups)) < 2:
        return np.full(targets.shape[1], max(alphas))
    errors = np.zeros((len(alphas), targets.shape[1]))
    for fold in grouped_folds(groups, _INNER):
        inner = kernel[np.ix_(fold.train, fold.train)]
        cross = kernel[np.ix_(fold.test, fold.train)]
        for i, alpha in enumerate(alphas):
            predicted = _solve(inner, cross, targets[fold.train], alpha)
            errors[i] += ((predicted - targets[fold.test]) ** 2).sum(0)
    return np.asarray(alphas)[errors.argmin(0)]


def _solve(
    kernel: Float[np.ndarray, "train train"],
    cross: Float[np.ndarray, "test train"],
    targets: Float[np.ndarray, "train target"],
    alpha: float,
) -> Float[np.ndarray, "test target"]:
    """Ridge with an unpenalised intercept."""
    mean = targets.mean(0)
    # Centring in feature space is centring the kernel, for the inner folds' own means.
    row, all_of_it = kernel.mean(0), kernel.mean()
    centred = kernel - row - row[:, None] + all_of_it
    across = cross - cross.mean(1, keepdims=True) - row + all_of_it
    weights = np.linalg.solve(centred + alpha * np.eye(len(kernel)), targets - mean)
    return across @ weights + mean
