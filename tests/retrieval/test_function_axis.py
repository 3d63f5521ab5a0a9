from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from actlens.kinematics import SO101_SIMULATED
from actlens.planted import LinearExpert, LinearRule, Region, Stored, Table, World, plant
from actlens.retrieval import (
    ALL_JOINTS,
    RetrievalError,
    TaskState,
    Undefined,
    Yardstick,
    cover,
    distance_to_demonstrations,
    function_axis,
    generalisation_frame,
    growth_exponent,
    jackknife,
    lookup_similarity,
    run_demonstrations,
    snap,
    snap_frame,
    table_size,
)
from actlens.retrieval.function_axis import nearest_of_episodes
from actlens.retrieval.jackknife import by_episode, ratio

FRAMES = (0, 5)


@pytest.fixture(scope="module")
def world():
    return World(seed=4, expert=LinearExpert())


@pytest.fixture(scope="module")
def scenes(world):
    train = world.scenes(world.positions(Region.TRAIN, 60), frames=FRAMES)
    new = world.scenes(world.positions(Region.NEW, 20), frames=FRAMES, first_episode=900)
    return train, new


def twin(world, scenes, mechanism):
    model = world.policy()
    stored = Stored.of(model, scenes[0])
    planted = plant(model, stored, mechanism, readout=world.readout).model
    return tuple(run_demonstrations(planted, each) for each in scenes)


@pytest.fixture(scope="module")
def rule(world, scenes):
    return twin(world, scenes, LinearRule())


@pytest.fixture(scope="module")
def table(world, scenes):
    return twin(world, scenes, Table())


def axis(trained, unseen):
    yardstick = Yardstick.of(trained.actions, trained.counted, arm=SO101_SIMULATED)
    return function_axis(trained, unseen, yardstick, TaskState.of(trained, yardstick))


def overall(found):
    return next(index for index in found.indices if index.measure == ALL_JOINTS)


def as_expert(scenes):
    return replace(scenes, predicted=scenes.actions)


def as_nearest(trained, unseen):
    found = axis(trained, unseen)
    return replace(unseen, predicted=trained.actions[found.nearest[:, 0]])


# ── closed forms ─────────────────────────────────────────────────────────────────────────────


def test_the_expert_itself_generalises_and_never_snaps(rule):
    found = axis(*map(as_expert, rule))
    for index in found.indices:
        if not isinstance(index.index, Undefined):
            assert index.index.estimate == index.index.low == index.index.high == 1
    assert overall(found).index.estimate == 1
    assert found.snaps[0].fraction.estimate == 0
    assert found.snaps[0].aside.estimate == 0
    assert found.similarity.excess.estimate == 0
    assert found.similarity.novelty.estimate == 1
    assert isinstance(found.growth_of_policy, Undefined)
    assert "0 episodes have an error" in found.growth_of_policy.reason


def test_the_nearest_demonstration_itself_does_not_generalise_and_always_snaps(rule):
    trained, unseen = rule
    found = axis(as_expert(trained), as_nearest(trained, unseen))
    assert overall(found).index.estimate == 0
    assert found.snaps[0].fraction.estimate == pytest.approx(1)
    assert found.snaps[0].aside.estimate == pytest.approx(0, abs=1e-6)
    assert found.snaps[1].fraction.estimate < 1
    assert found.similarity.policy.estimate == pytest.approx(1)
    assert found.similarity.novelty.estimate == 0
    assert found.growth_of_policy == found.growth_of_retrieval


def test_half_way_to_the_nearest_demonstration_is_half_of_everything(rule):
    trained, unseen = rule
    nearest = as_nearest(trained, unseen).predicted
    half = replace(unseen, predicted=(nearest + unseen.actions) / 2)
    found = axis(as_expert(trained), half)
    assert overall(found).index.estimate == pytest.approx(0.5, abs=1e-6)
    assert found.snaps[0].fraction.estimate == pytest.approx(0.5, abs=1e-6)


def test_the_index_is_its_formula(rule):
    index = overall(axis(*rule))
    trained, unseen, nearest = (
        float(x.estimate) for x in (index.trained, index.unseen, index.retrieval)
    )
    expected = 1 - (unseen - trained) / (nearest - trained)
    assert index.index.estimate == pytest.approx(expected)
    row = generalisation_frame([index]).iloc[0]
    assert row["index"] == pytest.approx(expected)
    assert row.low < row["index"] < row.high


# ── undefined cases are named ────────────────────────────────────────────────────────────────


def test_without_headroom_there_is_no_index(rule):
    trained, unseen = (as_expert(each) for each in rule)
    bad = replace(trained, predicted=trained.actions + 50)
    found = axis(bad, unseen)
    assert isinstance(overall(found).index, Undefined)
    row = generalisation_frame([overall(found)]).iloc[0]
    assert "not surely more than the policy" in row.undefined
    assert np.isnan(row["index"])


