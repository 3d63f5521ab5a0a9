"""What ridge regressions on hundreds of scenes share, in the dual form.

Whole episodes left out, products of scaled scenes, and an intercept that is not penalised. An
activation has tens of thousands of numbers, and there are hundreds of scenes: products of scenes
are made once for all penalties, inner folds and targets.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

SCALE_FLOOR = 0.1
"""A feature is divided by its spread, but by no less than this part of the usual one: a unit behind
a ReLU that fires in one training scene would otherwise rule the scene in which it fires next."""


@dataclass(frozen=True)
class Fold:
    """Scenes that are fitted on, and scenes that are predicted."""

    train: Int[np.ndarray, " train"]
    test: Int[np.ndarray, " test"]


def grouped_folds(groups: Int[np.ndarray, " scene"], n: int = 5) -> Iterator[Fold]:
    """Whole episodes left out in turn."""
    from sklearn.model_selection import GroupKFold

    n = min(n, len(np.unique(groups)))
    split = GroupKFold(n_splits=n).split(np.zeros(len(groups)), groups=groups)
    return (Fold(train, test) for train, test in split)


@dataclass(frozen=True)
class Products:
    """Products of scaled scenes; the mean squared length of a fitted scene is 1."""

    fitted: Float[np.ndarray, "train train"]
    across: Float[np.ndarray, "test train"]
    tested: Float[np.ndarray, " test"]
    """Of each tested scene with itself."""


def scaled_products(
    train: Float[np.ndarray, "train feature"], test: Float[np.ndarray, "test feature"]
) -> Products:
    """Features are centred and scaled by the fitted scenes alone."""
    mean, spread = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    usual = float(np.sqrt(np.mean(spread**2)))
    scale = np.maximum(spread, SCALE_FLOOR * usual) if usual else np.ones_like(spread)
    a, b = (((part - mean) / scale).astype(np.float32) for part in (train, test))
    own = [np.einsum("sf,sf->s", part, part, dtype=np.float64) for part in (a, b)]
    size = max(float(own[0].mean()), 1e-12)
    fitted, across = ((part @ a.T).astype(np.float64) for part in (a, b))
    return Products(fitted / size, across / size, own[1] / size)


def centred(
    kernel: Float[np.ndarray, "train train"], across: Float[np.ndarray, "test train"]
) -> tuple[Float[np.ndarray, "train train"], Float[np.ndarray, "test train"]]:
    """Both about the fitted scenes' mean: centring in feature space is centring the kernel."""
    row, all_of_it = kernel.mean(0), kernel.mean()
    return (
        kernel - row - row[:, None] + all_of_it,
        across - across.mean(1, keepdims=True) - row + all_of_it,
    )
