"""Masked attention against hooked forwards."""

import numpy as np
import pytest
import torch

from actlens.attention import leave_one_out, only_own_top, only_tokens, sufficiency, without_tokens
from actlens.attention.masking import only_own_random, over_positions, rms_of
from actlens.attention.weights import cross_attentions
from actlens.config import ACTION_KEY
from actlens.interventions import run


def hooked(policy, scene, keep):
    """The normalised action with cross-attention's pattern cut to what `keep` allows."""

    def cut(pattern, hook):
        kept = pattern * keep(pattern)
        return kept / kept.sum(-1, keepdim=True)

    names = [f"{name}.hook_pattern" for name in cross_attentions(policy)]
    with policy.hooks(fwd_hooks=[(name, cut) for name in names]), torch.no_grad():
        return policy.predict(policy.prepare(scene))[0]


def only(tokens):
    def keep(pattern):
        mask = torch.zeros(pattern.shape[-1], dtype=pattern.dtype)
        mask[list(tokens)] = 1
        return mask

    return keep


def spread(policy):
    zeros = torch.zeros(1, policy.config.action_dim, dtype=torch.float64)
    at = lambda x: policy.normalizer.unnormalize(ACTION_KEY, x)
    return (at(zeros + 1) - at(zeros))[0]


def test_masked_attention_is_a_hooked_forward(policy, scenes, runs):
    kept = (0, 2, 5)
    out = [i for i in range(len(policy.tokens)) if i not in kept]
    found = run(policy, runs[0], [only_tokens(policy, kept), without_tokens(policy, out)]).actions
    expected = hooked(policy, scenes[0], only(kept))
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], expected)


def test_every_head_and_query_can_keep_its_own(policy, scenes, runs):
    found = run(policy, runs[0], [only_own_top(policy, 3)]).actions[0]

    def largest(pattern):
        return (pattern >= pattern.sort(-1, descending=True).values[..., 2:3]).to(pattern)

    torch.testing.assert_close(found, hooked(policy, scenes[0], largest))


def test_the_random_control_keeps_as_many(policy, runs):
    from actlens.interventions import activations_under

    name = f"{cross_attentions(policy)[0]}.hook_pattern"
    seen = [
        activations_under(policy, runs[0], only_own_random(policy, 3, seed), [name])[name] > 0
        for seed in (0, 1)
    ]
    assert all((one.sum(-1) == 3).all() for one in seen)
    assert not torch.equal(*seen)


def test_leaving_out_is_exact_in_dataset_units(policy, scenes, runs):
    found = leave_one_out(policy, runs[0])
    assert found.shape == (len(policy.tokens), policy.config.chunk)
    for token in (0, 1, len(policy.tokens) - 1):
        others = [i for i in range(len(policy.tokens)) if i != token]
        moved = (hooked(policy, scenes[0], only(others)) - runs[0].actions) * spread(policy)
        assert found[token] == pytest.approx(moved.square().mean(-1).sqrt().numpy())


def test_sufficiency_is_the_error_of_the_masked_action(policy, scenes, runs):
    counted = np.ones(policy.config.chunk)
    counted[-1] = 0
    order = np.arange(len(policy.tokens))[::-1]
    found = sufficiency(policy, runs[0], {"last": order}, (1, 4), counted=counted, random=2)
    assert set(found) == {"last", "random", "own", "own_random"}
    for at, k in enumerate((1, 4)):
        moved = (hooked(policy, scenes[0], only(order[:k].tolist())) - runs[0].actions) * spread(
            policy
        )
        expected = moved[:-1].square().mean().sqrt()
        assert found["last"][at] == pytest.approx(float(expected))


def test_random_errors_are_means_over_draws(act, observe):
    from actlens.interventions import run_scene

    base, counted = run_scene(act, observe(act, rows=1)), np.ones(act.config.chunk)
    own = run(act, base, [only_own_random(act, 2, seed) for seed in (7, 8, 9)]).actions
    found = sufficiency(act, base, {}, (2,), counted=counted, random=3, seed=7)
    moved = (own - base.actions) * spread(act)
    expected = moved.square().mean((1, 2)).sqrt().mean()
    assert found["own_random"] == pytest.approx([float(expected)])


def test_random_tokens_depend_on_the_seed_alone(act, observe):
    from actlens.interventions import run_scene

    base, counted = run_scene(act, observe(act, rows=1)), np.ones(act.config.chunk)
    draw = lambda seed: sufficiency(act, base, {}, (2,), counted=counted, seed=seed)
    assert draw(1)["random"] == draw(1)["random"]
    assert draw(1)["random"] != draw(2)["random"]
    assert draw(1)["own"] == draw(2)["own"]


def test_errors_are_root_mean_squares_over_what_counts():
    moved = torch.tensor([[[3.0, 4.0], [100.0, 100.0]]], dtype=torch.float64)
    assert rms_of(moved, np.array([1.0, 0.0])) == pytest.approx([12.5**0.5])
    assert over_positions(np.array([[3.0, 4.0]]), np.ones(2)) == pytest.approx([12.5**0.5])
