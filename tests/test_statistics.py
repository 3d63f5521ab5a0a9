import itertools

import numpy as np
import pytest
from scipy import stats

from actlens.statistics import (
    MIN_CLUSTERS,
    false_discovery,
    max_t_p,
    pooled_ratio,
    sign_flip_p,
    wilson,
)


def test_pooled_ratio_is_the_ratio_of_sums():
    found = pooled_ratio(np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 2, 2, 2, 2]))
    assert found.estimate == 1.5
    assert found.low < 1.5 < found.high


def test_intervals_cover_the_truth_at_about_their_nominal_rate():
    rng = np.random.default_rng(0)
    numerator = 0.5 + 0.3 * rng.standard_normal((400, 20))
    found = pooled_ratio(numerator, np.ones_like(numerator), draws=500)
    covered = ((found.low <= 0.5) & (found.high >= 0.5)).mean()
    assert 0.88 <= covered <= 0.98


def test_too_few_clusters_give_no_interval():
    found = pooled_ratio(np.ones(MIN_CLUSTERS - 1), np.ones(MIN_CLUSTERS - 1))
    assert np.isnan(found.low)
    assert np.isnan(found.high)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(1).standard_normal((3, 8))
    first, second = (pooled_ratio(values, np.ones_like(values), seed=4) for _ in range(2))
    assert np.array_equal(first.low, second.low)


def test_intervals_are_scipys():
    rng = np.random.default_rng(5)
    numerator, denominator = rng.normal(0.3, 1, (40, 9)), rng.uniform(1, 2, (40, 9))
    found = pooled_ratio(numerator, denominator, seed=7)
    scipys = stats.bootstrap(
        (numerator, denominator),
        lambda n, d, axis: n.sum(axis) / d.sum(axis),
        paired=True, vectorized=True, n_resamples=2000, method="percentile", axis=-1,
        rng=np.random.default_rng(7),
    ).confidence_interval  # fmt: skip
    np.testing.assert_allclose(found.low, scipys.low, rtol=1e-9)
    np.testing.assert_allclose(found.high, scipys.high, rtol=1e-9)


