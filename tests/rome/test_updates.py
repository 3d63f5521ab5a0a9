"""Update rules against the published closed forms and against solvers that know nothing of them."""

import numpy as np
import pytest
import torch

from actlens.rome import EditError, Exact, KeyMetric, NullSpace, SoftLeastSquares

D_MODEL, RIDGE = 7, 0.03


@pytest.fixture(scope="module")
def metric(statistics):
    return KeyMetric.of(statistics, RIDGE)


@pytest.fixture(scope="module")
def ridged(statistics):
    """C with its ridge, made independently."""
    c = statistics.moment.numpy()
    return c + RIDGE * np.trace(c) / len(c) * np.eye(len(c))


def drawn(statistics, n, *, seed=0):
    """Keys of the policy and random values for them: `neuron n`, `d_model n`."""
    rng = np.random.default_rng(seed)
    some = rng.permutation(len(statistics.sample))[: 2 * n]
    keys = statistics.sample[some].numpy().T
    return keys[:, :n], keys[:, n:], rng.normal(size=(D_MODEL, n))


NOTHING = torch.zeros(0, 24, dtype=torch.float64)


def change(rule, metric, values, keys, earlier=None):
    """What a rule does to the weights."""
    before = NOTHING if earlier is None else torch.tensor(earlier.T)
    return values @ rule.rows(metric, torch.tensor(keys.T), before).numpy()


def least_drift(c, constrained, values):
    """min tr(D C D^T) with D K = R, as one linear system for D and its multipliers (KKT)."""
    n, m = len(c), constrained.shape[1]
    system = np.block([[c, constrained], [constrained.T, np.zeros((m, m))]])
    right = np.concatenate([np.zeros((n, len(values))), values.T])
    return np.linalg.solve(system, right)[:n].T


@pytest.mark.parametrize("n", [1, 2, 5])
def test_exact_is_the_solution_of_the_constrained_least_squares_problem(
    metric, ridged, statistics, n
):
    keys, _, values = drawn(statistics, n)
    found = change(Exact(), metric, values, keys)
    np.testing.assert_allclose(found, least_drift(ridged, keys, values), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found @ keys, values, rtol=1e-10, atol=1e-10)
    assert np.linalg.matrix_rank(found, tol=1e-9) == n


def test_exact_leaves_what_earlier_edits_wrote(metric, ridged, statistics):
    keys, earlier, values = drawn(statistics, 3)
    found = change(Exact(), metric, values, keys, earlier)
    both = np.concatenate([earlier, keys], 1)
    wanted = np.concatenate([np.zeros_like(values), values], 1)
    np.testing.assert_allclose(found, least_drift(ridged, both, wanted), rtol=1e-9, atol=1e-9)
    assert np.abs(found @ earlier).max() < 1e-10
    assert np.abs(change(Exact(), metric, values, keys) @ earlier).max() > 1e-3


def test_no_other_change_that_does_the_same_drifts_less(metric, ridged, statistics):
    keys, _, values = drawn(statistics, 2)
    found = change(Exact(), metric, values, keys)
    drift = lambda d: np.trace(d @ ridged @ d.T)
    rng = np.random.default_rng(1)
    free = np.eye(len(ridged)) - keys @ np.linalg.pinv(keys)
    for size in (1e-6, 1e-3, 1e-1, 1.0, 10.0):
        for _ in range(20):
            aside = size * rng.normal(size=found.shape) @ free
            np.testing.assert_allclose((found + aside) @ keys, values, atol=1e-9 * max(1, size))
            assert drift(found + aside) > drift(found)


