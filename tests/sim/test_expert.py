"""The scripted expert lifts the cube everywhere on the table."""

import itertools

import numpy as np
import pytest

from actlens.sim.environment import CUBE_HALF
from actlens.sim.expert import PHASES, STEPS, expert_chunk, plan
from actlens.sim.kinematics import JOINT_HIGH, JOINT_LOW
from actlens.sim.regions import X_MAX, X_MIN, Y_MAX, Y_MIN, Region, sample

START = np.array([0.0, -60.0, 60.0, 70.0, 0.0, 30.0])
CUBE = np.array([0.2, -0.05])


def lifts(env, cube_xy, seed):
    observation, facts = env.reset(seed=seed, options={"cube_xy": cube_xy})
    for action in plan(observation["observation.state"], cube_xy, facts["cube"][3]):
        *_, facts = env.step(action)
    return facts["success"] and facts["is_grasped"]


@pytest.mark.parametrize("region", [Region.TRAIN, Region.HELD_OUT, Region.STRIP])
def test_it_lifts_the_cube_in_every_region(physics, region):
    rng = np.random.default_rng(100)
    assert all(lifts(physics, sample(region, rng), seed) for seed in range(14))


@pytest.mark.slow
def test_it_lifts_the_cube_from_a_thousand_starts(physics):
    rng = np.random.default_rng(0)
    places = rng.uniform([X_MIN, Y_MIN], [X_MAX, Y_MAX], (1000, 2))
    successes = sum(lifts(physics, place, seed) for seed, place in enumerate(places))
    assert successes >= 990


def test_the_phases_follow_one_another_and_fill_the_episode():
    assert PHASES[0].first == 0
    assert PHASES[-1].last == STEPS - 1
    for before, after in itertools.pairwise(PHASES):
        assert after.first == before.last + 1
    assert [phase.name for phase in PHASES] == ["hover", "descend", "settle", "close", "lift"]


def test_the_plan_is_within_limits_and_without_jumps():
    targets = plan(START, CUBE, 0.1)
    assert targets.shape == (STEPS, 6)
    assert targets.dtype == np.float32
    assert np.all((targets >= JOINT_LOW) & (targets <= JOINT_HIGH))
    assert np.abs(np.diff(np.vstack([START, targets]), axis=0))[:, :5].max() < 8.0


def test_a_chunk_is_a_window_of_the_plan_padded_with_its_last_target():
    targets = plan(START, CUBE, 0.1)
    np.testing.assert_array_equal(expert_chunk(START, CUBE, 0.1, first=10, size=20), targets[10:30])
    padded = expert_chunk(START, CUBE, 0.1, first=70, size=10)
    np.testing.assert_array_equal(padded[:5], targets[70:])
    np.testing.assert_array_equal(padded[5:], np.tile(targets[-1], (5, 1)))


def test_the_cube_stays_put_until_the_jaws_close(physics):
    observation, facts = physics.reset(seed=0, options={"cube_xy": CUBE})
    for action in plan(observation["observation.state"], CUBE, facts["cube"][3])[:43]:
        *_, facts = physics.step(action)
    np.testing.assert_allclose(facts["cube"][:3], [*CUBE, CUBE_HALF], atol=2e-4)
    np.testing.assert_allclose(facts["tip"][:2], CUBE, atol=1e-3)
