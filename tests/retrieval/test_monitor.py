import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from actlens.retrieval import Metric, Monitor, RetrievalError, Undefined, detection


def test_the_curve_and_its_area_are_scikit_learns():
    rng = np.random.default_rng(0)
    failed = rng.random(80) < 0.3
    scores = np.round(rng.standard_normal(80) + failed, 1)  # with ties
    found = detection(scores, failed)
    false, hits, thresholds = roc_curve(failed, scores, drop_intermediate=False)
    assert np.allclose(found.false_alarms, false)
    assert np.allclose(found.hits, hits)
    assert np.allclose(found.thresholds, thresholds)
    assert found.auc.estimate == pytest.approx(roc_auc_score(failed, scores))
    assert found.auc.low < found.auc.estimate < found.auc.high


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_the_areas_interval_covers(shift):
    from scipy.stats import norm

    rng = np.random.default_rng(1)
    true, held = norm.cdf(shift / np.sqrt(2)), 0
    for _ in range(300):
        scores = np.r_[rng.standard_normal(20) + shift, rng.standard_normal(30)]
        auc = detection(scores, np.arange(50) < 20).auc
        held += bool(auc.low <= true <= auc.high)
    assert held / 300 > 0.91


@pytest.mark.parametrize(("sign", "area"), [(1, 1.0), (-1, 0.0)])
def test_perfect_separation_still_has_an_interval(sign, area):
    auc = detection(sign * np.arange(20.0), np.arange(20) >= 10).auc
    assert auc.estimate == area
    assert 0.1 < auc.high - auc.low < 0.5


@pytest.mark.parametrize(("failed", "reason"), [(False, "no rollout failed"), (True, "succeeded")])
def test_without_both_outcomes_there_is_no_area(failed, reason):
    auc = detection(np.arange(5.0), np.full(5, failed)).auc
    assert isinstance(auc, Undefined)
    assert reason in auc.reason


def episodes_of(rng, n, frames=6):
    level = rng.standard_normal((n, 1, 3))
    return (level + 0.2 * rng.standard_normal((n, frames, 3))).reshape(-1, 3)


def test_false_alarms_keep_to_what_was_promised():
    rng = np.random.default_rng(2)
    alarmed = []
    for _ in range(60):
        keys = episodes_of(rng, 39)
        monitor = Monitor.of(
            keys, np.repeat(np.arange(39), 6), false_alarms=0.1, metric=Metric.PLAIN
        )
        new = monitor.alarms(episodes_of(rng, 20))
        alarmed.append(new.reshape(20, 6).any(1).mean())
    assert np.mean(alarmed) < 0.12
    assert np.mean(alarmed) > 0.04


def test_demonstrations_are_at_distance_zero_and_others_far():
    rng = np.random.default_rng(3)
    keys = episodes_of(rng, 30)
    monitor = Monitor.of(keys, np.repeat(np.arange(30), 6))
    assert np.allclose(monitor.distances(keys), 0, atol=1e-5)
    assert monitor.alarms(keys + 50).all()
    assert len(monitor.calibration) == 30


def test_promises_that_so_few_episodes_cannot_keep_are_refused():
    keys = np.random.default_rng(4).standard_normal((10, 2))
    with pytest.raises(RetrievalError, match="10 episodes cannot promise"):
        Monitor.of(keys, np.arange(10))
    with pytest.raises(RetrievalError, match="one finite score and one outcome"):
        detection(np.array([np.nan]), np.array([True]))
