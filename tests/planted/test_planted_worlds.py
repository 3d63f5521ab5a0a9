"""Worlds: where things are, what the expert does there, and what the policy sees of it."""

import numpy as np
import pytest
import torch

from actlens.config import ENV_STATE_KEY, STATE_KEY
from actlens.model.act import HookedACT
from actlens.planted import LinearExpert, PlantError, ReachExpert, Region, World, action_vectors
from actlens.planted.experts import HOME
from actlens.planted.worlds import on_table, places


def polar(positions):
    return np.hypot(*positions.T), np.arctan2(positions[:, 1], positions[:, 0])


def test_a_world_is_the_same_every_time_and_another_with_another_seed(world):
    again = World(seed=2)
    positions = world.positions(Region.TRAIN, 12)
    np.testing.assert_array_equal(positions, again.positions(Region.TRAIN, 12))
    np.testing.assert_array_equal(positions[:5], world.positions(Region.TRAIN, 5))
    assert not np.allclose(positions, world.positions(Region.TRAIN, 12, seed=1))
    assert not np.allclose(positions, World(seed=3).positions(Region.TRAIN, 12))
    one, other = world.policy().state_dict(), again.policy().state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_regions_are_where_they_are_said_to_be(world):
    low, high = 0.17 * 0.9, 0.50 * 0.9
    for region in Region:
        radius, angle = polar(world.positions(region, 200))
        inside = (np.abs(radius - 0.1725) <= 0.0425 + 1e-9) & (np.abs(angle) <= 0.9 + 1e-9)
        in_gap = (angle > low) & (angle < high)
        assert inside.all() == (region is not Region.OUTSIDE)
        assert inside.any() == (region is not Region.OUTSIDE)
        if region is not Region.OUTSIDE:
            assert in_gap.all() == (region is Region.GAP) == in_gap.any()


def test_demonstrations_keep_their_distance(world):
    def nearest(positions):
        apart = np.linalg.norm(positions[:, None] - positions, axis=-1)
        return np.min(apart + np.eye(len(apart)))

    spaced = nearest(world.positions(Region.TRAIN, 60))
    assert spaced > 3 * nearest(world.positions(Region.NEW, 60))
    assert spaced > 0.004


def test_the_reaching_expert_takes_the_gripper_to_the_object(world):
    scenes = world.scenes(world.positions(Region.NEW, 20), frames=(4,))
    tip = world.tip(world.actions(scenes)[:, 7 - 4])  # two thirds of twelve steps: on the object
    np.testing.assert_allclose(tip[:, :2], places(scenes), atol=1e-9)
    np.testing.assert_allclose(tip[:, 2], 0.012, atol=1e-9)


def test_the_linear_expert_is_linear_and_the_reaching_one_is_not():
    positions = on_table(np.random.default_rng(0).uniform(-1, 1, (50, 2)))
    affine = np.column_stack([positions, np.ones(50)])

    def left_over(expert):
        path = expert(positions, 12).reshape(50, -1)
        fitted = affine @ np.linalg.lstsq(affine, path, rcond=None)[0]
        return np.abs(path - fitted).max()

    assert left_over(LinearExpert(1)) < 1e-9
    assert left_over(ReachExpert()) > 1.0


def test_an_object_out_of_reach_is_refused():
    with pytest.raises(ValueError, match=r"cannot reach \(0.400, 0.000\)"):
        ReachExpert()(np.array([[0.2, 0.0], [0.4, 0.0]]), 12)


def test_scenes_hold_the_demonstration_and_where_the_object_is(world):
    positions = world.positions(Region.TRAIN, 3)
    scenes = world.scenes(positions, frames=(0, 5, 10), first_episode=7)
    assert [(s.episode, s.frame) for s in scenes[:4]] == [(7, 0), (7, 5), (7, 10), (8, 0)]
    np.testing.assert_allclose(places(scenes)[::3], positions)
    path = world.expert(positions, world.n_steps)
    np.testing.assert_allclose(scenes[4].action, path[1, 5:9], rtol=1e-6)
    np.testing.assert_allclose(scenes[4].observation[STATE_KEY], path[1, 4], rtol=1e-6)
    assert scenes[5].action_is_pad.tolist() == [False, False, True, True]
    np.testing.assert_allclose(scenes[5].action[2], path[1, 11], rtol=1e-6)
    np.testing.assert_allclose(torch.stack([s.action for s in scenes]), world.actions(scenes))
    with pytest.raises(PlantError, match="12 frames: there is no frame 12"):
        world.scenes(positions, frames=(0, 12))


def test_at_the_start_the_arm_says_nothing_of_the_object(world, train_scenes):
    states = torch.stack([s.observation[STATE_KEY] for s in train_scenes])
    assert torch.equal(states, torch.from_numpy(HOME).float().expand_as(states))


def test_distances_are_metres_between_scenes_of_the_same_frame(world):
    positions = world.positions(Region.TRAIN, 2)
    scenes = world.scenes(positions, frames=(0, 4))
    apart = world.distances(scenes, scenes)
    expected = np.linalg.norm(positions[0] - positions[1])
    np.testing.assert_allclose(apart[0], [0, np.inf, expected, np.inf])


def test_nuisance_and_noise_are_seen_and_change_no_action(world):
    positions = world.positions(Region.TRAIN, 4)
    noisy = World(seed=2, nuisance=3, noise=0.002)
    plain, seen = world.scenes(positions), noisy.scenes(positions, frames=(0, 1))
    assert torch.equal(plain[2].action, seen[4].action)
    first, second = (scene.observation[ENV_STATE_KEY] for scene in seen[:2])
    assert torch.equal(first[2:], second[2:])
    assert 0 < (first[:2] - second[:2]).abs().max() < 0.02
    assert not torch.equal(first[2:], seen[2].observation[ENV_STATE_KEY][2:])
    moved = action_vectors(noisy.policy(), seen)
    assert (moved[0] - moved[2]).norm() > 0


def test_what_the_mlp_reads_keeps_clear_of_the_readout(world, policy, train_scenes, gap_scenes):
    vectors = action_vectors(policy, [*train_scenes, *gap_scenes])
    assert (vectors @ world.readout.taken).abs().max() < 1e-5
    np.testing.assert_allclose(vectors.square().mean(-1), 1, atol=1e-4)
    assert vectors.std(0).norm(dim=-1).min() > 0.1  # and varies with the scene


def test_the_bare_policy_answers_nothing_and_saves(world, tmp_path, train_scenes):
    model = world.policy()
    answers = torch.cat([model(scene) for scene in train_scenes[:3]])
    assert torch.equal(answers[0], answers[2])
    again = HookedACT.from_pretrained(model.save_pretrained(tmp_path / "bare"))
    assert torch.equal(action_vectors(again, train_scenes), action_vectors(model, train_scenes))


def test_the_policy_is_normalised_to_unit_variance(world):
    scenes = world.scenes(world.positions(Region.TRAIN, 60), frames=range(12))
    env = torch.stack([s.observation[ENV_STATE_KEY] for s in scenes])
    normalised = world.normalizer.normalize(ENV_STATE_KEY, env)
    np.testing.assert_allclose(normalised.std(0), 1, atol=0.2)
