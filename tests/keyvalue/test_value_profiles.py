"""Profiles over the chunk against sums by hand, and planted neurons that know where they fire."""

import math

import pytest
import torch

from actlens.config import ACTION_KEY
from actlens.keyvalue.effects import Effects
from actlens.keyvalue.profiles import Profiles, scene_weights
from actlens.metrics import Positions
from tests.keyvalue.value_models import (
    ARCHITECTURES,
    last_block,
    runs_of,
    small_policy,
    some_scenes,
)


def profiles_of(model, scenes, positions=Positions.WHOLE):
    runs = runs_of(model, last_block(model), scenes)
    weights = scene_weights(model.config, scenes, positions)
    effects = Effects.of(model, runs)
    return Profiles.of(effects, runs.keys, weights), runs, effects, weights


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_profiles_are_means_over_the_scenes_that_count(new_model, name):
    model = small_policy(new_model, name)
    profiles, runs, effects, weights = profiles_of(model, some_scenes(n_padded=2))
    assert weights[-1].tolist() == [1, 1, 1, 0, 0]
    for position, n in ((0, 6), (4, 5)):
        keys = runs.keys[:n, position]
        torch.testing.assert_close(profiles.coefficient[:, position], keys.mean(0))
        exact = torch.stack([effects.exact(i)[:, position] for i in range(n)])
        torch.testing.assert_close(profiles.effect[:, position], exact.mean(0))


def test_a_planted_neuron_peaks_where_it_fires(new_model):
    model = small_policy(new_model)
    scenes = some_scenes()
    runs = runs_of(model, "decoder.0", scenes)
    with torch.no_grad():
        read = torch.stack(
            [
                model.run_with_cache(one, names_filter="decoder.0.hook_action_vector")[1][
                    "decoder.0.hook_action_vector"
                ][0]
                for one in scenes
            ]
        )
    # A key that tells position 3 from the others in every scene, and one that never fires.
    rows = torch.cat([read.flatten(0, 1), torch.ones(30, 1)], 1)
    wanted = torch.tensor([0.0, 0, 0, 1, 0]).double().repeat(6)
    key = torch.linalg.lstsq(rows, wanted[:, None]).solution[:, 0]
    mlp = model.decoder[0].mlp
    mlp.linear1.weight[2], mlp.linear1.bias[2] = key[:-1], key[-1] - 0.2
    mlp.linear1.bias[5] = -1e3
    profiles, runs, *_ = profiles_of(model, scenes)
    assert (runs.keys[:, 3, 2] > runs.keys[:, :3, 2].max()).all()
    assert profiles.coefficient_peak[2] == profiles.effect_peak[2] == 3
    assert profiles.variation[2] > 0.5
    assert profiles.coefficient_peak[5] == -1
    assert profiles.variation[5].isnan()


def test_positions_that_nobody_counts_are_unknown_and_no_peak(new_model):
    model = small_policy(new_model)
    profiles, *_ = profiles_of(model, some_scenes(), Positions.EXECUTED)
    assert profiles.coefficient[:, 3:].isnan().all()
    assert profiles.effect[:, 3:].isnan().all()
    assert profiles.coefficient[:, :3].isfinite().all()
    assert int(profiles.coefficient_peak.max()) <= 2
    frame = profiles.frame()
    neuron = int((profiles.effect_peak >= 0).nonzero()[0])
    there = profiles.effect[neuron, profiles.effect_peak[neuron]]
    at = lambda x: model.normalizer.unnormalize(ACTION_KEY, x)
    in_units = (at(there) - at(torch.zeros_like(there))).tolist()
    for joint, value in zip(model.config.joints, in_units, strict=True):
        assert math.isclose(frame.loc[neuron, joint], value, abs_tol=1e-6)
