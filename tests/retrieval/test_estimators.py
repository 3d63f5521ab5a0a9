import numpy as np
import pytest
from sklearn.linear_model import Ridge as ReferenceRidge
from sklearn.metrics import mean_squared_error
from sklearn.metrics.pairwise import cosine_distances, euclidean_distances
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.neighbors import KNeighborsRegressor

from actlens.retrieval import estimators
from actlens.retrieval.estimators import Kernel, Memory, Retrieval, Ridge
from actlens.retrieval.metric import KeyMap, Metric, compact


@pytest.fixture
def memory():
    return remembered(d=5)


def remembered(d, n=60, seed=0):
    """Episodes of unequal length, whose frames are alike."""
    rng = np.random.default_rng(seed)
    episodes = np.sort(rng.integers(0, 12, n))
    keys = (rng.standard_normal((12, d))[episodes] + 0.3 * rng.standard_normal((n, d))).astype(
        np.float32
    )
    answers = np.tanh(keys[:, :3]) @ rng.standard_normal((3, 4)) + 0.1 * rng.standard_normal((n, 4))
    return Memory(keys, answers, np.ones((n, 4), bool), episodes)


QUERIES = np.random.default_rng(9).standard_normal((11, 5)).astype(np.float32)


def by_groups(model, memory):
    return cross_val_predict(
        model, memory.keys, memory.answers, groups=memory.episodes, cv=LeaveOneGroupOut()
    )


def soft(spacing):
    return lambda d: np.exp(-(d - d.min(1, keepdims=True)) / spacing)


def gaussian(width):
    return lambda d: np.exp(-(d**2 - d.min(1, keepdims=True) ** 2) / (2 * width**2))


@pytest.mark.parametrize("k", [1, 4])
def test_retrieval_is_scikit_learns_mean_of_neighbours(memory, k):
    reference = KNeighborsRegressor(k, algorithm="brute")
    assert np.allclose(Retrieval(k).across_episodes(memory), by_groups(reference, memory))
    reference.fit(memory.keys, memory.answers)
    assert np.allclose(Retrieval(k).elsewhere(memory, QUERIES), reference.predict(QUERIES))


def test_soft_retrieval_weighs_neighbours_by_exp_of_minus_distance(memory):
    reference = KNeighborsRegressor(6, weights=soft(memory.spacing), algorithm="brute")
    ours = Retrieval(6, soft=True)
    assert np.allclose(ours.across_episodes(memory), by_groups(reference, memory))
    reference.fit(memory.keys, memory.answers)
    assert np.allclose(ours.elsewhere(memory, QUERIES), reference.predict(QUERIES))


def test_spacing_is_the_median_distance_to_another_episode(memory):
    apart = euclidean_distances(memory.keys.astype(float))
    apart[memory.episodes[:, None] == memory.episodes] = np.inf
    assert memory.spacing == pytest.approx(np.median(apart.min(1)), rel=1e-6)


def test_the_kernel_is_the_best_of_its_bandwidths_across_episodes(memory):
    fold_size = np.bincount(memory.episodes)[np.unique(memory.episodes)]
    candidates = []
    for width in estimators._BANDWIDTHS * memory.spacing:
        answered = np.empty_like(memory.answers)
        for episode, size in zip(np.unique(memory.episodes), fold_size, strict=True):
            here = memory.episodes == episode
            model = KNeighborsRegressor(
                len(here) - size, weights=gaussian(width), algorithm="brute"
            )
            answered[here] = model.fit(memory.keys[~here], memory.answers[~here]).predict(
                memory.keys[here]
            )
        candidates.append((mean_squared_error(memory.answers, answered), width, answered))
    _, width, answered = min(candidates, key=lambda c: c[0])
    assert np.allclose(Kernel().across_episodes(memory), answered, atol=1e-5)
    model = KNeighborsRegressor(len(memory.keys), weights=gaussian(width), algorithm="brute")
    elsewhere = model.fit(memory.keys, memory.answers).predict(QUERIES)
    assert np.allclose(Kernel().elsewhere(memory, QUERIES), elsewhere, atol=1e-5)


@pytest.mark.parametrize("d", [5, 200], ids=["few numbers", "more numbers than scenes"])
def test_ridge_is_scikit_learns_best_penalty_across_episodes(d):
    memory = remembered(d)
    keys = memory.keys.astype(np.float64)
    largest = np.linalg.svd(keys - keys.mean(0), compute_uv=False)[0] ** 2
    memory64 = Memory(keys, memory.answers, memory.counted, memory.episodes)
    candidates = [
        (by_groups(ReferenceRidge(penalty * largest), memory64), penalty * largest)
        for penalty in estimators._PENALTIES
    ]
    answered, penalty = min(candidates, key=lambda c: mean_squared_error(memory.answers, c[0]))
    assert np.allclose(Ridge().across_episodes(memory64), answered, atol=1e-6)
    queries = np.random.default_rng(1).standard_normal((7, d))
    model = ReferenceRidge(penalty).fit(keys, memory.answers)
    assert np.allclose(Ridge().elsewhere(memory64, queries), model.predict(queries), atol=1e-6)


def test_ridge_of_keys_that_never_change_answers_the_mean():
    memory = Memory(
        np.ones((12, 3)), np.arange(12.0)[:, None], np.ones((12, 1), bool), np.arange(12)
    )
    assert np.allclose(Ridge().elsewhere(memory, np.ones((2, 3))), 5.5)
    assert np.allclose(Ridge().across_episodes(memory)[0], np.arange(1, 12).mean())


def test_compact_keys_keep_all_distances_and_linear_answers():
    rng = np.random.default_rng(2)
    keys, queries = rng.standard_normal((20, 300)), rng.standard_normal((6, 300))
    small, asked = compact(keys, queries)
    assert small.shape[1] < 22
    assert np.allclose(euclidean_distances(small), euclidean_distances(keys))
    assert np.allclose(euclidean_distances(asked, small), euclidean_distances(queries, keys))
    answers = rng.standard_normal((20, 2))
    before, after = (
        Ridge().elsewhere(Memory(k, answers, np.ones((20, 2), bool), np.arange(20)), q)
        for k, q in ((keys, queries), (small, asked))
    )
    assert np.allclose(before, after)


def test_cosine_distance_orders_as_scikit_learns():
    rng = np.random.default_rng(3)
    keys, queries = rng.standard_normal((50, 4)) + 2, rng.standard_normal((5, 4)) + 2
    same = KeyMap.of(Metric.COSINE, keys)
    ours = euclidean_distances(same(queries).astype(float), same(keys).astype(float))
    theirs = cosine_distances(queries - keys.mean(0), keys - keys.mean(0))
    assert np.array_equal(ours.argsort(1), theirs.argsort(1))


def test_standardised_keys_have_unit_spread_where_they_vary():
    rng = np.random.default_rng(4)
    keys = rng.standard_normal((500, 4)) * [1.0, 5.0, 1e-9, 0.0] + 3
    mapped = KeyMap.of(Metric.STANDARDISED, keys)(keys)
    assert np.allclose(mapped[:, :2].std(0), 1, atol=1e-3)
    assert np.allclose(mapped[:, 2:], 0, atol=1e-6)
