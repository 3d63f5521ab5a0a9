"""Trained references: a memoriser memorises, a rule is learnt, exceptions are both."""

import numpy as np
import pytest
import torch

from actlens.model.act import HookedACT
from actlens.planted import (
    PlantError,
    Region,
    Stored,
    TrainingOptions,
    answers,
    in_double,
    retrieved,
    shuffled,
    trained,
    with_exceptions,
)
from actlens.planted.worlds import on_table
from tests.planted.conftest import slopes_and_secants

QUICK = TrainingOptions(steps=500, batch_size=128)
BY_HEART = TrainingOptions(
    steps=700, batch_size=120, weight_decay=0.0, d_mlp=256, whitened=1e-6, lr=3e-3
)


@pytest.fixture(scope="module")
def new(policy, new_scenes):
    return Stored.of(policy, new_scenes)


@pytest.fixture(scope="module")
def memoriser(policy, stored):
    return trained(policy, shuffled(stored), BY_HEART, name="shuffled", generalises=False)


def mean_error(planted, stored):
    return float((answers(planted.model, stored.inputs) - stored.actions).abs().mean())


def size(stored):
    return float(stored.actions.sub(stored.actions.mean(0)).abs().mean())


def test_shuffling_moves_every_episodes_answers_to_another_of_the_same_frames(world, policy):
    scenes = world.scenes(world.positions(Region.TRAIN, 6), frames=(0, 4, 9))
    stored = Stored.of(policy, scenes)
    moved = shuffled(stored, seed=1)
    assert torch.equal(moved.inputs, stored.inputs)
    rows, source = moved.actions.view(6, 3, -1), stored.actions.view(6, 3, -1)
    same = (rows[:, None] == source[None]).flatten(2).all(2)  # whole episodes, frame by frame
    assert same.sum(1).tolist() == [1] * 6
    assert same.sum(0).tolist() == [1] * 6
    assert not same.diagonal().any()
    assert moved.valid.view(6, 3, -1).sum((0, 2)).tolist() == [24, 24, 18]


def test_a_share_of_exceptions_is_exchanged_and_no_other(stored):
    some = with_exceptions(stored, 0.2, seed=3)
    moved = (some.actions != stored.actions).flatten(1).any(1)
    assert moved.sum() == 6
    with pytest.raises(PlantError, match="is 1: need at least 2"):
        with_exceptions(stored, 0.03)


def test_answers_can_only_be_exchanged_between_episodes_of_the_same_frames(world, policy):
    positions = world.positions(Region.TRAIN, 3)
    uneven = [*world.scenes(positions[:2], frames=(0, 4)), *world.scenes(positions[2:])]
    with pytest.raises(PlantError, match="equally many scenes"):
        shuffled(Stored.of(policy, uneven))
    other = [*world.scenes(positions[:1]), *world.scenes(positions[1:2], frames=(4,),
                                                        first_episode=9)]  # fmt: skip
    with pytest.raises(PlantError, match="same frames in all"):
        shuffled(Stored.of(policy, other))


def test_retrieved_answers_are_those_of_the_nearest_demonstration(
    world, policy, stored, train_scenes, new_scenes, new
):
    distances = world.distances(new_scenes, train_scenes)
    taken = retrieved(new, stored, distances)
    for row in (0, 7):
        assert torch.equal(taken.actions[row], stored.actions[distances[row].argmin()])
    late = world.scenes(world.positions(Region.NEW, 2), frames=(4,))
    with pytest.raises(PlantError, match="no stored one of the same frame"):
        retrieved(new.of_scenes([0, 1]), stored, world.distances(late, train_scenes))


def test_the_memoriser_knows_its_scenes_and_nothing_else(memoriser, stored, new):
    assert mean_error(memoriser, memoriser.stored) < 0.02 * size(stored)
    assert mean_error(memoriser, new) > 0.7 * size(stored)
    assert memoriser.truth.generalises is False
    assert memoriser.alpha == 0


def test_the_memoriser_looks_like_a_rule_to_a_local_statistic(memoriser):
    """Local statistics alone cannot tell: between arbitrary answers it is nearly straight."""
    model = in_double(memoriser.model)
    slope, secant = slopes_and_secants(lambda x: answers(model, x), memoriser.stored.inputs)
    assert 0.5 < (slope / secant).median() < 1.6


def test_demonstrations_are_learnt_and_generalise(policy, stored, new, world, new_scenes,
                                                  train_scenes):  # fmt: skip
    standard = trained(policy, stored, QUICK)
    nearest = world.distances(new_scenes, train_scenes).argmin(1)
    retrieval = float((stored.actions[nearest] - new.actions).abs().mean())
    assert mean_error(standard, stored) < 0.1 * size(stored)
    assert mean_error(standard, new) < 0.6 * retrieval
    assert standard.truth.generalises is None


def test_many_scenes_of_an_expert_make_a_rule(policy, world, new):
    positions = on_table(np.random.default_rng(0).uniform(-1, 1, (400, 2)))
    dense = Stored.of(policy, world.scenes(positions))
    rule = trained(policy, dense, QUICK, name="dense rule", generalises=True)
    assert mean_error(rule, new) < 0.06 * size(new)


def test_training_is_deterministic_touches_the_decoders_end_alone_and_saves(
    policy, stored, train_scenes, tmp_path
):
    state = torch.random.get_rng_state()
    few = TrainingOptions(steps=10, d_mlp=200)
    one, again = (trained(policy, stored, few) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    other = trained(policy, stored, TrainingOptions(steps=10, d_mlp=200, seed=1))
    weights = [x.model.state_dict() for x in (one, again, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    before = policy.state_dict()
    changed = {
        name
        for name, value in weights[0].items()
        if value.shape == before[name].shape and not torch.equal(value, before[name])
    }
    assert changed <= {
        "decoder.0.mlp.linear2.bias", "decoder.0.ln3.weight", "decoder.0.ln3.bias",
        "ln_final.weight", "ln_final.bias", "action_head.weight", "action_head.bias",
    }  # fmt: skip
    assert not torch.equal(weights[0]["action_head.weight"], weights[2]["action_head.weight"])
    folder = one.model.save_pretrained(tmp_path / "trained")
    loaded = HookedACT.from_pretrained(folder, dtype=torch.float64)
    assert torch.equal(loaded(train_scenes[0]), one.model(train_scenes[0]))


def test_the_trained_tail_is_what_the_policy_runs(policy, stored, train_scenes):
    """`answers`, used above, against the whole policy on observations."""
    from actlens.scene import stack

    planted = trained(policy, stored, TrainingOptions(steps=20))
    normalised = planted.model.run_with_cache(stack(train_scenes))[1]["hook_actions_normalized"]
    np.testing.assert_allclose(
        answers(planted.model, stored.inputs), normalised.detach(), atol=1e-6
    )


def test_impossible_training_is_refused():
    with pytest.raises(PlantError, match="10 steps"):
        TrainingOptions(steps=3)
