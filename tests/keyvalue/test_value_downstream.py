"""Derivatives through attention against slopes of forwards, consistency against planted signs."""

from dataclasses import replace

import pytest
import torch

from actlens.config import ACTION_KEY
from actlens.keyvalue.directions import DirectionError
from actlens.keyvalue.downstream import SampledDirection, sampled_direction
from actlens.keyvalue.effects import Effects
from actlens.keyvalue.profiles import scene_weights
from actlens.keyvalue.ranking import rank_neurons
from actlens.model.act import HookedACT
from actlens.scenes.dataset import open_dataset
from tests.keyvalue.value_models import (
    BLOCKS,
    EPISODES,
    adding,
    chunk_with,
    runs_of,
    small_policy,
    some_scenes,
    values_of,
)


@pytest.fixture(scope="module", params=BLOCKS, ids="-".join)
def place(request, new_model):
    """A policy, one of its blocks, and the runs kept there."""
    name, block = request.param
    model = small_policy(new_model, name)
    return model, block, runs_of(model, block, some_scenes())


# ── derivatives ──────────────────────────────────────────────────────────────────────────────


def test_derivatives_are_slopes_of_whole_forwards(place):
    model, block, runs = place
    scenes, positions, neuron = (0, 3, 3, 5), (1, 0, 4, 2), 6
    found = sampled_direction(model, runs, neuron, scenes, positions)
    step = 1e-5
    value = values_of(model, block)[neuron]
    for row, (number, position) in enumerate(zip(scenes, positions, strict=True)):
        one = some_scenes()[number]
        there, back = (
            chunk_with(model, one, adding(block, sign * step * value, position)) for sign in (1, -1)
        )
        slope = (there - back) / (2 * step)
        torch.testing.assert_close(found.derivatives[row], slope, rtol=1e-5, atol=1e-9)
        assert found.coefficients[row] == runs.keys[number, position, neuron]
    assert found.derivatives.abs().max() > 1e-4


def test_more_samples_than_a_batch_are_the_same_samples(new_model):
    model = small_policy(new_model)
    runs = runs_of(model, "encoder.0", some_scenes())
    scenes, positions = [0, 1, 2, 3, 4, 5] * 3, list(range(18))
    every = sampled_direction(model, runs, 3, scenes, positions)
    some = sampled_direction(model, runs, 3, scenes[7:10], positions[7:10])
    torch.testing.assert_close(every.derivatives[7:10], some.derivatives)


def test_behind_the_last_decoder_mlp_it_is_the_closed_form(new_model):
    model = small_policy(new_model)
    runs = runs_of(model, "decoder.0", some_scenes())
    found = sampled_direction(model, runs, 5, (1, 4), (0, 2))
    effects = Effects.of(model, runs)
    for row, (scene, position) in enumerate(((1, 0), (4, 2))):
        expected = torch.zeros(5, 3, dtype=torch.float64)
        expected[position] = effects.linear(scene)[5, position]
        torch.testing.assert_close(found.effect[row], expected)


def test_a_control_is_the_value_with_its_entries_in_another_order(new_model):
    model = small_policy(new_model)
    runs = runs_of(model, "encoder.1", some_scenes())
    asked = (2, (0, 1, 2, 3, 4, 5), (5, 9, 1, 0, 3, 7))
    found = sampled_direction(model, runs, *asked, n_controls=4, seed=3)
    assert len(found.control_consistency) == 4
    weight = model.encoder[1].mlp.linear2.weight
    own, generator = weight[:, 2].clone(), torch.Generator().manual_seed(3)
    for consistency in found.control_consistency:
        weight[:, 2] = own[torch.randperm(len(own), generator=generator)]
        assert sampled_direction(model, runs, *asked).consistency == consistency


# ── consistency: planted derivatives ─────────────────────────────────────────────────────────


def planted(derivatives, groups=None, weights=None, joints=3):
    n, chunk = len(derivatives), derivatives.shape[1]
    every = torch.arange(n)
    return SampledDirection(
        neuron=12,
        joints=tuple(f"joint_{i}" for i in range(joints)),
        spread=torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64),
        scenes=every,
        positions=every,
        groups=every if groups is None else torch.tensor(groups),
        coefficients=torch.ones(n),
        derivatives=derivatives.double(),
        weights=torch.ones(n, chunk) if weights is None else weights,
        control_consistency=torch.zeros(0),
    )


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_planted_direction_is_found_under_noise():
    direction = noise(5, 3, seed=1)
    found = planted(direction + 0.5 * noise(200, 5, 3))
    assert found.consistency > 0.98
    torch.testing.assert_close(found.direction, direction, rtol=0, atol=0.2)
    in_units = direction.mean(0) * torch.tensor([1.0, 2.0, 4.0])
    torch.testing.assert_close(found.by_joint, in_units, rtol=0, atol=0.4)
    torch.testing.assert_close(found.profile, found.derivatives.norm(dim=-1).mean(0))


def test_noise_has_no_direction():
    found = planted(noise(200, 5, 3))
    assert 0.35 < found.consistency < 0.65
    with pytest.raises(
        DirectionError, match=r"Neuron 12 has no direction: \d+% of its 200 samples"
    ):
        _ = found.direction
    with pytest.raises(DirectionError, match="no direction"):
        _ = found.by_joint
    assert found.profile.isfinite().all()