def test_where_demonstrations_do_what_the_expert_does_nothing_snaps():
    chunks = np.random.default_rng(0).standard_normal((12, 3, 2))
    (only,) = snap(chunks + 1, chunks, chunks[:, None], np.arange(12))
    assert "do what the expert does" in only.fraction.reason
    assert snap_frame([only]).iloc[0].undefined == only.fraction.reason


def test_similarity_needs_demonstrations_that_differ():
    chunks = np.ones((6, 4))
    found = lookup_similarity(
        chunks, chunks, chunks, episodes=np.arange(6), demonstrated_episodes=np.arange(6)
    )
    assert isinstance(found.policy, Undefined)
    assert "what was demonstrated" in found.novelty.reason
    assert found.left_out == 6
    with pytest.raises(RetrievalError, match="two episodes"):
        lookup_similarity(
            chunks, chunks, chunks, episodes=np.arange(6), demonstrated_episodes=np.zeros(6, int)
        )


# ── parts against other ways to compute them ─────────────────────────────────────────────────


def test_closed_loop_points_snap_as_chunks_do():
    rng = np.random.default_rng(1)
    expert, demonstrated = rng.standard_normal((2, 40, 2))
    share = 0.3 + 0.01 * rng.standard_normal((40, 1))
    reached = expert + share * (demonstrated - expert)
    (found,) = snap(reached, expert, demonstrated[:, None], np.arange(40))
    weight = np.square(demonstrated - expert).sum(1)
    assert found.fraction.estimate == pytest.approx(np.average(share[:, 0], weights=weight))
    assert found.fraction.low < 0.3 < found.fraction.high


def test_padded_positions_do_not_snap():
    rng = np.random.default_rng(2)
    expert, demonstrated = rng.standard_normal((2, 10, 4, 3))
    counted = np.ones((10, 4, 1), bool)
    counted[:, 2:] = False
    policy = np.where(counted, expert, demonstrated)
    (found,) = snap(policy, expert, demonstrated[:, None], np.arange(10), counted=counted)
    assert found.fraction.estimate == 0


def test_similarity_by_hand():
    demonstrated = np.array([[0.0, 0.0], [0.1, 0.0], [3.0, 4.0]])
    found = lookup_similarity(
        np.array([[0.0, 1.0]]),
        np.array([[0.0, 2.5]]),
        demonstrated,
        episodes=np.array([0]),
        demonstrated_episodes=np.array([5, 5, 6]),
    )
    assert found.policy.estimate == pytest.approx(1 - 1 / 5)  # the second is of another episode
    assert found.expert.estimate == pytest.approx(1 - 2.5 / 5)
    assert found.novelty.estimate == pytest.approx(1 / 2.5)
    assert np.isnan(found.policy.low)  # one episode


def test_what_was_demonstrated_elsewhere_is_not_new(rule):
    trained, unseen = (as_expert(each) for each in rule)
    wrong = replace(unseen, predicted=trained.actions[np.arange(len(unseen))])
    found = axis(trained, wrong)
    assert found.similarity.novelty.estimate == 0
    assert overall(found).index.high < 0


def test_similarity_leaves_out_what_was_not_demonstrated():
    rng = np.random.default_rng(8)
    policy, expert = rng.standard_normal((2, 12, 6))
    demonstrated = rng.standard_normal((20, 6))
    counted = np.ones((12, 6), bool)
    counted[::2, 4:] = False
    whom = {"episodes": np.arange(12), "demonstrated_episodes": np.arange(20)}
    found = lookup_similarity(policy, expert, demonstrated, counted=counted, **whom)
    wild = np.where(counted, policy, 1e3)
    again = lookup_similarity(wild, expert, demonstrated, counted=counted, **whom)
    assert again == found
    short = np.linalg.norm((policy[:, None] - demonstrated)[..., :4], axis=-1).min(1)
    whole = np.linalg.norm(policy[:, None] - demonstrated, axis=-1).min(1)
    there = np.where(np.arange(12) % 2 == 0, short, whole).sum()
    short = np.linalg.norm((expert[:, None] - demonstrated)[..., :4], axis=-1).min(1)
    whole = np.linalg.norm(expert[:, None] - demonstrated, axis=-1).min(1)
    expected = there / np.where(np.arange(12) % 2 == 0, short, whole).sum()
    assert found.novelty.estimate == pytest.approx(expected)


