"""PickCube: Gymnasium's contract, determinism, and what `info` says of the world."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from actlens.sim.environment import CUBE_HALF, HOME, PickCube
from actlens.sim.expert import STEPS, plan
from actlens.sim.kinematics import JOINTS
from actlens.sim.regions import Region, region_of

CUBE = np.array([0.18, 0.02])


def play(env, *, seed, steps=STEPS):
    """States and cube poses of an episode of the expert."""
    observation, facts = env.reset(seed=seed, options={"cube_xy": CUBE})
    actions = plan(observation["observation.state"], CUBE, facts["cube"][3])
    states, cubes = [observation["observation.state"]], [facts["cube"]]
    for action in actions[:steps]:
        observation, _, _, _, facts = env.step(action)
        states.append(observation["observation.state"])
        cubes.append(facts["cube"])
    return np.stack(states), np.stack(cubes)


# Joint targets are in degrees, as LeRobot has them, not in the range that Gymnasium recommends; and
# made directly rather than by `gymnasium.make`, the environment has no spec.
recommendations = pytest.mark.filterwarnings("ignore:.*(symmetric and normalized|having a spec)")


@recommendations
def test_gymnasium_finds_nothing_to_object_to(physics):
    check_env(physics, skip_render_check=True)


@recommendations
def test_gymnasium_finds_nothing_to_object_to_with_pictures(renderer):
    env = PickCube(height=24, width=32)
    check_env(env)
    env.close()


def test_the_same_seed_gives_the_same_trajectory():
    first, second = (play(PickCube(render=False), seed=4) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_another_seed_gives_another_start(physics):
    assert not np.array_equal(play(physics, seed=4, steps=0)[0], play(physics, seed=5, steps=0)[0])


def test_an_episode_leaves_no_trace_in_the_next(physics):
    fresh = play(PickCube(render=False), seed=7, steps=20)
    play(physics, seed=3)
    again = play(physics, seed=7, steps=20)
    np.testing.assert_array_equal(fresh[0], again[0])
    np.testing.assert_array_equal(fresh[1], again[1])


def test_the_same_seed_gives_the_same_pictures(renderer):
    digests = []
    for _ in range(2):
        env = PickCube(height=48, width=64)
        observation, _ = env.reset(seed=9)
        for _ in range(3):
            observation, *_ = env.step(HOME)
        digests.append(
            [
                hashlib.sha256(observation[f"observation.images.{camera}"].tobytes()).hexdigest()
                for camera in ("top", "lateral")
            ]
        )
        env.close()
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[0][1]


@pytest.mark.parametrize("size", [(240, 320), (480, 640)])
def test_observations_have_lerobots_keys_shapes_and_types(renderer, size):
    env = PickCube(height=size[0], width=size[1])
    observation, _ = env.reset(seed=0)
    assert {key: (value.shape, value.dtype.name) for key, value in observation.items()} == {
        "observation.images.top": ((*size, 3), "uint8"),
        "observation.images.lateral": ((*size, 3), "uint8"),
        "observation.state": ((6,), "float32"),
    }
    assert env.render().shape == (size[0], 2 * size[1], 3)
    env.close()


@pytest.mark.parametrize("cube_xy", [(0.135, -0.145), (0.225, 0.12), (0.18, 0.0)])
def test_the_cube_is_at_least_ten_pixels_wide_in_both_cameras(renderer, cube_xy):
    env = PickCube()
    observation, _ = env.reset(seed=0, options={"cube_xy": cube_xy})
    for camera in ("top", "lateral"):
        picture = observation[f"observation.images.{camera}"].astype(int)
        red = (picture[..., 0] > 100) & (picture[..., 1:].max(axis=-1) < 60)
        rows, columns = np.nonzero(red)
        assert np.ptp(columns) + 1 >= 10
        assert np.ptp(rows) + 1 >= 10
        assert red.sum() >= 80
    env.close()


def test_options_replace_only_what_they_name(physics):
    drawn_state, drawn = physics.reset(seed=2)
    moved_state, moved = physics.reset(seed=2, options={"cube_xy": CUBE})
    np.testing.assert_array_equal(
        drawn_state["observation.state"], moved_state["observation.state"]
    )
    assert drawn["cube"][3] == moved["cube"][3]
    np.testing.assert_allclose(moved["cube"][:2], CUBE)
    turned, facts = physics.reset(seed=2, options={"cube_yaw": 0.4, "arm": HOME})
    assert facts["cube"][3] == pytest.approx(0.4)
    np.testing.assert_allclose(facts["cube"][:2], drawn["cube"][:2])
    np.testing.assert_allclose(turned["observation.state"], HOME, atol=1e-4)


def test_an_unknown_option_is_named(physics):
    with pytest.raises(ValueError, match="unknown \\['cube'\\]"):
        physics.reset(options={"cube": CUBE})


def test_without_a_position_the_cube_starts_in_the_demonstrated_cells(physics):
    places = [physics.reset(seed=seed)[1]["cube"][:2] for seed in range(50)]
    assert {region_of(*place) for place in places} == {Region.TRAIN}


def test_a_resting_arm_stays_where_it_is_told(physics):
    physics.reset(seed=0, options={"arm": HOME, "cube_xy": CUBE})
    for _ in range(25):
        observation, reward, terminated, truncated, facts = physics.step(HOME)
    np.testing.assert_allclose(observation["observation.state"], HOME, atol=0.05)
    assert (reward, terminated, truncated, facts["success"]) == (0.0, False, False, False)
    np.testing.assert_allclose(facts["cube"][:3], [*CUBE, CUBE_HALF], atol=1e-3)


def test_targets_beyond_the_limits_are_clipped(physics):
    far = np.full(len(JOINTS), 1e6)
    physics.reset(seed=0)
    beyond = [physics.step(far)[0]["observation.state"] for _ in range(5)]
    physics.reset(seed=0)
    limit = [physics.step(physics.action_space.high)[0]["observation.state"] for _ in range(5)]
    np.testing.assert_array_equal(beyond, limit)


def test_info_tells_touch_from_grasp_from_lift(physics):
    observation, facts = physics.reset(seed=1, options={"cube_xy": CUBE})
    story = [facts]
    for action in plan(observation["observation.state"], CUBE, facts["cube"][3]):
        *_, facts = physics.step(action)
        story.append(facts)
    grasped = [facts["is_grasped"] for facts in story]
    lifted = [facts["success"] for facts in story]
    assert not any(grasped[:43])
    assert all(grasped[53:])
    assert grasped.index(True) < lifted.index(True)
    assert all(lifted[lifted.index(True) :])
    for facts in story:
        assert facts["is_grasped"] == (facts["fixed_jaw_touches"] and facts["moving_jaw_touches"])
    np.testing.assert_allclose(story[-1]["tip"][:2], story[-1]["cube"][:2], atol=0.012)


def test_a_policy_can_be_loaded_after_a_picture_was_drawn(renderer):
    script = (
        "from actlens.sim.environment import PickCube; env = PickCube(height=24, width=32); "
        "env.reset(seed=0); env.close(); import torchvision; print('alive')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