def test_two_random_samples_do_not_agree_because_each_is_in_the_mean():
    """With the sample in its own mean, both cosines would be positive whatever the samples."""
    apart = noise(2, 5, 3)
    apart[1] = -0.9 * apart[0] + 0.1 * apart[1]
    mean = apart.mean(0)
    assert ((apart * mean).sum((1, 2)) > 0).any()
    assert planted(apart).consistency == 0


def test_frames_of_one_episode_are_no_evidence_for_one_another():
    one, other = noise(5, 3), -noise(5, 3)
    copies = torch.stack([one] * 9 + [other])
    assert planted(copies, groups=[0] * 9 + [1]).consistency == 0
    assert planted(copies).consistency == 0.9


def test_the_p_value_counts_all_patterns_of_signs():
    groups = [0, 0, 1, 2, 2, 3, 4]
    # Samples of a group resemble one another more than their own noise would have it.
    of_group = 2.0 * noise(5, 5, 3, seed=8)[groups]
    found = planted(noise(1, 5, 3) + of_group + noise(7, 5, 3, seed=4), groups=groups)
    assert 0 < found.consistency < 1
    reached = []
    for pattern in range(2**5):
        signs = torch.tensor([1.0 if pattern >> g & 1 else -1.0 for g in groups])
        flipped = planted(found.derivatives * signs[:, None, None], groups=groups)
        reached.append(flipped.consistency >= found.consistency)
    exact = sum(reached) / len(reached)
    assert found.p_value() == pytest.approx(exact, abs=0.015)
    assert planted(noise(60, 5, 3)).p_value() > 0.05


def test_agreement_is_the_weighted_cosine_with_the_other_groups_mean():
    weights = torch.rand(4, 5, generator=torch.Generator().manual_seed(2)).repeat_interleave(2, 0)
    found = planted(noise(8, 5, 3), groups=[0, 0, 1, 1, 2, 2, 3, 3], weights=weights)
    root = weights.double().sqrt()[..., None]
    rows = (found.derivatives * root).flatten(1)
    for sample in (0, 5):
        others = rows[found.groups != found.groups[sample]].mean(0)
        cosine = torch.cosine_similarity(rows[sample], others, dim=0)
        torch.testing.assert_close(found.agreement[sample], cosine)


def test_positions_that_do_not_count_have_no_say():
    derivatives = noise(5, 3) + 0.01 * noise(20, 5, 3)
    derivatives[:, 3:] = 100 * noise(20, 2, 3, seed=9)
    weights = torch.ones(20, 5)
    weights[:, 3:] = 0
    found = planted(derivatives, weights=weights)
    assert found.consistency == 1
    assert found.direction[:3].isfinite().all()
    assert found.direction[3:].isnan().all()
    assert found.by_joint.abs().max() < 10
    assert planted(derivatives).consistency < 0.8


def test_the_frame_has_a_row_for_every_sample(new_model):
    model = small_policy(new_model)
    scenes = some_scenes(n_padded=2)
    runs = runs_of(model, "encoder.0", scenes)
    weights = scene_weights(model.config, scenes)
    found = sampled_direction(
        model, runs, 1, (5, 0, 2), (3, 3, 8), weights=weights, groups=EPISODES
    )
    frame = found.frame()
    assert frame["group"].to_list() == [2, 0, 1]
    assert frame["position"].to_list() == [3, 3, 8]
    at = lambda x: model.normalizer.unnormalize(ACTION_KEY, x)
    mean = found.derivatives[0, :3].mean(0)  # the last two positions are padded
    in_units = at(mean) - at(torch.zeros_like(mean))
    assert frame.loc[0, list(model.config.joints)].to_list() == pytest.approx(
        in_units.tolist(), abs=1e-6
    )


@pytest.mark.parametrize(
    ("neuron", "scenes", "positions", "groups", "message"),
    [
        (24, (0, 2), (0, 0), None, "no neuron 24: they go from 0 to 23"),
        (0, (0, 6), (0, 0), None, "no scene 6: they go from 0 to 5"),
        (0, (0, 2), (0, 99), None, "no position 99"),
        (0, (0, 2), (0,), None, "2 scenes and 1 positions"),
        (0, (), (), None, "0 scenes"),
        (0, (3, 3), (0, 1), None, "All 2 samples of neuron 0 are of one"),
        (0, (0, 1), (0, 1), EPISODES, "needs two at least"),
    ],
)
def test_bad_requests_are_refused(new_model, neuron, scenes, positions, groups, message):
    model = small_policy(new_model)
    runs = runs_of(model, "encoder.0", some_scenes())
    with pytest.raises(DirectionError, match=message):
        sampled_direction(model, runs, neuron, scenes, positions, groups=groups)


def test_a_bundled_neuron_and_its_controls():
    model = HookedACT.from_pretrained("so101-pick-cube")
    dataset = open_dataset("so101-pick-cube")
    scenes = list(dataset.scenes(chunk=50, episodes=[0, 30, 60, 90], frames=[0, 30]))
    runs = runs_of(model, "encoder.2", scenes)
    neuron = int(rank_neurons(model, runs).strongest(1))
    best = runs.keys[:, :, neuron].max(1)
    found = sampled_direction(
        model, runs, neuron, range(len(scenes)), best.indices.tolist(),
        weights=scene_weights(model.config, scenes), groups=[one.episode for one in scenes],
        n_controls=2,
    )  # fmt: skip
    assert found.control_consistency.shape == (2,)
    assert 0 < found.p_value() <= 1
    twice = replace(found, derivatives=2 * found.derivatives)
    assert twice.consistency == found.consistency