def test_the_nearest_of_different_episodes_by_hand():
    rng = np.random.default_rng(3)
    keys, queries = rng.standard_normal((60, 3)), rng.standard_normal((9, 3))
    episodes = np.repeat(np.arange(6), 10)
    chosen = nearest_of_episodes(keys, episodes, queries, ranks=4)
    apart = np.linalg.norm(queries[:, None] - keys, axis=-1)
    best = apart.reshape(9, 6, 10).min(2)
    assert np.array_equal(episodes[chosen], np.argsort(best, 1)[:, :4])
    assert np.allclose(np.take_along_axis(apart, chosen, 1), np.sort(best, 1)[:, :4])


def test_distances_are_between_starts(rule):
    trained, unseen = rule
    start = lambda d: np.stack([d.labels["cube_x"], d.labels["cube_y"]], 1)[d.frames == 0]
    apart = np.linalg.norm(start(unseen)[:, None] - start(trained), axis=-1).min(1)
    found = distance_to_demonstrations(trained, unseen)
    assert np.allclose(found[unseen.frames == 0], apart)
    carried = {**unseen.labels, "cube_x": unseen.labels["cube_x"] + (unseen.frames > 0)}
    moved = replace(unseen, labels=carried)
    assert np.array_equal(distance_to_demonstrations(trained, moved), found)


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_growth_exponents_are_recovered(exponent):
    rng = np.random.default_rng(4)
    distance = np.repeat(rng.uniform(0.002, 0.05, 60), 2)
    error = distance**exponent * np.exp(0.2 * rng.standard_normal(120))
    found = growth_exponent(distance, 3 * error, np.full(120, 3), np.repeat(np.arange(60), 2))
    x = np.log(distance[::2])
    y = np.log((error[::2] + error[1::2]) / 2)
    assert found.estimate == pytest.approx(stats.linregress(x, y).slope)
    assert found.low < exponent < found.high
    same = growth_exponent(np.full(120, 0.01), error, np.ones(120), np.repeat(np.arange(60), 2))
    assert "less than a factor of two" in same.reason


@pytest.mark.parametrize(
    ("tolerance", "cells", "at_least"), [(0.5, 50, 34), (1, 34, 20), (0, 100, 100)]
)
def test_cells_of_evenly_spread_actions(tolerance, cells, at_least):
    found = table_size(np.arange(100.0)[:, None], tolerance, neurons=40)
    # Centres are the first not yet covered: every 2nd, every 3rd … with twice the tolerance.
    every = lambda radius: -(-100 // (int(radius) + 1))
    assert found.cells == every(tolerance)
    assert found.at_least == every(2 * tolerance)
    assert found.actions == 100


def test_cells_cover_and_centres_keep_apart():
    actions = np.random.default_rng(5).uniform(size=(500, 3))
    centres = actions[cover(actions, 0.2)]
    apart = np.abs(actions[:, None] - centres).max(-1)
    assert apart.min(1).max() <= 0.2
    between = np.abs(centres[:, None] - centres).max(-1) + np.eye(len(centres))
    assert between.min() > 0.2


def test_whether_a_table_fits_is_open_between_the_two_counts():
    actions = np.arange(100.0)[:, None]
    assert table_size(actions, 1, neurons=60).fits is True
    assert table_size(actions, 1, neurons=40).fits is None
    assert table_size(actions, 1, neurons=20).fits is False
    with pytest.raises(RetrievalError, match="tolerance is zero or more"):
        table_size(actions, -1, neurons=1)


def test_intervals_hold_what_they_promise():
    rng = np.random.default_rng(6)
    held, n_trials = 0, 600
    for _ in range(n_trials):
        level = 0.6 * rng.standard_normal(20)  # frames of an episode share most of their error
        errors = np.exp(np.repeat(level, 8) * 0.5 + 0.2 * rng.standard_normal(160))
        sums = by_episode(np.stack([errors, np.ones(160)]), np.repeat(np.arange(20), 8))
        found = jackknife(ratio, sums)
        held += bool(found.low <= np.exp(0.5 * (0.3**2 + 0.2**2)) <= found.high)
    assert 0.91 < held / n_trials < 0.98


def test_two_samples_are_as_welch_has_them():
    rng = np.random.default_rng(7)
    a, b = rng.standard_normal(12), 3 * rng.standard_normal(30)
    one = lambda x: np.stack([x, np.ones(len(x))], 1)
    found = jackknife(lambda x, y: ratio(x) - ratio(y), one(a), one(b))
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert found.low == pytest.approx(expected.low)
    assert found.high == pytest.approx(expected.high)


# ── planted policies ─────────────────────────────────────────────────────────────────────────


def test_a_planted_rule_generalises_and_a_planted_table_does_not(rule, table):
    of_rule, of_table = axis(*rule), axis(*table)
    assert overall(of_rule).index.low > 0.5
    assert overall(of_table).index.high < 0.5
    assert of_rule.snaps[0].fraction.high < 0.3
