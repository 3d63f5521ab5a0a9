"""Decoders as mixtures of fitted scenes, against scikit-learn."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import KernelCenterer

from actlens.errors import SceneError
from actlens.kernel_ridge import Fold
from actlens.reconstruction import Components, Coordinates, mixtures, nearest
from actlens.reconstruction.smoothers import ANY, LINEAR, Gaussian, Linear, Staged

N = 48
GROUPS = np.repeat(np.arange(N // 2), 2)
SPLIT = Fold(np.arange(36), np.arange(36, N))


def known(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, 30)).astype(np.float32)
    return x, x[:, :4] @ rng.standard_normal((4, 3)) + 5


def scaled(x, split=SPLIT):
    """Of features whose spreads are alike: the floor does nothing."""
    train = x[split.train].astype(float)
    return (x - train.mean(0)) / train.std(0)


def test_the_linear_decoder_is_scikit_learns_ridge():
    x, y = known()
    (found,) = mixtures(x, [y[:36]], GROUPS, SPLIT, kernels=LINEAR, alphas=[0.01])
    z = scaled(x)
    size = (z[:36] ** 2).sum(1).mean()
    theirs = Ridge(alpha=0.01 * size).fit(z[:36], y[:36]).predict(z[36:])
    np.testing.assert_allclose(found.of(y[:36]), theirs, atol=1e-4)
    np.testing.assert_allclose(found.weights.sum(1), 1, atol=1e-9)


def test_the_gaussian_decoder_is_scikit_learns_kernel_ridge_with_an_intercept():
    x, y = known()
    kernels = [Gaussian(2.0)]
    (found,) = mixtures(x, [y[:36]], GROUPS, SPLIT, kernels=kernels, alphas=[0.1])
    z = scaled(x)
    gamma = 1.0 / (z[:36] ** 2).sum(1).mean()
    centre = KernelCenterer()
    inner = centre.fit_transform(rbf_kernel(z[:36], z[:36], gamma))
    across = centre.transform(rbf_kernel(z[36:], z[:36], gamma))
    mean = y[:36].mean(0)
    theirs = KernelRidge(alpha=0.1, kernel="precomputed").fit(inner, y[:36] - mean)
    np.testing.assert_allclose(found.of(y[:36]), theirs.predict(across) + mean, atol=1e-4)


def test_a_mixture_draws_pictures():
    x, _ = known()
    pictures = np.random.default_rng(1).random((36, 2, 3, 4, 5)).astype(np.float32)
    (found,) = mixtures(x, [pictures], GROUPS, SPLIT, kernels=LINEAR)
    drawn = found.of(pictures)
    assert drawn.shape == (12, 2, 3, 4, 5)
    flat = found.weights @ pictures.reshape(36, -1)
    np.testing.assert_allclose(drawn.reshape(12, -1), flat, atol=1e-5)


def test_each_target_gets_the_decoder_that_inner_folds_choose():
    rng = np.random.default_rng(3)
    x = rng.uniform(-1, 1, (N, 2)).astype(np.float32)
    straight, curved = x @ [[1.0], [2.0]], np.sin(4 * x[:, :1]) * x[:, 1:]
    fitted = [straight[:36], curved[:36]]
    line, curve = mixtures(x, fitted, GROUPS, SPLIT, kernels=ANY)
    assert line.kernel == Linear()
    assert isinstance(curve.kernel, Gaussian)
    only = mixtures(x, fitted, GROUPS, SPLIT, kernels=LINEAR)[1]
    off = lambda one: np.abs(one.of(curved[:36]) - curved[36:]).mean()
    assert off(curve) < off(only)


def bumps(places):
    """Pictures of a spot of a few pixels."""
    rows, columns = np.indices((20, 20))
    apart = (rows - places[:, :1, None]) ** 2 + (columns - places[:, 1:, None]) ** 2
    return np.exp(-apart / 8)[:, None, None].repeat(3, 2).astype(np.float32)


def test_a_place_that_can_be_read_draws_the_spot_there():
    """Features hold the place among many louder directions, as a network's do."""
    rng = np.random.default_rng(4)
    n, test = 120, 20
    groups = np.arange(n)
    places = rng.uniform(3, 17, (n, 2))
    x = np.concatenate([places, 6 * rng.standard_normal((n, 60))], 1)
    x = (x @ np.linalg.qr(rng.standard_normal((62, 62)))[0]).astype(np.float32)
    split = Fold(np.arange(n - test), np.arange(n - test, n))
    pictures = bumps(places)
    fitted = pictures[split.train]
    by = lambda kernels, place: mixtures(
        x, [fitted], groups, split, kernels=kernels, coordinates=Coordinates(place, None)
    )[0]
    staged = by(ANY, places[split.train])
    assert isinstance(staged.kernel, Staged)
    error = lambda one: ((one.of(fitted) - pictures[split.test]) ** 2).sum()
    assert error(staged) < 0.8 * error(by(LINEAR, None))
    assert not isinstance(by(ANY, None).kernel, Staged)


def test_an_episode_is_never_fitted_and_tested():
    x, y = known()
    with pytest.raises(SceneError, match="fitted on and tested"):
        mixtures(x, [y[:35]], GROUPS, Fold(np.arange(35), np.arange(35, N)))
    with pytest.raises(SceneError, match="two episodes"):
        mixtures(x, [y[:2]], GROUPS, Fold(np.arange(2), np.arange(4, N)))


def test_tested_scenes_take_no_part_in_the_fit():
    x, y = known()
    whole = mixtures(x, [y[:36]], GROUPS, SPLIT)[0]
    other = x.copy()
    other[40:] = 100
    alone = mixtures(other, [y[:36]], GROUPS, SPLIT)[0]
    assert (whole.kernel, whole.alpha) == (alone.kernel, alone.alpha)
    np.testing.assert_allclose(whole.weights[:4], alone.weights[:4], atol=1e-9)


def test_the_nearest_is_scikit_learns():
    x, _ = known()
    z = scaled(x)
    theirs = NearestNeighbors(n_neighbors=1).fit(z[:36]).kneighbors(z[36:])[1][:, 0]
    np.testing.assert_array_equal(nearest(x, SPLIT), theirs)


def test_what_can_be_drawn_is_scikit_learns_pca():
    pictures = np.random.default_rng(5).random((14, 2, 3, 4, 5)).astype(np.float32)
    fitted, asked = pictures[:10], pictures[10:]
    pca = PCA().fit(fitted.reshape(10, -1))
    flat = pca.transform(asked.reshape(4, -1))[:, :9] @ pca.components_[:9] + pca.mean_
    components = Components.of(fitted)
    assert len(components.axes) == 9
    np.testing.assert_allclose(components.redrawn(asked).reshape(4, -1), flat, atol=1e-4)
    np.testing.assert_allclose(components.redrawn(fitted), fitted, atol=1e-4)
