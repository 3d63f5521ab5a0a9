"""Verdicts from intervals, and how the claim's numbers are scaled."""

import numpy as np
import pytest
from scipy import stats

from actlens.attention.claims import _percent_of_scenes
from actlens.attention.options import claimed_share
from actlens.claims import Support, at_least, at_most
from actlens.statistics import Interval


def interval(low, high):
    return Interval(*(np.array(x, dtype=float) for x in ((low + high) / 2, low, high)))


@pytest.mark.parametrize(
    ("low", "high", "most", "least"),
    [
        (1, 2, Support.SUPPORTED, Support.REFUTED),
        (2, 4, Support.UNDECIDED, Support.UNDECIDED),
        (4, 5, Support.REFUTED, Support.SUPPORTED),
        (3, 3, Support.SUPPORTED, Support.SUPPORTED),
        (np.nan, np.nan, Support.UNDECIDED, Support.UNDECIDED),
    ],
)
def test_a_verdict_takes_the_whole_interval(low, high, most, least):
    assert at_most(interval(low, high), 3) is most
    assert at_least(interval(low, high), 3) is least


def test_a_share_that_is_always_one_has_an_interval_all_the_same():
    found = _percent_of_scenes(np.ones(80, dtype=bool), np.repeat(np.arange(40), 2))
    low, high = stats.binomtest(40, 40).proportion_ci(method="wilson")
    assert [float(x) for x in (found.estimate, found.low, found.high)] == pytest.approx(
        [100, 100 * low, 100 * high]
    )
    few = _percent_of_scenes(np.array([True, False, True]), np.arange(3))
    assert float(few.estimate) == pytest.approx(200 / 3)
    assert np.isnan(few.low)


@pytest.mark.parametrize(("n", "expected"), [(602, 20), (162, 5), (302, 10), (3, 1)])
def test_the_claims_share_scales_with_the_number_of_tokens(n, expected):
    assert claimed_share(n) == expected
