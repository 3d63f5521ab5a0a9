"""Distances to the demonstrations as a warning: areas, thresholds, rivals, and what is watched."""

from dataclasses import replace

import numpy as np
import pytest
from scripted_policies import N_ACTION_STEPS, SeenCube, random_policy
from sklearn.metrics import roc_auc_score
from stored_scenes import demonstrations_of, passed_scenes

from actlens.retrieval import Demonstrations, RetrievalError
from actlens.sim.conditions import draw_starts
from actlens.sim.controlled import roll_out
from actlens.sim.edit_cases import scene_at
from actlens.sim.kept_rollouts import KeptRollout
from actlens.sim.monitor_table import ALL, WITHIN, monitor_table
from actlens.sim.monitored_rollouts import CONSTANT, ORACLE_DISTANCE, Score, When, scores
from actlens.sim.watching import watched_rollout, watched_sites

STEPS = 4 * N_ACTION_STEPS
EXECUTED = tuple(range(N_ACTION_STEPS))
STARTS = draw_starts(24, seed=6)


@pytest.fixture(scope="module")
def env():
    return SeenCube()


@pytest.fixture(scope="module")
def policy():
    return random_policy()


@pytest.fixture(scope="module")
def demonstrations(policy, env):
    return demonstrations_of(policy, passed_scenes(policy, env, STARTS, STEPS))


@pytest.fixture(autouse=True)
def _no_hook_left(policy):
    yield
    assert not any(point.is_watched for point in policy.hook_points())
    assert policy.clock.control_step == -1


# ── watching ─────────────────────────────────────────────────────────────────────────────────────


def test_a_watched_rollout_is_the_plain_one_with_the_keys_of_its_scenes(policy, env):
    (start,) = draw_starts(1, seed=9)
    result, keys = watched_rollout(policy, env, start, watched_sites(policy), steps=STEPS)
    plain = roll_out(policy, env, start, steps=STEPS).result
    assert np.array_equal(result.actions, plain.actions)
    assert np.array_equal(result.tip, plain.tip)
    scenes = passed_scenes(policy, env, [start], STEPS)
    assert np.array_equal(
        scenes[0].observation["observation.state"],
        scene_at(env, start).observation["observation.state"],
    )
    known = demonstrations_of(policy, scenes)
    assert keys.keys() == known.keys.keys() == {
        "state", "environment", "encoder output, mean", "action vector"
    }  # fmt: skip
    for name, values in keys.items():
        expected = known.keys[name]
        expected = expected[:, :N_ACTION_STEPS] if expected.ndim == 3 else expected
        np.testing.assert_allclose(values, expected.reshape(4, -1), rtol=1e-4, atol=1e-5)


class Broken(SeenCube):
    """A simulator that stops working under way."""

    def __init__(self, after, error):
        super().__init__()
        self.left, self.error = after, error

    def step(self, action):
        self.left -= 1
        if not self.left:
            raise self.error
        return super().step(action)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_no_hook_outlives_a_rollout_that_breaks_off(policy, error):
    with pytest.raises(error):
        watched_rollout(policy, Broken(8, error), STARTS[0], watched_sites(policy), steps=STEPS)


# ── scores and thresholds ────────────────────────────────────────────────────────────────────────


def watched(policy, env, starts, region="train"):
    found = []
    for number, start in enumerate(starts):
        result, keys = watched_rollout(policy, env, start, watched_sites(policy), steps=STEPS)
        found.append(rollout_of(number, region, keys=keys, xy=start.cube_xy, result=result))
    return found


def rollout_of(number, region, *, success=True, keys=None, xy=(0.2, 0.0), result=None):
    tip = np.zeros((2, 3), np.float32) if result is None else result.tip
    closing = 1 if result is None else result.closing_step
    return KeptRollout(
        region, number, "undisturbed", xy, number, success, True, closing, 1.0, tip, 0, keys or {}
    )


@pytest.fixture(scope="module")
def made(policy, env, demonstrations):
    rollouts = watched(policy, env, [*STARTS[:3], *draw_starts(3, seed=50)])
    found = scores(rollouts, demonstrations, EXECUTED, N_ACTION_STEPS, false_alarms=0.1)
    return rollouts, {(score.site, score.when): score for score in found}