def test_units_of_a_cluster_are_drawn_together():
    rng = np.random.default_rng(6)
    numerator, denominator = rng.normal(0.3, 1, (3, 14)), rng.uniform(1, 2, (3, 14))
    clusters = rng.permutation(np.arange(14) // 2)
    found = pooled_ratio(numerator, denominator, clusters=clusters)
    sums = [
        np.stack([x[:, clusters == c].sum(1) for c in range(7)], 1)
        for x in (numerator, denominator)
    ]
    expected = pooled_ratio(*sums)
    np.testing.assert_allclose(found.estimate, (numerator.sum(1) / denominator.sum(1)))
    np.testing.assert_allclose(found.low, expected.low)
    np.testing.assert_allclose(found.high, expected.high)


def test_intervals_over_clusters_cover_the_truth_where_those_over_units_do_not():
    rng = np.random.default_rng(8)
    clusters = np.repeat(np.arange(20), 4)
    shared = rng.standard_normal((400, 20))[:, clusters]
    values = 0.5 + 0.3 * shared + 0.1 * rng.standard_normal((400, 80))
    covered = lambda found: ((found.low <= 0.5) & (found.high >= 0.5)).mean()
    assert 0.88 <= covered(pooled_ratio(values, 1.0, clusters=clusters, draws=500)) <= 0.98
    assert covered(pooled_ratio(values, 1.0, draws=500)) < 0.75


def test_too_few_clusters_of_many_units_give_no_interval():
    clusters = np.arange(40) % (MIN_CLUSTERS - 1)
    assert np.isnan(pooled_ratio(np.ones(40), np.ones(40), clusters=clusters).low)


def test_rows_are_pooled_over_the_units_that_they_have():
    rng = np.random.default_rng(9)
    numerator, denominator = rng.normal(size=(3, 8)), rng.uniform(1, 2, 8)
    numerator[1, [2, 5]] = np.nan
    numerator[2] = np.nan
    found = pooled_ratio(numerator, denominator)
    kept = [0, 1, 3, 4, 6, 7]
    alone = pooled_ratio(numerator[1, kept], denominator[kept])
    assert found.estimate[1] == pytest.approx(alone.estimate)
    np.testing.assert_allclose([found.low[1], found.high[1]], [alone.low, alone.high])
    assert np.isnan([found.estimate[2], found.low[2], found.high[2]]).all()


def test_a_share_of_nothing_is_unknown_and_no_error():
    found = pooled_ratio(np.zeros(6), np.zeros(6))
    assert np.isnan([found.estimate, found.low, found.high]).all()


def test_a_table_of_any_shape_keeps_it():
    values = np.random.default_rng(0).normal(size=(4, 3, 6))
    assert pooled_ratio(values, 1.0).low.shape == (4, 3)
    assert sign_flip_p(values).shape == max_t_p(values).shape == (4, 3)


def test_clusters_of_another_number_of_units_are_refused():
    with pytest.raises(ValueError, match="2 clusters are named for 6 units"):
        pooled_ratio(np.ones(6), np.ones(6), clusters=np.arange(2))


def flips(n):
    return np.array(list(itertools.product((1, -1), repeat=n)))


def test_sign_flip_p_equals_the_count_over_all_sign_patterns():
    differences = np.random.default_rng(2).normal(0.4, 1, 7)
    observed = differences.mean()
    flipped = [np.mean(differences * s) for s in itertools.product((1, -1), repeat=7)]
    above = np.mean([m >= observed - 1e-12 for m in flipped])
    below = np.mean([m <= observed + 1e-12 for m in flipped])
    assert sign_flip_p(differences) == pytest.approx(min(1.0, 2 * min(above, below)))


def test_sign_flip_p_is_scipys():
    differences = np.random.default_rng(3).normal(0.5, 1, (30, 8))
    scipys = stats.permutation_test(
        (differences,), lambda d, axis: d.mean(axis), permutation_type="samples", axis=-1,
        vectorized=True, n_resamples=9999,
    ).pvalue  # fmt: skip
    np.testing.assert_allclose(sign_flip_p(differences), scipys)


def test_ties_count_as_reached():
    # Sums of equal absolute values tie all the time, in another order of rounding each time.
    differences = np.array([[0.1, 0.2, 0.3, 0.1, 0.2, 0.3]])
    sums = np.abs(flips(6) @ np.array([1, 2, 3, 1, 2, 3]))
    assert sign_flip_p(differences)[0] == pytest.approx(np.mean(sums >= 12))
    assert sign_flip_p(differences * [1, -1, 1, 1, 1, 1])[0] == pytest.approx(np.mean(sums >= 8))


def test_random_flips_are_near_the_exact_p_and_never_zero():
    differences = np.random.default_rng(4).normal(0.4, 1, (20, 14))
    exact = sign_flip_p(differences, draws=2**14)
    np.testing.assert_allclose(sign_flip_p(differences, draws=9999), exact, atol=0.015)
    assert sign_flip_p(np.ones(30), draws=999) == pytest.approx(1 / 1000)


def test_sign_flip_p_is_uniform_under_the_null():
    differences = np.random.default_rng(3).standard_normal((500, 9))
    assert (sign_flip_p(differences) <= 0.1).mean() == pytest.approx(0.1, abs=0.04)


@pytest.mark.parametrize("test", [sign_flip_p, max_t_p])
def test_units_of_a_cluster_are_flipped_together(test):
    rng = np.random.default_rng(10)
    differences = rng.normal(0.4, 1, (5, 12))
    clusters = rng.permutation(np.arange(12) // 2)
    sums = np.stack([differences[:, clusters == c].sum(1) for c in range(6)], 1)
    np.testing.assert_allclose(test(differences, clusters=clusters), test(sums))


@pytest.mark.parametrize("test", [sign_flip_p, max_t_p])
def test_a_unit_that_a_row_does_not_have_counts_for_nothing_there(test):
    differences = np.random.default_rng(11).normal(0.5, 1, (1, 9))
    with_gap = np.insert(differences, 4, np.nan, axis=1)
    with_gap = np.concatenate([with_gap, np.full_like(with_gap, np.nan)])
    found = test(with_gap)
    assert found[0] == pytest.approx(test(differences)[0])
    assert np.isnan(found[1])


def test_max_t_is_the_count_of_the_largest_over_all_sign_patterns():
    differences = np.random.default_rng(12).normal(0.6, 1, (6, 8))
    scale = np.sqrt((differences**2).sum(1, keepdims=True))
    statistics = np.abs(flips(8) @ (differences / scale).T)
    observed = np.abs((differences / scale).sum(1))
    expected = [(statistics.max(1) >= t - 1e-12).mean() for t in observed]
    np.testing.assert_allclose(max_t_p(differences), expected)


def test_max_t_of_equal_rows_is_their_own_p_and_never_below_it():
    row = np.random.default_rng(13).normal(0.5, 1, 8)
    copies = np.stack([row, 100 * row, -row])
    np.testing.assert_allclose(max_t_p(copies), sign_flip_p(copies))
    rows = np.random.default_rng(14).normal(0.5, 1, (30, 8))
    assert (max_t_p(rows) >= sign_flip_p(rows) - 1e-12).all()


def test_rows_without_any_difference_are_not_significant_and_disturb_no_other():
    rows = np.random.default_rng(15).normal(1.0, 1, (3, 8))
    with_zero = np.concatenate([rows, np.zeros((1, 8))])
    np.testing.assert_allclose(max_t_p(with_zero)[:3], max_t_p(rows))
    assert max_t_p(with_zero)[3] == sign_flip_p(with_zero)[3] == 1


def test_max_t_keeps_the_chance_of_any_false_finding_under_the_null():
    """400 experiments of 25 correlated rows, 11 clusters: raw p finds something in most of them."""
    rng = np.random.default_rng(16)
    any_raw, any_adjusted = [], []
    for _ in range(400):
        common, own = rng.standard_normal(11), rng.standard_normal((25, 11))
        rows = 0.7 * common + 0.7 * own
        any_raw.append(sign_flip_p(rows).min() <= 0.05)
        any_adjusted.append(max_t_p(rows).min() <= 0.05)
    assert np.mean(any_raw) > 0.3
    assert 0.02 <= np.mean(any_adjusted) <= 0.08


def test_max_t_finds_planted_rows_among_many():
    rng = np.random.default_rng(17)
    rows = rng.standard_normal((200, 12))
    rows[:5] += 4
    found = max_t_p(rows) <= 0.05
    assert found[:5].all()
    assert found[5:].sum() <= 1


def test_false_discovery_is_benjamini_hochberg():
    p = np.array([0.01, 0.02, 0.03, 0.5])
    np.testing.assert_allclose(false_discovery(p), [0.04, 0.04, 0.04, 0.5])


def test_false_discovery_passes_over_rows_without_p():
    p = np.array([0.01, np.nan, 0.02, 0.03, 0.5, np.nan])
    found = false_discovery(p)
    np.testing.assert_allclose(found[[0, 2, 3, 4]], [0.04, 0.04, 0.04, 0.5])
    assert np.isnan(found[[1, 5]]).all()


def test_wilson_matches_its_closed_form():
    z = 1.959963984540054
    n, k = 100, 94
    p = k / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert wilson(k, n) == pytest.approx((centre - half, centre + half))
