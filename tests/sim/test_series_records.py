"""Records of a series as tables over training seeds."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from actlens.retrieval import TIP
from actlens.sim.series import (
    FIRST,
    SHOWN,
    along_demonstrations,
    along_positions,
    bundled_series,
    error_along,
    index_along,
    mechanism_along,
    over_seeds,
    pack,
    success_along,
    success_by_distance,
    verdicts_along,
)
from actlens.statistics import wilson


def record(demonstrations, positions, seed, *, success, index):
    arm = f"demonstrations-{demonstrations}" if positions is None else f"positions-{positions}"
    columns = ["region", "x", "y", "success", "tip_error_mm", "distance_mm"]
    errors = ["measure", "index", "policy_trained", "policy_unseen", "region", "frames"]
    rollouts = [["strip", 0.2, 0.1, s, 5.0, d] for s, d in success]
    return {
        "run": f"{arm}-seed-{seed}",
        "arm": {"demonstrations": demonstrations, "positions": positions},
        "training_seed": seed,
        "tables": {
            "rollouts": {"columns": columns, "data": rollouts},
            "indices": {
                "columns": errors,
                "data": [[TIP, index, 1, 4 + seed, "strip", FIRST], [TIP, 9, 9, 9, "strip", "x"]],
            },
            "mechanism": {
                "columns": ["statistic", "value", "lookup"],
                "data": [["jump between neighbours", 0.25, None], ["a", 7.0, 0.5]],
            },
            "verdict": {
                "columns": ["figure", "frames", "answer", "candidates", "missing"],
                "data": [["a", FIRST, f"is {seed}", "", ""], ["b", FIRST, f"is {seed}", "", ""]],
            },
        },
    }


@pytest.fixture
def records():
    yes, no = (True, 2.0), (False, 30.0)
    return [
        record(50, None, 0, success=[yes, yes, no, no], index=0.2),
        record(50, None, 1, success=[yes, yes, yes, no], index=0.4),
        record(50, None, 2, success=[yes, yes, yes, yes], index=None),
        record(50, 1, 0, success=[no, no, no, no], index=-1.0),
    ]


def test_the_interval_over_seeds_is_students():
    values = [0.1, 0.4, 0.3]
    found = over_seeds(pd.DataFrame({"arm": "a", "v": values}), ("arm",), "v").iloc[0]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found["mean"], found.smallest, found.largest) == pytest.approx((0.8 / 3, 0.1, 0.4))


def test_two_seeds_have_no_interval_and_seeds_without_a_value_are_counted(records):
    found = index_along(records, TIP, FIRST).set_index("arm").loc["demonstrations-50"]
    assert (found.seeds, found.undefined) == (2, 1)
    assert found["mean"] == pytest.approx(0.3)
    assert np.isnan(found.low)


def test_success_is_a_mean_over_seeds_and_counts_all_rollouts(records):
    found = success_along(records).set_index("arm")
    shown = found.loc["demonstrations-50"]
    assert (shown["mean"], shown.rollouts, shown.successes) == (pytest.approx(0.75), 12, 9)
    assert found.loc["positions-1"]["mean"] == 0.0


def test_errors_are_those_of_the_measure_and_the_frames(records):
    found = error_along(records, TIP, FIRST).set_index(["arm", "region"])["mean"]
    assert found["demonstrations-50", "strip"] == pytest.approx(5.0)
    assert found["demonstrations-50", SHOWN] == pytest.approx(1.0)


def test_success_by_distance_has_wilsons_interval(records):
    near, far = success_by_distance(records, [10.0]).itertuples()
    assert (near.rollouts, near.success, far.rollouts, far.success) == (9, 1.0, 7, 0.0)
    assert (far.low, far.high) == pytest.approx(wilson(0, 7))


def test_fifty_of_their_own_places_end_the_curve_of_places(records):
    found = mechanism_along(records)
    assert along_positions(found).positions.tolist() == [50.0, 50.0, 1.0, 1.0]
    assert along_demonstrations(found).demonstrations.tolist() == [50, 50]


def test_jumps_count_as_they_are_and_others_beside_their_twins(records):
    found = mechanism_along(records).set_index(["arm", "statistic"])["mean"]
    assert found["positions-1", "jump between neighbours"] == 0.25
    assert found["positions-1", "a"] == 0.5


def test_there_is_one_verdict_a_policy(records):
    without = records[0] | {"tables": {}}
    found = verdicts_along([without, *records[1:]], FIRST)
    assert found.answer.tolist() == ["is 1", "is 2", "is 0"]
    assert verdicts_along([without], FIRST).empty


def test_packed_records_come_back_and_the_same_ones_give_the_same_bytes(
    records, tmp_path, monkeypatch
):
    path = tmp_path / "bundled" / "results" / "generalization.json.gz"
    pack(records, path)
    first = path.read_bytes()
    pack(records, path)
    assert path.read_bytes() == first
    monkeypatch.setattr("actlens.sim.series.records.files", lambda package: tmp_path)
    assert list(bundled_series()) == records
