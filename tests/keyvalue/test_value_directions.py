"""Directions and contributions against planted values and forwards with frozen LayerNorms."""

import pytest
import torch

from actlens.config import ACTION_KEY
from actlens.keyvalue.attribution import Contributions
from actlens.keyvalue.directions import DirectionError, Directions
from actlens.model.act import HookedACT
from actlens.scenes.dataset import open_dataset
from tests.keyvalue.value_models import (
    ARCHITECTURES,
    chunk_with,
    holding,
    last_block,
    runs_of,
    small_policy,
    some_scenes,
    values_of,
)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def policy(request, new_model):
    return small_policy(new_model, request.param)


@pytest.fixture(scope="module")
def runs(policy):
    return runs_of(policy, last_block(policy), some_scenes())


def last_norms(model):
    return ["ln_final"] if model.config.pre_norm else [f"{last_block(model)}.ln3", "ln_final"]


def planted_value(model, direction):
    """A value that the read-out must show as `direction`: the norms' and the head's equations,
    solved backwards for a vector that loses nothing to centring."""
    gammas = [model.get_submodule(name).weight for name in last_norms(model)]
    # The head's input must give the direction, and be what a centred vector times gamma is.
    rows = torch.cat([model.action_head.weight, (1 / gammas[-1])[None]])
    read = torch.linalg.pinv(rows) @ torch.cat([direction, direction.new_zeros(1)])
    value = read / gammas[-1]
    for gamma in reversed(gammas[:-1]):
        value = value / gamma
        value = value - value.mean() / (1 / gamma).mean() / gamma  # a constant behind gamma
    return value


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_planted_direction_is_recovered(new_model, name):
    model = small_policy(new_model, name)
    wanted = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    layer = model.get_submodule(f"{last_block(model)}.mlp.linear2")
    layer.weight[:, 7] = planted_value(model, wanted) + 0.9
    directions = Directions.of(model)
    torch.testing.assert_close(directions.normalized[7], wanted, rtol=0, atol=1e-10)
    at = lambda x: model.normalizer.unnormalize(ACTION_KEY, x)
    moved = at(wanted) - at(torch.zeros_like(wanted))
    torch.testing.assert_close(directions.in_units[7], moved, rtol=1e-6, atol=1e-6)
    frame = directions.frame()
    assert list(frame.columns) == list(model.config.joints)
    assert frame.loc[7].to_list() == directions.in_units[7].tolist()


def test_what_a_layer_norm_removes_makes_no_difference(new_model):
    model = small_policy(new_model)
    before = Directions.of(model).normalized
    model.decoder[0].mlp.linear2.weight += 3.0
    torch.testing.assert_close(Directions.of(model).normalized, before, rtol=0, atol=1e-12)


def test_a_contribution_is_what_ablation_does_with_the_norms_scales_frozen(policy, runs):
    """The referee is the policy itself, with hooks that hold the scales at their own values."""
    contributions, block = Contributions.of(policy, runs), last_block(policy)
    names = [f"{name}.hook_scale" for name in last_norms(policy)]
    for number in (0, 4):
        one = some_scenes()[number]
        with torch.no_grad():
            own = policy.run_with_cache(one, names_filter=names)[1]
        frozen = [(name, lambda x, hook, own=own: own[hook.name]) for name in names]
        # Through the same unfused norms on both sides.
        start = chunk_with(policy, one, frozen)
        firing = contributions.of_scene(number).norm(dim=(0, 2)).topk(3).indices.tolist()
        for neuron in firing:
            without = chunk_with(policy, one, frozen + holding(block, neuron, 0.0))
            ours = contributions.of_scene(number)[:, neuron]
            torch.testing.assert_close(ours, start - without, rtol=1e-9, atol=1e-12)
            assert ours.abs().max() > 1e-3


def test_the_terms_sum_to_the_policys_actions(policy, runs):
    contributions = Contributions.of(policy, runs)
    assert contributions.incompleteness <= 1e-12
    by_hand = torch.stack([contributions.of_scene(i).sum(1) for i in range(len(runs.keys))])
    torch.testing.assert_close(contributions.layer, by_hand)


def test_the_layers_share_counts_every_neuron_with_its_sign(policy, runs):
    contributions = Contributions.of(policy, runs)
    every = torch.stack([contributions.of_scene(i) for i in range(len(runs.keys))])
    weights = torch.rand(runs.keys.shape[:2], dtype=torch.float64)
    expected = torch.einsum("sknj,sk->nj", every.abs(), weights) / weights.sum()
    torch.testing.assert_close(contributions.by_neuron(weights), expected)
    torch.testing.assert_close(contributions.by_neuron(), every.abs().mean((0, 1)))


def test_the_table_of_one_action_sums_to_it(policy, runs):
    table = Contributions.of(policy, runs).strongest(2, 1, n=4)
    at = lambda x: policy.normalizer.unnormalize(ACTION_KEY, x)
    action = at(runs.actions[2, 1]) - at(torch.zeros_like(runs.actions[2, 1]))
    summed = torch.tensor(table[list(policy.config.joints)].sum().to_numpy())
    torch.testing.assert_close(summed, action, rtol=1e-6, atol=1e-6)
    every = Contributions.of(policy, runs).of_scene(2)[1].norm(dim=-1)
    named = [int(term.split()[1]) for term in table.index[:4]]
    assert named == every.topk(4).indices.tolist()
    assert table["size"].to_list()[:4] == pytest.approx(every.topk(4).values.tolist())


def test_other_mlps_are_refused_by_name(new_model):
    model = small_policy(new_model, "two_decoder_layers")
    for block in ("decoder.0", "encoder.1"):
        with pytest.raises(DirectionError, match=rf"Behind {block} attention.*decoder\.1's have"):
            Contributions.of(model, runs_of(model, block, some_scenes(2)))


def test_the_bundled_policys_actions_are_complete_to_a_millionth():
    model = HookedACT.from_pretrained("so101-pick-cube")
    scenes = open_dataset("so101-pick-cube").scenes(
        chunk=50, episodes=[0, 40], frames=slice(None, None, 25)
    )
    runs = runs_of(model, "decoder.0", list(scenes))
    assert runs.actions.dtype == torch.float32
    assert Contributions.of(model, runs).incompleteness <= 1e-6
    assert values_of(model, "decoder.0").shape == (1024, 256)
