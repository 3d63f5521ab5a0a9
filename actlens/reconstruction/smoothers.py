"""Decoders of hundreds of scenes: ridge and kernel ridge, as weights over the fitted scenes.

What such a decoder predicts of a scene is a mixture of the fitted scenes' targets, whatever the
targets are: places, joints or whole pictures. So kernel and penalty are chosen, by inner folds over
episodes, from products of scenes alone, and one set of weights draws a picture of any size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int

from actlens.errors import SceneError
from actlens.kernel_ridge import Fold, centred, grouped_folds, scaled_products

ALPHAS = tuple(10.0**exponent for exponent in range(-6, 2))
"""Penalties; scikit-learn's, where the mean squared length of a scaled scene is 1."""
_INNER, _OUT_OF_FOLD = 4, 10
_ARM_SHARPNESS = 0.5


@dataclass(frozen=True)
class Linear:
    """Ridge regression on scaled features."""


@dataclass(frozen=True)
class Gaussian:
    """exp(-sharpness d^2 / 2), where the mean squared length of a scaled scene is 1."""

    sharpness: float


@dataclass(frozen=True)
class Staged:
    """Kernels on what ridge reads off the features: one of the place plus one of the arm, Gaussian.

    Cube and arm add up in a picture, and a place that is read to a few millimetres says which
    pictures have a cube nearby. Without it, a kernel has as many directions as the features vary
    in, far too many for hundreds of scenes.
    """

    reach: float
    """Of the place's kernel, in usual distances of a fitted place from its nearest."""
    arm: float
    """Weight of the arm's kernel beside the place's."""


Kernel: TypeAlias = Linear | Gaussian | Staged

LINEAR: tuple[Kernel, ...] = (Linear(),)
ANY: tuple[Kernel, ...] = (
    Linear(),
    *(Gaussian(sharpness) for sharpness in (0.25, 1.0, 4.0)),
    *(Staged(reach, arm) for reach in (1.0, 2.0, 4.0) for arm in (0.3, 1.0, 3.0)),
)


@dataclass(frozen=True)
class Coordinates:
    """What `Staged` reads first, of the fitted scenes alone."""

    place: Float[np.ndarray, "train 2"] | None
    arm: Float[np.ndarray, "train joint"] | None


NO_COORDINATES = Coordinates(None, None)


@dataclass(frozen=True)
class Mixture:
    """What a decoder makes of every tested scene: weights over the fitted ones that sum to 1."""

    weights: Float[np.ndarray, "test train"]
    kernel: Kernel
    alpha: float

    def of(self, fitted: Float[np.ndarray, "train ..."]) -> Float[np.ndarray, "test ..."]:
        """The prediction, from the fitted scenes' targets."""
        flat = fitted.reshape(len(fitted), -1)
        mixed = self.weights.astype(flat.dtype) @ flat
        return mixed.reshape(len(self.weights), *fitted.shape[1:])


def mixtures(
    features: Float[np.ndarray, "scene feature"],
    targets: Sequence[Float[np.ndarray, "train ..."]],
    groups: Int[np.ndarray, " scene"],
    split: Fold,
    *,
    kernels: Sequence[Kernel] = ANY,
    alphas: Sequence[float] = ALPHAS,
    coordinates: Coordinates = NO_COORDINATES,
) -> tuple[Mixture, ...]:
    """Decoders fitted on one part of the scenes, one for each target.

    Args:
        targets: of the fitted scenes alone: the tested scenes' are not asked for.
        groups: the episode of every scene.
        kernels: what is chosen from, for every target by its squared error over inner folds.
        coordinates: for `Staged`, which is passed over without them.

    Raises:
        SceneError: if an episode is fitted and tested, or fewer than two are fitted.
    """
    fitted = groups[split.train]
    if shared := set(fitted) & set(groups[split.test]):
        raise SceneError(f"Episode number {min(shared)} is fitted on and tested: keep them apart.")
    if len(np.unique(fitted)) < 2:
        raise SceneError("A decoder is fitted on two episodes at least.")
    products = [_products(target) for target in targets]
    folds = list(grouped_folds(fitted, _INNER))
    found = scaled_products(features[split.train], features[split.test])
    inner, across, own = found.fitted, found.across, np.diag(found.fitted)
    chosen: list[Mixture | None] = [None] * len(targets)
    least = np.full(len(targets), np.inf)
    stage = _Stage.of(inner, across, coordinates, fitted) if _needs(kernels) else None
    for kernel in kernels:
        match kernel:
            case Linear():
                k, kb = inner, across
            case Gaussian(sharpness):
                k = _gaussian(inner, own, own, sharpness)
                kb = _gaussian(across, found.tested, own, sharpness)
            case Staged(reach, arm):
                if stage is None:
                    continue
                k, kb = stage.kernels(reach, arm)
        errors = _inner_errors(k, products, folds, alphas)
        for i in range(len(targets)):
            best = int(errors[i].argmin())
            if errors[i, best] < least[i]:
                least[i] = errors[i, best]
                weights = next(_solved(k, kb, alphas[best : best + 1]))
                chosen[i] = Mixture(weights, kernel, alphas[best])
    return tuple(one for one in chosen if one is not None)


def nearest(features: Float[np.ndarray, "scene feature"], split: Fold) -> Int[np.ndarray, " test"]:
    """For every tested scene the number, among the fitted ones, of the nearest by its features."""
    found = scaled_products(features[split.train], features[split.test])
    return (found.tested[:, None] + np.diag(found.fitted) - 2 * found.across).argmin(1)


