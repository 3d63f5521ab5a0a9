"""Ridge regression on scaled features, grouped by episode, for many targets at once.

It is scikit-learn's `Ridge` on features divided by their spread (a test holds it to that), in the
dual form of `actlens.kernel_ridge`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from actlens.kernel_ridge import Fold, centred, grouped_folds, scaled_products

ALPHAS = tuple(10.0**exponent for exponent in range(-4, 4))
"""Penalties; scikit-learn's, divided by the mean squared length of a scaled scene."""
_INNER = 4


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
        products = scaled_products(features[fold.train], features[fold.test])
        kernel, cross = products.fitted, products.across
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
    kernel, cross = centred(kernel, cross)
    weights = np.linalg.solve(kernel + alpha * np.eye(len(kernel)), targets - mean)
    return cross @ weights + mean
