import itertools

import numpy as np
import pytest

from actlens.statistics import (
    MIN_CLUSTERS,
    false_discovery,
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


def test_sign_flip_p_equals_the_count_over_all_sign_patterns():
    differences = np.random.default_rng(2).normal(0.4, 1, 7)
    observed = differences.mean()
    flipped = [np.mean(differences * s) for s in itertools.product((1, -1), repeat=7)]
    above = np.mean([m >= observed - 1e-12 for m in flipped])
    below = np.mean([m <= observed + 1e-12 for m in flipped])
    assert sign_flip_p(differences) == pytest.approx(min(1.0, 2 * min(above, below)))


def test_sign_flip_p_is_uniform_under_the_null():
    differences = np.random.default_rng(3).standard_normal((500, 9))
    assert (sign_flip_p(differences) <= 0.1).mean() == pytest.approx(0.1, abs=0.04)


def test_false_discovery_is_benjamini_hochberg():
    p = np.array([0.01, 0.02, 0.03, 0.5])
    np.testing.assert_allclose(false_discovery(p), [0.04, 0.04, 0.04, 0.5])


def test_wilson_matches_its_closed_form():
    z = 1.959963984540054
    n, k = 100, 94
    p = k / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert wilson(k, n) == pytest.approx((centre - half, centre + half))
