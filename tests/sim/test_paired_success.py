"""Tango's interval and McNemar's test against the likelihood and against plain enumeration."""

import numpy as np
import pytest
from scipy import optimize, stats

from actlens.sim.paired_success import paired_success, score


def outcomes(both, lost, gained, neither):
    without = np.array([1] * both + [1] * lost + [0] * gained + [0] * neither, bool)
    under = np.array([1] * both + [0] * lost + [1] * gained + [0] * neither, bool)
    return without, under


@pytest.mark.parametrize(
    "table",
    [(3, 5, 2, 0), (10, 0, 0, 0), (0, 10, 0, 0), (4, 6, 0, 2), (0, 1, 9, 0), (20, 3, 11, 6)],
)
def test_the_interval_inverts_the_score_test_of_the_constrained_likelihood(table):
    both, lost, gained, neither = table
    n = sum(table)
    found = paired_success(*outcomes(*table))
    assert (found.lost, found.gained) == (lost, gained)
    assert found.change == pytest.approx((gained - lost) / n)
    assert found.low <= found.change <= found.high

    def referee(change):
        """The score statistic with the nuisance rate found by maximising the likelihood."""
        likelihood = lambda rate: -(
            gained * np.log(rate + change) + lost * np.log(rate)
            + (both + neither) * np.log(1 - 2 * rate - change)
        )  # fmt: skip
        low, high = max(0, -change), (1 - change) / 2
        rate = optimize.minimize_scalar(
            likelihood, bounds=(low + 1e-12, high - 1e-12), method="bounded",
            options={"xatol": 1e-12},
        ).x  # fmt: skip
        return (gained - lost - n * change) / np.sqrt(n * (2 * rate + change - change**2))

    for bound, sign in ((found.low, 1), (found.high, -1)):
        if abs(bound) < 1:
            assert referee(bound) == pytest.approx(sign * stats.norm.ppf(0.975), abs=2e-3)
            assert score(gained, lost, n, bound) == pytest.approx(referee(bound), abs=2e-3)


def test_p_is_that_of_all_equally_likely_losses_and_gains():
    assert paired_success(*outcomes(2, 0, 0, 1)).p == 1
    for lost, gained in ((5, 0), (0, 5), (4, 1), (2, 3)):
        found = paired_success(*outcomes(2, lost, gained, 1))
        flips = np.array(np.meshgrid(*[[0, 1]] * (lost + gained))).reshape(lost + gained, -1).sum(0)
        extreme = abs(flips - (lost + gained) / 2) >= abs(lost - (lost + gained) / 2)
        assert found.p == pytest.approx(extreme.mean())
