"""Effects of single neurons against forwards in which hooks change them, and against slopes."""

import pytest
import torch
from torch.func import jacrev

from actlens.interventions import Constant, each_neuron_alone, run_scene
from actlens.keyvalue.directions import DirectionError
from actlens.keyvalue.effect_audit import audit_effects
from actlens.keyvalue.effects import Effects, mean_coefficients
from actlens.keyvalue.profiles import scene_weights
from actlens.metrics import Positions
from actlens.model.act import HookedACT
from actlens.scenes.dataset import open_dataset
from tests.keyvalue.value_models import (
    ARCHITECTURES,
    adding,
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


def test_the_exact_effect_is_what_a_forward_without_the_neuron_shows(policy, runs):
    block, effects = last_block(policy), Effects.of(policy, runs)
    for number in (0, 5):
        one = some_scenes()[number]
        exact = effects.exact(number)
        for neuron in exact.norm(dim=(1, 2)).topk(3).indices.tolist():
            moved = chunk_with(policy, one, holding(block, neuron, 0.0)) - chunk_with(policy, one)
            torch.testing.assert_close(exact[neuron], moved, rtol=1e-9, atol=1e-12)
            assert moved.abs().max() > 1e-3


def test_the_exact_effect_against_the_mean_is_that_of_holding_it_there(policy, runs):
    block, mean = last_block(policy), mean_coefficients(runs)
    torch.testing.assert_close(mean, runs.keys.mean((0, 1)))
    one, exact = some_scenes()[3], Effects.of(policy, runs, mean).exact(3)
    for neuron in (2, 9):
        held = chunk_with(policy, one, holding(block, neuron, mean[neuron]))
        torch.testing.assert_close(
            exact[neuron], held - chunk_with(policy, one), atol=1e-12, rtol=1e-9
        )


def test_all_neurons_agree_with_the_engines_closed_form(policy, runs):
    one = some_scenes()[1]
    base = run_scene(policy, one)
    ablated = each_neuron_alone(policy, base, Constant(0.0))
    torch.testing.assert_close(
        Effects.of(policy, runs).exact(1), ablated - base.actions, rtol=1e-9, atol=1e-12
    )


def test_the_linear_effect_is_the_slope_of_the_exact_one(policy, runs):
    step = 1e-6
    linear = Effects.of(policy, runs).linear(4)
    scales = [Effects.of(policy, runs, runs.keys * (1 + sign * step)) for sign in (-1, 1)]
    slope = (scales[0].exact(4) - scales[1].exact(4)) / (2 * step)
    torch.testing.assert_close(linear, slope, rtol=1e-6, atol=1e-8)


def test_the_jacobian_is_that_of_automatic_differentiation_and_of_finite_differences(policy, runs):
    effects, block = Effects.of(policy, runs), last_block(policy)
    one, position = some_scenes()[2], 3
    through = lambda x: runs.rest.at(torch.tensor([2]), torch.tensor([position]))(x[None, None])[
        0, 0
    ]
    ours = effects.jacobian(2, position)
    torch.testing.assert_close(
        ours, jacrev(through)(runs.output[2, position]), atol=1e-12, rtol=1e-9
    )
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(ours.shape[1], generator=generator, dtype=torch.float64)
    step = 1e-5
    there, back = (
        chunk_with(policy, one, adding(block, sign * step * vector, position))[position]
        for sign in (1, -1)
    )
    torch.testing.assert_close(ours @ vector, (there - back) / (2 * step), rtol=1e-6, atol=1e-9)


def test_the_frozen_reading_is_minus_the_contributions(policy, runs):
    from actlens.keyvalue.attribution import Contributions

    frozen = Effects.of(policy, runs).frozen(0)
    contributions = Contributions.of(policy, runs).of_scene(0)
    torch.testing.assert_close(frozen, -contributions.transpose(0, 1))


def test_size_and_audit_are_sums_over_what_is_weighed(policy, runs):
    effects = Effects.of(policy, runs)
    weights = torch.rand(runs.keys.shape[:2], dtype=torch.float64)
    weights[2] = 0
    stacked = lambda form: torch.stack([form(i) for i in range(effects.n_scenes)], 1)
    exact, linear, frozen = map(stacked, (effects.exact, effects.linear, effects.frozen))
    norm = lambda x: (x.square().sum(-1) * weights).sum((1, 2)).sqrt()
    size = norm(exact) / (weights.sum() * 3).sqrt()
    torch.testing.assert_close(effects.size(weights), size)
    audit = audit_effects(effects, weights, n_neurons=6)
    assert audit.neurons.tolist() == size.topk(6).indices.tolist()
    torch.testing.assert_close(audit.size, size[audit.neurons])
    for miss, form in ((audit.linear, linear), (audit.frozen, frozen)):
        expected = (norm(form - exact) / norm(exact))[audit.neurons]
        torch.testing.assert_close(miss.by_neuron, expected)
        assert miss.worst == pytest.approx(float(expected.max()))
        assert miss.median == pytest.approx(float(expected.quantile(0.5)))
    assert audit.frame()["median"].to_list() == [audit.linear.median, audit.frozen.median]


def test_a_neuron_that_never_fires_has_no_effect_and_is_not_audited(new_model):
    model = small_policy(new_model)
    model.decoder[0].mlp.linear1.bias[4] = -1e3
    effects = Effects.of(model, runs_of(model, "decoder.0", some_scenes(2)))
    assert effects.exact(0)[4].abs().max() < 1e-14
    assert effects.linear(0)[4].abs().max() == 0
    assert 4 not in audit_effects(effects, n_neurons=23).neurons


def test_other_mlps_are_refused(new_model):
    model = small_policy(new_model)
    with pytest.raises(DirectionError, match=r"encoder\.0"):
        Effects.of(model, runs_of(model, "encoder.0", some_scenes(2)))


# ── the bundled policy ───────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def bundled():
    model = HookedACT.from_pretrained("so101-pick-cube")
    dataset = open_dataset("so101-pick-cube")
    scenes = list(dataset.scenes(chunk=50, episodes=[0, 30, 60, 90], frames=[0, 20, 40, 60]))
    return model, scenes, runs_of(model, "decoder.0", scenes)


@pytest.mark.parametrize("against_mean", [False, True])
def test_the_whole_jacobian_predicts_ablations_and_frozen_scales_do_not(bundled, against_mean):
    model, scenes, runs = bundled
    weights = scene_weights(model.config, scenes)
    replacement = mean_coefficients(runs, weights) if against_mean else None
    audit = audit_effects(Effects.of(model, runs, replacement), weights)
    assert len(audit.neurons) == 40
    assert audit.linear.median <= 0.02
    assert audit.frozen.median >= 0.1
    assert audit.frozen.median >= 5 * audit.linear.median


def test_strong_neurons_effects_are_those_of_forwards_without_them(bundled):
    model, scenes, runs = bundled
    weights = scene_weights(model.config, scenes, Positions.EXECUTED)
    effects = Effects.of(model, runs)
    strongest = audit_effects(effects, weights, n_neurons=3).neurons.tolist()
    for number in (1, 9):
        start = chunk_with(model, scenes[number])
        for neuron in strongest:
            without = chunk_with(model, scenes[number], holding("decoder.0", neuron, 0.0))
            error = effects.exact(number)[neuron] - (without - start)
            assert error.abs().max() < 5e-6  # two forwards in float32


def test_jacobians_of_all_positions_at_once_are_the_effects_of_all_neurons(bundled):
    """Six backwards a position, then one product with the values: the textbook way."""
    model, _, runs = bundled
    effects = Effects.of(model, runs)
    at = lambda i, k: runs.rest.at(torch.tensor([i]), torch.tensor([k]))
    values = values_of(model, "decoder.0")
    for i, k in ((0, 0), (7, 31)):
        jacobian = jacrev(lambda x, i=i, k=k: at(i, k)(x[None, None])[0, 0])(runs.output[i, k])
        expected = -runs.keys[i, k][:, None] * (values @ jacobian.detach().T)
        torch.testing.assert_close(
            effects.linear(i)[:, k].float(), expected.detach(), rtol=1e-3, atol=1e-6
        )
