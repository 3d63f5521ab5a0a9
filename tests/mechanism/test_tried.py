"""Surrogates in the place of the MLP, and of all behind the action vector."""

from dataclasses import replace

import numpy as np
import pytest

from actlens.errors import SceneError
from actlens.mechanism import LINEAR, Vectored, mlp_stand_in, tried, tried_frame
from actlens.mechanism.tried import DECODER, MLP
from actlens.planted import LinearRule, Region, Stored, Table, World, plant

N = 30


@pytest.fixture(scope="module")
def runs():
    """A planted rule and a planted table, in scenes that they know and in others."""
    world = World(seed=5)
    shown = world.scenes(world.positions(Region.TRAIN, N))
    new = world.scenes(world.positions(Region.NEW, 10), first_episode=500)
    policy = world.policy()
    stored = Stored.of(policy, shown)
    mechanisms = {"rule": LinearRule(), "table": Table()}
    models = {name: plant(policy, stored, m).model for name, m in mechanisms.items()}
    return {n: tuple(Vectored.of(m, s, [0, 2]) for s in (shown, new)) for n, m in models.items()}


EPISODES = np.arange(N)


def changes(found):
    own = found[0].actions
    return {(one.part, one.surrogate): np.abs(one.actions - own).mean() for one in found}


def test_the_policy_comes_first_and_is_itself(runs):
    own, new = runs["rule"]
    found = tried(own, EPISODES, new)
    assert (found[0].part, found[0].surrogate) == ("", "the policy itself")
    expected = new.tail.model.normalizer.unnormalize("action", new.actions).numpy()
    np.testing.assert_allclose(found[0].actions, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("part", [MLP, DECODER])
def test_a_linear_map_stands_in_for_a_rule_and_an_entry_does_not(runs, part):
    rule = changes(tried(runs["rule"][0], EPISODES, runs["rule"][1]))
    assert rule[part, "linear map"] < 0.5 * rule[part, "nearest entry"]


def test_nothing_stands_in_for_a_table_at_scenes_it_was_not_given(runs):
    rule, table = (changes(tried(own, EPISODES, new)) for own, new in runs.values())
    for name in ("linear map", "nearest entry"):
        assert table[MLP, name] > 3 * rule[MLP, "linear map"]


def test_at_what_it_was_given_a_table_cannot_be_told_from_a_rule(runs):
    rule, table = (changes(tried(own, EPISODES)) for own, _ in runs.values())
    for name in ("mean", "linear map", "nearest entry", "kernel smoother"):
        assert table[MLP, name] == pytest.approx(rule[MLP, name], rel=0.2)


def test_across_episodes_a_surrogate_never_saw_the_scene_that_it_answers(runs):
    own, _ = runs["table"]
    folds = tried(own, EPISODES, n_folds=N)
    others = np.delete(EPISODES, 3)
    at = lambda rows: replace(own, x=own.x[rows], actions=own.actions[rows])
    fitted = mlp_stand_in(at(others), LINEAR, others)
    expected = own.tail.with_output(own.x[[3]], fitted(own.x[[3]]))
    expected = own.tail.model.normalizer.unnormalize("action", expected).detach().numpy()
    (linear,) = (one for one in folds if (one.part, one.surrogate) == (MLP, LINEAR.name))
    np.testing.assert_allclose(linear.actions[[3]], expected, rtol=1e-4, atol=1e-4)


def test_errors_are_from_expert_and_policy_over_what_was_demonstrated(runs):
    own, new = runs["rule"]
    found = tried(own, EPISODES, new)
    expert = found[0].actions + 2.0
    counted = np.ones((10, 2), bool)
    counted[:, 1] = False
    expert[:, 1] += 1e6
    table = tried_frame(found, expert, counted, np.arange(10)).set_index(["part", "surrogate"])
    assert table.to_expert["", "the policy itself"] == pytest.approx(2)
    assert table.to_policy["", "the policy itself"] == 0
    shifted = np.abs(found[1].actions - expert)[:, 0].mean()
    assert table.to_expert[found[1].part, found[1].surrogate] == pytest.approx(shifted)
    assert (table.to_expert_low <= table.to_expert).all()


def test_one_episode_is_not_enough(runs):
    with pytest.raises(SceneError, match="give two"):
        tried(runs["rule"][0], np.zeros(N, int))