def test_demonstrated_starts_are_at_distance_zero_and_no_others(made):
    _, found = made
    assert len(found) == 4 * 2 + 2
    for (site, _), score in found.items():
        if site != CONSTANT:
            assert (score.values[:3] < 1e-3).all(), site
            assert (score.values[3:] > 1e-3).all(), site


def test_scores_are_brute_force_distances(made, demonstrations):
    rollouts, found = made
    keys, frames = demonstrations.keys["environment"], demonstrations.frames
    before = rollouts[4].closing_step
    for when, rows, asked in (
        (When.FIRST, frames == 0, rollouts[4].keys["environment"][:1]),
        (When.UNTIL_CLOSED, None, rollouts[4].keys["environment"]),
    ):
        if rows is None:
            rows = until_closed(demonstrations)
            asked = asked[: max(1, -(-before // N_ACTION_STEPS))]
        spread = keys[rows].std(0)
        unit = np.where(
            spread > 1e-6 * np.maximum(abs(keys[rows].mean(0)), spread.max()), spread, np.inf
        )
        apart = np.linalg.norm((asked[:, None] - keys[rows]) / unit, axis=-1).min(1).max()
        assert found["environment", when].values[4] == pytest.approx(apart, rel=1e-4)


def test_only_what_comes_before_the_gripper_closes_counts():
    """Of a demonstration and of a rollout; a gripper that never opened never closes."""
    frames, every = np.tile([0, 10, 20, 30], 3), 10
    gripper = np.array([20, 80, 80, 30, 20, 60, 40, 80, 20, 30, 30, 30], dtype=np.float32)
    early = np.array([1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1], dtype=bool)
    place = np.where(early, np.arange(12.0), 100.0).astype(np.float32)[:, None]
    state = np.c_[np.zeros((12, 5), np.float32), gripper]
    known = Demonstrations(
        {"place": place, "state": state}, np.zeros((12, 1, 6)), np.zeros((12, 1, 6)),
        np.ones((12, 1), bool), np.repeat([0, 1, 2], 4), frames,
        {"cube_x": place[:, 0].astype(float), "cube_y": np.zeros(12)},
    )  # fmt: skip
    spread = place[early].std()
    asked = {"place": np.array([[0.0], [13.0], [100.0]], np.float32), "state": state[:3]}
    for closing, expected in ((0, 0.0), (10, 0.0), (11, 2.0), (20, 2.0), (21, 89.0)):
        one = replace(rollout_of(0, "train", keys=asked), closing_step=closing)
        found = scores([one], known, (0,), every, false_alarms=0.5)
        (score,) = (f for f in found if (f.site, f.when) == ("place", When.UNTIL_CLOSED))
        assert score.values[0] == pytest.approx(expected / spread, rel=1e-5)


def until_closed(demonstrations):
    """By hand: all rows of an episode before the first that is closed after an open one."""
    rows = np.zeros(len(demonstrations), bool)
    opened = dict.fromkeys(demonstrations.episodes.tolist(), False)
    closed = dict(opened)
    for i, episode in enumerate(demonstrations.episodes.tolist()):
        gripper = demonstrations.keys["state"][i, 5]
        opened[episode] |= gripper > 50
        closed[episode] |= opened[episode] and gripper <= 50
        rows[i] = not closed[episode]
    return rows


def test_thresholds_are_order_statistics_of_episodes_left_out(made, demonstrations):
    _, found = made
    first = demonstrations.frames == 0
    xy = np.stack([demonstrations.labels[name][first] for name in ("cube_x", "cube_y")], 1)
    apart = np.linalg.norm(xy[:, None] - xy, axis=-1) + np.diag(np.full(24, np.inf))
    wanted = np.sort(apart.min(1))[int(np.ceil(25 * 0.9)) - 1]
    assert found[ORACLE_DISTANCE, When.FIRST].threshold == pytest.approx(wanted)


def test_rollouts_that_nobody_watched_are_refused(demonstrations):
    with pytest.raises(RetrievalError, match="watched"):
        scores([rollout_of(0, "train")], demonstrations, EXECUTED, N_ACTION_STEPS)
    with pytest.raises(RetrievalError, match="watched"):
        scores([], demonstrations, EXECUTED, N_ACTION_STEPS)


# ── areas ────────────────────────────────────────────────────────────────────────────────────────


def table_of(failed, region, **values):
    rollouts = [
        rollout_of(i, name, success=not bad)
        for i, (bad, name) in enumerate(zip(failed, region, strict=True))
    ]
    values = {ORACLE_DISTANCE: np.zeros(len(failed))} | values
    made = [Score(name, When.FIRST, value, 0.5) for name, value in values.items()]
    return monitor_table(made, rollouts).set_index(["region", "site"])


@pytest.fixture(scope="module")
def planted():
    rng = np.random.default_rng(3)
    region = np.repeat(["train", "strip"], 60)
    failed = rng.random(120) < np.where(region == "strip", 0.7, 0.2)
    noisy = np.round(rng.standard_normal(120) + failed, 1)
    table = table_of(
        failed, region, perfect=failed.astype(float), noisy=noisy, random=rng.random(120),
        region_only=(region == "strip").astype(float), nothing=np.zeros(120),
    )  # fmt: skip
    return failed, region, noisy, table


def test_areas_are_scikit_learns_in_every_region_and_pooled(planted):
    failed, region, noisy, table = planted
    for name, at in (
        ("train", region == "train"),
        ("strip", region == "strip"),
        (ALL, region != ""),
    ):
        row = table.loc[name, "noisy"]
        assert row.auc == pytest.approx(roc_auc_score(failed[at], noisy[at]))
        assert row.auc_low < row.auc < row.auc_high
        assert row.over_oracle == pytest.approx(row.auc - 0.5)
        assert (row.failures, row.rollouts) == (failed[at].sum(), at.sum())


def test_the_area_within_regions_weighs_them_by_their_pairs(planted):
    failed, region, noisy, table = planted
    parts = [region == "train", region == "strip"]
    pairs = [failed[at].sum() * (~failed[at]).sum() for at in parts]
    expected = np.average([roc_auc_score(failed[at], noisy[at]) for at in parts], weights=pairs)
    row = table.loc[WITHIN, "noisy"]
    assert row.auc == pytest.approx(expected)
    assert row.auc_low < row.auc < row.auc_high


def test_a_perfect_monitor_has_area_one_and_flags_failures_alone(planted):
    *_, table = planted
    for name in (ALL, WITHIN, "train", "strip"):
        row = table.loc[name, "perfect"]
        assert row.auc == 1
        assert row.flagged_failures == row.failures
        assert row.flagged_successes == 0
        assert 0 < row.flagged_successes_high < 0.2
    assert table.loc[ALL, "perfect"].hits_at_5 == 1
    assert table.loc[ALL, "perfect"].over_oracle_low == 0.5


def test_a_random_monitor_and_a_constant_one_tell_nothing(planted):
    *_, table = planted
    for name in (ALL, WITHIN):
        row = table.loc[name, "random"]
        assert row.auc_low < 0.5 < row.auc_high
        assert row.over_oracle_low < 0 < row.over_oracle_high
        assert table.loc[name, "nothing"].auc == 0.5
    assert table.loc[ALL, "nothing"].hits_at_5 == 0


def test_a_score_that_only_knows_the_region_looks_good_pooled_and_is_nothing_within(planted):
    *_, table = planted
    assert table.loc[ALL, "region_only"].auc_low > 0.6
    assert table.loc[WITHIN, "region_only"].auc == 0.5


def test_where_nothing_fails_there_is_no_area_but_there_are_alarms():
    table = table_of(np.zeros(6, bool), ["train"] * 6, some=np.arange(6.0))
    row = table.loc["train", "some"]
    assert np.isnan([row.auc, row.auc_low, row.hits_at_5, row.over_oracle]).all()
    assert (row.flagged_successes, row.successes, row.failures) == (5, 6, 0)
    assert set(table.index.get_level_values("region")) == {"train"}
