"""Figures of a layer: planted memories whose counts are known, and forwards under hooks."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from actlens.errors import SceneError
from actlens.keyvalue import (
    Contributions,
    Directions,
    Keys,
    find_patterns,
    read_memories,
    run_entries,
    scene_weights,
)
from actlens.keyvalue.composition import composition_numbers, stream_numbers
from actlens.keyvalue.layers import activity_numbers, agreement_numbers
from actlens.keyvalue.traits import demonstrated
from tests.keyvalue.value_models import runs_of, small_policy, some_scenes
from tests.rome.conftest import scene

EPISODES = np.array([0, 0, 1, 1, 2, 2])


@pytest.fixture(scope="module")
def policy(new_model):
    return small_policy(new_model)


def by_name(numbers):
    assert len({number.name for number in numbers}) == len(numbers)
    return {number.name: number for number in numbers}


def contributions_of(policy, coefficients, directions):
    """Made up: memories with these coefficients and directions, every norm of scale 1."""
    real = Contributions.of(policy, runs_of(policy, "decoder.0", some_scenes()))
    return replace(
        real,
        coefficients=coefficients,
        directions=replace(real.directions, normalized=directions),
        scale=torch.ones(coefficients.shape[:2], dtype=torch.float64),
    )


def composed(policy, coefficients, directions):
    parts = contributions_of(policy, coefficients, directions.double())
    weights = torch.ones(coefficients.shape[:2], dtype=torch.float64)
    return by_name(composition_numbers(parts, weights, EPISODES))


def test_one_memory_that_gives_the_action_is_no_composition(policy):
    coefficients = torch.zeros(6, 5, 10)
    coefficients[..., 4] = 1.0
    found = composed(policy, coefficients, torch.eye(3).repeat(4, 1)[:10])
    assert found["no single memory gives the action"].value == 0
    assert found["the strongest memory"].value == 1
    assert found["memories that carry 90 %"].value == 1


def test_memories_at_right_angles_compose(policy):
    directions = torch.zeros(10, 3)
    directions[:3] = torch.eye(3)
    coefficients = torch.zeros(6, 5, 10)
    coefficients[..., :3] = torch.tensor([1.0, 1.0, 2.0])
    found = composed(policy, coefficients, directions)
    assert found["no single memory gives the action"].value == 1
    assert found["the strongest memory"].value == pytest.approx(0.5)
    # Half is carried by the strongest, 80 % and 90 % take all three (0.5, 0.75, 1).
    assert found["memories that carry 50 %"].value == 1
    assert found["memories that carry 80 %"].value == 3
    # The null deals the coefficients to memories that mostly say nothing.
    assert found["the strongest memory"].null != pytest.approx(0.5)


def test_positions_that_do_not_count_and_episodes_enter_as_they_should(policy):
    coefficients = torch.zeros(6, 5, 10)
    coefficients[..., 0] = 1.0
    coefficients[4:, :, 1] = 1.0  # in the last episode two memories at right angles
    directions = torch.zeros(10, 3).double()
    directions[:2] = torch.eye(3)[:2]
    parts = contributions_of(policy, coefficients, directions)
    weights = torch.ones(6, 5, dtype=torch.float64)
    weights[4:, 1:] = 0.0
    found = by_name(composition_numbers(parts, weights, EPISODES))
    number = found["no single memory gives the action"]
    assert number.value == pytest.approx(2 / 22)
    assert np.isnan(number.low)  # three episodes are too few for an interval


@pytest.fixture(scope="module")
def reading(policy):
    entries = run_entries(policy, [scene(i, per_episode=2) for i in range(40)], "decoder.0")
    keys = Keys.of(policy, "decoder.0")
    return read_memories([keys, keys.shuffled()], entries)


def test_activity_is_beside_that_of_shuffled_keys(reading):
    found = by_name(activity_numbers(*reading))
    active = found["active memories at an entry"]
    own, shuffled = (one.activity for one in reading)
    assert active.value == pytest.approx(own.active.mean())
    assert active.low < active.value < active.high
    assert active.null == pytest.approx(shuffled.active.mean())
    assert found["memories that never fire"].value == (own.active == 0).mean()


def test_values_that_point_where_their_triggers_go_agree(policy, reading):
    own, _ = reading
    patterns = find_patterns(own, draws=99)
    chosen = np.flatnonzero(patterns.n_triggers)
    at = [own.trait_names.index(demonstrated(j)) for j in policy.config.joints]
    units = torch.from_numpy(own.by_episode.traits[..., at])
    everywhere = policy.normalizer.normalize(
        "action", torch.from_numpy(own.background.traits[:, at])
    )
    towards = torch.zeros(len(units), 3, dtype=torch.float64)
    for neuron in chosen:
        used = policy.normalizer.normalize("action", units[neuron, : patterns.n_triggers[neuron]])
        towards[neuron] = used.double().mean(0) - everywhere.double().mean(0)
    directions = Directions.of(policy)
    planted = replace(directions, normalized=3 * towards)
    found = by_name(agreement_numbers(policy, own, patterns, planted, draws=199))
    cosine = found["a value points where its triggers go"]
    assert cosine.value == pytest.approx(1)
    assert cosine.p == 1 / 200
    assert abs(cosine.null) < 0.5
    opposite = replace(directions, normalized=-towards)
    found = by_name(agreement_numbers(policy, own, patterns, opposite, draws=199))
    assert found["a value points where its triggers go"].value == pytest.approx(-1)
    assert found["values within 60 degrees of their triggers"].value == 0
    untold = replace(own, trait_names=tuple("x" * len(name) for name in own.trait_names))
    with pytest.raises(SceneError, match="no demonstrated actions"):
        agreement_numbers(policy, untold, patterns, directions)


@pytest.mark.parametrize("block", ["decoder.0", "encoder.1"])
def test_replacing_the_mlp_or_the_stream_is_what_hooks_do(policy, block):
    scenes = some_scenes(n_padded=2)
    runs = runs_of(policy, block, scenes)
    found = by_name(stream_numbers(policy, scenes, runs, EPISODES, tolerance=0.05))
    point = policy.hook_dict
    stream = {
        "decoder.0": "decoder.0.hook_normalized_resid_mid_cross",
        "encoder.1": "encoder.1.hook_normalized_resid_mid",
    }[block]
    assert stream in point
    batch = {
        key: torch.stack([one.observation[key] for one in scenes]) for key in scenes[0].observation
    }
    names = [stream, f"{block}.hook_mlp_out", f"{block}.hook_resid_post"]
    actions, cache = policy.run_with_cache(batch, names_filter=names)
    mlp, beside = cache[names[1]], cache[names[0]]
    mean = lambda x: x.mean(0, keepdim=True).expand_as(x)
    weights = scene_weights(policy.config, scenes)

    def cost(resid_post):
        put = lambda value, hook: resid_post
        with torch.no_grad(), policy.hooks([(names[2], put)]):
            moved = policy(batch)
        change = (moved - actions).abs()
        close = (change.amax(-1) <= 0.05).double()
        return float((change.mean(-1) * weights).sum() / weights.sum()), close

    without_mlp, same_stream = cost(beside + mean(mlp))
    without_stream, same_mlp = cost(mean(beside) + mlp)
    assert found["MLP replaced by its mean"].value == pytest.approx(without_mlp, rel=1e-5)
    assert found["stream replaced by its mean"].value == pytest.approx(without_stream, rel=1e-5)
    kinds = {
        "the stream alone gives the action": same_stream * (1 - same_mlp),
        "the MLP alone gives the action": same_mlp * (1 - same_stream),
        "either gives it": same_mlp * same_stream,
        "only both together": (1 - same_mlp) * (1 - same_stream),
    }
    total = 0.0
    for name, expected in kinds.items():
        share = float((expected * weights).sum() / weights.sum())
        assert found[name].value == pytest.approx(share, abs=1e-9)
        total += found[name].value
    assert total == pytest.approx(1)
    assert found["MLP replaced by its mean"].null > found["MLP replaced by its mean"].value * 0.5