def _gaussian(
    products: Float[np.ndarray, "a b"],
    a: Float[np.ndarray, " a"],
    b: Float[np.ndarray, " b"],
    sharpness: float,
) -> Float[np.ndarray, "a b"]:
    return np.exp(-sharpness / 2 * (a[:, None] + b - 2 * products).clip(min=0))


def _products(target: Float[np.ndarray, "train ..."]) -> Float[np.ndarray, "train train"]:
    flat = target.reshape(len(target), -1)
    centred = flat - flat.mean(0)
    return (centred @ centred.T).astype(np.float64)


def _solved(
    kernel: Float[np.ndarray, "train train"],
    across: Float[np.ndarray, "test train"],
    alphas: Sequence[float],
):
    """Weights of the fitted scenes for each penalty; the intercept is not penalised."""
    about_mean, across = centred(kernel, across)
    values, vectors = np.linalg.eigh(about_mean)
    turned = across @ vectors
    for alpha in alphas:
        weights = (turned / (values.clip(min=0) + alpha)) @ vectors.T
        yield weights - weights.mean(1, keepdims=True) + 1 / len(kernel)


def _inner_errors(
    kernel: Float[np.ndarray, "train train"],
    products: Sequence[Float[np.ndarray, "train train"]],
    folds: Sequence[Fold],
    alphas: Sequence[float],
) -> Float[np.ndarray, "target alpha"]:
    """Squared errors over inner folds, from products of targets: |y_b - W y_a|^2."""
    errors = np.zeros((len(products), len(alphas)))
    for fold in folds:
        a, b = fold.train, fold.test
        solved = _solved(kernel[np.ix_(a, a)], kernel[np.ix_(b, a)], alphas)
        parts = [(p[b, b].sum(), p[np.ix_(b, a)], p[np.ix_(a, a)]) for p in products]
        for j, weights in enumerate(solved):
            for i, (own, across, inner) in enumerate(parts):
                mixed = np.einsum("ba,ba->", weights @ inner, weights)
                errors[i, j] += own - 2 * np.einsum("ba,ba->", weights, across) + mixed
    return errors


@dataclass(frozen=True)
class _Stage:
    """Place and arm as ridge reads them: of fitted scenes out of fold, or they would look better
    known than tested ones. The arm's mean squared length is that of its true one: 1."""

    place: tuple[Float[np.ndarray, "train 2"], Float[np.ndarray, "test 2"]] | None
    arm: tuple[Float[np.ndarray, "train joint"], Float[np.ndarray, "test joint"]] | None

    @classmethod
    def of(
        cls,
        inner: Float[np.ndarray, "train train"],
        across: Float[np.ndarray, "test train"],
        coordinates: Coordinates,
        groups: Int[np.ndarray, " train"],
    ) -> "_Stage | None":
        """None without any coordinates."""
        place, arm = coordinates.place, coordinates.arm
        if place is not None:
            apart = np.linalg.norm(place[:, None] - place[None], axis=-1)
            apart[groups[:, None] == groups] = np.inf
            place = place / max(float(np.median(apart.min(1))), 1e-9)
        if arm is not None:
            arm = arm / np.maximum(arm.std(0), 1e-9) / np.sqrt(arm.shape[1])
        if place is None and arm is None:
            return None
        read = [x if x is None else _out_of_fold(inner, across, x, groups) for x in (place, arm)]
        return cls(*read)

    def kernels(self, reach: float, weight: float) -> tuple[np.ndarray, np.ndarray]:
        """Of fitted scenes, and of tested with fitted ones."""
        found = []
        for factor, sharpness, read in (
            (1.0, reach**-2.0, self.place),
            (weight, _ARM_SHARPNESS, self.arm),
        ):
            if read is not None:
                found.append(
                    factor * np.concatenate([_between(x, read[0], sharpness) for x in read])
                )
        both, n = np.sum(found, axis=0), found[0].shape[1]
        return both[:n], both[n:]


def _needs(kernels: Sequence[Kernel]) -> bool:
    return any(isinstance(kernel, Staged) for kernel in kernels)


def _between(
    a: Float[np.ndarray, "a dim"], b: Float[np.ndarray, "b dim"], sharpness: float
) -> Float[np.ndarray, "a b"]:
    return _gaussian(a @ b.T, (a**2).sum(1), (b**2).sum(1), sharpness)


def _out_of_fold(
    inner: Float[np.ndarray, "train train"],
    across: Float[np.ndarray, "test train"],
    target: Float[np.ndarray, "train dim"],
    groups: Int[np.ndarray, " train"],
) -> tuple[Float[np.ndarray, "train dim"], Float[np.ndarray, "test dim"]]:
    """Ridge's predictions of fitted scenes, each from other episodes, and of tested scenes.

    The choice among kernels sees these of scenes that it then predicts, which favours `Staged` a
    little; what is tested takes no part in it.
    """
    errors = _inner_errors(inner, [_products(target)], list(grouped_folds(groups, _INNER)), ALPHAS)[
        0
    ]
    alpha = [ALPHAS[int(errors.argmin())]]
    here = np.empty_like(target)
    for fold in grouped_folds(groups, _OUT_OF_FOLD):
        a, b = fold.train, fold.test
        here[b] = next(_solved(inner[np.ix_(a, a)], inner[np.ix_(b, a)], alpha)) @ target[a]
    return here, next(_solved(inner, across, alpha)) @ target
