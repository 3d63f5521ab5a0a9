"""Closed-loop episodes: the expert succeeds, and misses are measured in millimetres."""

import numpy as np
import pytest

from actlens.sim.environment import HOME, PickCube
from actlens.sim.expert import STEPS, expert_chunk
from actlens.sim.rollout import rollout

CUBE = np.array([0.18, -0.03])


class PlayedExpert:
    """The expert as a policy: plans at its first observation for a cube at `target`."""

    def __init__(self, target, yaw):
        self.target, self.yaw, self.resets, self.queue = target, yaw, 0, []

    def reset(self):
        self.resets += 1
        self.queue = []

    def select_action(self, observation):
        if not self.queue:
            start = observation["observation.state"]
            self.queue = list(expert_chunk(start, self.target, self.yaw, size=STEPS + 15))
        return self.queue.pop(0)


def play(env, target, **options):
    yaw = env.reset(seed=5, options={"cube_xy": CUBE})[1]["cube"][3]
    policy = PlayedExpert(target, yaw)
    result = rollout(env, policy.select_action, policy.reset, cube_xy=CUBE, seed=5, **options)
    assert policy.resets == 1
    return result


def test_the_expert_succeeds(physics):
    result = play(physics, CUBE)
    assert result.success
    assert result.closed
    assert result.tip_error_mm < 2.0
    assert 43 < result.closing_step < 53
    assert not result.grasped[result.closing_step]
    assert result.grasped[-1]
    assert result.frames is None


def test_arrays_hold_the_start_and_every_step(physics):
    result = play(physics, CUBE, steps=30)
    assert result.states.shape == (31, 6)
    assert result.actions.shape == (30, 6)
    assert result.tip.shape == (31, 3)
    assert result.cube.shape == (31, 4)
    assert result.grasped.shape == (31,)
    assert not result.success


def test_a_miss_is_measured_in_millimetres(physics):
    result = play(physics, CUBE + np.array([-0.04, 0.03]))
    assert not result.success
    assert result.tip_error_mm == pytest.approx(50.0, abs=2.0)


def test_a_gripper_that_never_closes_is_measured_where_it_was_lowest(physics):
    result = rollout(physics, lambda _: HOME, lambda: None, cube_xy=CUBE, seed=5, steps=10)
    assert not result.closed
    assert result.closing_step == result.tip[:, 2].argmin()
    assert not result.success


def test_frames_show_both_cameras(renderer):
    env = PickCube(height=24, width=32)
    result = rollout(
        env, lambda _: HOME, lambda: None, cube_xy=CUBE, seed=5, steps=2, keep_frames=True
    )
    assert result.frames.shape == (3, 24, 64, 3)
    np.testing.assert_array_equal(result.frames[-1], env.render())
    env.close()


def test_frames_need_pictures(physics):
    with pytest.raises(ValueError, match="render=True"):
        play(physics, CUBE, steps=1, keep_frames=True)