def test_one_key_is_the_published_rank_one_update(metric, ridged, statistics):
    """Meng et al. 2022, equation 2: W + Lambda (C^-1 k)^T, Lambda = (v - W k) / (C^-1 k)^T k."""
    keys, _, values = drawn(statistics, 1)
    k, v = keys[:, 0], values[:, 0]
    weight = np.random.default_rng(2).normal(size=(D_MODEL, len(k)))
    c_inverse_k = np.linalg.inv(ridged) @ k
    published = weight + np.outer((v - weight @ k) / (c_inverse_k @ k), c_inverse_k)
    ours = weight + change(Exact(), metric, (v - weight @ k)[:, None], keys)
    np.testing.assert_allclose(ours, published, rtol=1e-10, atol=1e-10)


def test_soft_least_squares_is_memits_update(metric, ridged, statistics):
    """Meng et al. 2023, equation 14: Delta = R K1^T (C0 + K1 K1^T)^-1, C0 = eta C."""
    keys, earlier, values = drawn(statistics, 4)
    leverage = np.einsum("nk,nk->k", keys, np.linalg.solve(ridged, keys)).mean()
    eta = 0.2 * leverage
    published = values @ keys.T @ np.linalg.inv(eta * ridged + keys @ keys.T)
    ours = change(SoftLeastSquares(softness=0.2), metric, values, keys)
    np.testing.assert_allclose(ours, published, rtol=1e-9, atol=1e-10)
    # In sequence, what was edited before is kept like the data.
    kept = eta * ridged + earlier @ earlier.T
    published = values @ keys.T @ np.linalg.inv(kept + keys @ keys.T)
    ours = change(SoftLeastSquares(softness=0.2), metric, values, keys, earlier)
    np.testing.assert_allclose(ours, published, rtol=1e-9, atol=1e-10)


def test_the_softness_of_a_lone_edit_says_how_far_it_comes(metric, statistics):
    keys, _, values = drawn(statistics, 1)
    for softness in (0.01, 0.5, 3.0):
        reached = change(SoftLeastSquares(softness), metric, values, keys) @ keys
        np.testing.assert_allclose(reached, values / (1 + softness), rtol=1e-10)


def test_the_null_space_update_is_alphaedits(metric, statistics):
    """Fang et al. 2025: Delta = R K1^T P (K_p K_p^T P + K1 K1^T P + I)^-1."""
    keys, earlier, values = drawn(statistics, 3)
    squares, directions = np.linalg.eigh(statistics.moment.numpy())
    free = directions[:, squares < 1e-2 * squares[-1]]
    p = free @ free.T
    size = np.einsum("nk,nm,mk->k", keys, p, keys).mean()
    rule = NullSpace.of(statistics, threshold=1e-2, alpha=1 / size)  # the published alpha, 1
    for before in (np.zeros((24, 0)), earlier):
        summed = (before @ before.T + keys @ keys.T) @ p + np.eye(24)
        published = values @ keys.T @ p @ np.linalg.inv(summed)
        ours = change(rule, metric, values, keys, before)
        np.testing.assert_allclose(ours, published, rtol=1e-9, atol=1e-11)
    assert rule.n_directions == free.shape[1] < 24


def test_the_null_space_update_leaves_directions_of_the_data_alone(metric, statistics):
    keys, _, values = drawn(statistics, 3)
    found = change(NullSpace.of(statistics, threshold=1e-2), metric, values, keys)
    squares, directions = np.linalg.eigh(statistics.moment.numpy())
    used = directions[:, squares >= 1e-2 * squares[-1]]
    assert used.shape[1] >= 1
    assert np.abs(found @ used).max() < 1e-12 * np.abs(found).max()


def test_numbers_that_make_no_sense_are_errors(statistics):
    with pytest.raises(EditError, match="softness must be positive"):
        SoftLeastSquares(0.0)
    for options in ({"threshold": 0.0}, {"alpha": -1.0}):
        with pytest.raises(EditError, match="must be positive"):
            NullSpace.of(statistics, **options)
    with pytest.raises(EditError, match="raise the threshold"):
        NullSpace.of(full_rank(statistics), threshold=1e-3)


def full_rank(statistics):
    from dataclasses import replace

    return replace(statistics, moment=torch.eye(24, dtype=torch.float64))
