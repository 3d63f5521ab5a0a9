"""First-order effects of all neurons at once against slopes and ablations of whole forwards."""

import pytest
import torch

from actlens.config import ACTION_KEY
from actlens.keyvalue.directions import DirectionError
from actlens.keyvalue.downstream import sampled_direction
from actlens.keyvalue.profiles import scene_weights
from actlens.keyvalue.ranking import neuron_ablation, rank_neurons
from actlens.metrics import Positions
from actlens.model.act import HookedACT
from actlens.scenes.dataset import open_dataset
from tests.keyvalue.value_models import (
    BLOCKS,
    chunk_with,
    holding,
    runs_of,
    small_policy,
    some_scenes,
)


@pytest.fixture(scope="module", params=BLOCKS, ids="-".join)
def place(request, new_model):
    """A policy, one of its blocks, and the runs kept there."""
    name, block = request.param
    model = small_policy(new_model, name)
    return model, block, runs_of(model, block, some_scenes())


def test_the_ranking_is_the_slope_of_the_mean_executed_action(place):
    model, block, runs = place
    ranking = rank_neurons(model, runs)
    step = 1e-5
    for number in (0, 4):
        one = some_scenes()[number]
        for neuron in ranking.strongest(2).tolist():
            own = runs.keys[number, :, neuron]
            there, back = (
                chunk_with(model, one, holding(block, neuron, own * (1 - sign * step)))[:3].mean(0)
                for sign in (1, -1)
            )
            slope = (there - back) / (2 * step)
            torch.testing.assert_close(ranking.effect[number, neuron], slope, rtol=1e-5, atol=1e-9)
    assert (ranking.gross >= ranking.effect.abs() - 1e-12).all()
    size = ranking.effect.square().mean((0, 2)).sqrt()
    assert ranking.strongest(5).tolist() == size.topk(5).indices.tolist()


def test_the_ranking_adds_up_the_samples(place):
    model, _, runs = place
    weights = torch.rand(6, 5, dtype=torch.float64)
    ranking = rank_neurons(model, runs, weights)
    n_positions = runs.keys.shape[1]
    neuron = int(ranking.strongest(1))
    every = list(range(n_positions)) * 2
    found = sampled_direction(model, runs, neuron, [0] * n_positions + [1] * n_positions, every)
    mean = torch.einsum("skj,k->sj", found.effect[:n_positions], weights[0] / weights[0].sum())
    torch.testing.assert_close(ranking.effect[0, neuron], mean.sum(0))
    torch.testing.assert_close(ranking.gross[0, neuron], mean.abs().sum(0))
    frame = ranking.frame()
    at = lambda x: model.normalizer.unnormalize(ACTION_KEY, x)
    moved = ranking.effect.mean(0)[neuron]
    in_units = at(moved) - at(torch.zeros_like(moved))
    assert frame.loc[neuron, list(model.config.joints)].to_list() == pytest.approx(
        in_units.tolist(), abs=1e-6
    )


@pytest.mark.parametrize("replacement", [0.0, 0.7])
def test_an_ablation_is_a_forward_in_which_the_neuron_is_held(place, replacement):
    model, block, runs = place
    moved = neuron_ablation(model, runs, 8, replacement=replacement)
    for number in (1, 5):
        one = some_scenes()[number]
        held = chunk_with(model, one, holding(block, 8, replacement))
        torch.testing.assert_close(
            moved[number], held - chunk_with(model, one), rtol=1e-9, atol=1e-12
        )


def test_a_scene_that_counts_nothing_and_a_neuron_that_is_not_there_are_refused(new_model):
    model = small_policy(new_model)
    runs = runs_of(model, "encoder.0", some_scenes())
    weights = torch.ones(6, 5)
    weights[3] = 0
    with pytest.raises(DirectionError, match="Scene 3 counts no chunk position"):
        rank_neurons(model, runs, weights)
    with pytest.raises(DirectionError, match="no neuron -1"):
        neuron_ablation(model, runs, -1)


@pytest.fixture(scope="module")
def bundled():
    model = HookedACT.from_pretrained("so101-pick-cube")
    dataset = open_dataset("so101-pick-cube")
    return model, list(dataset.scenes(chunk=50, episodes=[0, 30, 60, 90], frames=[0, 30]))


@pytest.mark.parametrize("block", ["encoder.0", "encoder.2"])
def test_the_bundled_policys_encoder_neurons_are_ranked_by_what_ablations_do(bundled, block):
    model, scenes = bundled
    runs = runs_of(model, block, scenes)
    executed = scene_weights(model.config, scenes, Positions.EXECUTED)
    ranking = rank_neurons(model, runs, executed)
    executed = executed / executed.sum(1, keepdim=True)
    misses = []
    for neuron in ranking.strongest(8).tolist():
        exact = torch.einsum("skj,sk->sj", neuron_ablation(model, runs, neuron).double(), executed)
        misses.append(float((ranking.effect[:, neuron] - exact).norm() / exact.norm()))
    assert sorted(misses)[4] <= 0.1
