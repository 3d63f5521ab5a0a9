"""Interchange before and after the encoder, against hooks and a planted relay."""

import numpy as np
import pytest
import torch
from relay import relay_policy

from actlens.attention import TokenGroup, attention, interchange, leave_one_out, token_groups
from actlens.config import ACTION_KEY
from actlens.interventions import run_scene


def moved(policy, scene, base, donor, hook, tokens):
    """Root mean square of the action's movement under a swap made by a plain hook."""

    def swap(value, hook):
        value = value.clone()
        value[:, list(tokens)] = donor[hook.name][:, list(tokens)]
        return value

    with policy.hooks(fwd_hooks=[(hook, swap)]), torch.no_grad():
        actions = policy.predict(policy.prepare(scene))[0]
    at = lambda x: policy.normalizer.unnormalize(ACTION_KEY, x)
    return float((at(actions) - at(base.actions)).square().mean().sqrt())


def test_groups_make_up_all_tokens(policy):
    groups = token_groups(policy.tokens)
    parts = [token for group in groups if group.is_part for token in group.tokens]
    assert sorted(parts) == list(range(len(policy.tokens)))
    (pixels,) = [group for group in groups if not group.is_part]
    assert pixels.tokens == tuple(range(policy.config.n_vector_tokens, len(policy.tokens)))


def test_swaps_are_hooked_forwards(policy, scenes, runs):
    groups = token_groups(policy.tokens)
    found = interchange(policy, *runs, groups, counted=np.ones(policy.config.chunk))
    for at, group in enumerate(groups):
        for hook, size in (("embed.hook_tokens", "at_input"), ("encoder.hook_out", "at_memory")):
            expected = moved(policy, scenes[0], *runs, hook, group.tokens)
            assert getattr(found, size)[at] == pytest.approx(expected, rel=1e-6, abs=1e-12)
    everything = tuple(range(len(policy.tokens)))
    own = moved(policy, scenes[0], *runs, "encoder.hook_out", everything)
    assert found.scenes_differ == pytest.approx(own)


def test_the_latent_is_a_constant_before_the_encoder_and_not_behind_it(policy, runs):
    groups = token_groups(policy.tokens)
    found = interchange(policy, *runs, groups, counted=np.ones(policy.config.chunk))
    assert groups[0].name == "latent"
    assert found.at_input[0] == found.carried_total[0] == 0.0
    assert not found.carried_along[0].any()
    assert found.at_memory[0] > 1e-6


def test_all_tokens_together_carry_everything(policy, runs):
    state = TokenGroup("some", (1, 2, 3))
    everything = TokenGroup("all", tuple(range(len(policy.tokens))))
    counted = np.ones(policy.config.chunk)
    found = interchange(policy, *runs, (state, everything), counted=counted)
    assert found.carried_along[:, 1] == pytest.approx(found.carried_total)
    assert found.at_input[1] == found.at_memory[1] == pytest.approx(found.scenes_differ)


def test_a_group_called_as_a_donor_is_no_trap(policy, runs):
    counted = np.ones(policy.config.chunk)
    named = [
        interchange(policy, *runs, (TokenGroup(name, (1, 2)),), counted=counted)
        for name in ("other", "state")
    ]
    assert named[0].at_memory == named[1].at_memory
    assert named[0].carried_along == named[1].carried_along


def test_the_relay_hides_the_cause_from_attention(relay_scene):
    """Attention on the state is 0; all of the effect is its, and another token carries it."""
    policy = relay_policy()
    base, other = (run_scene(policy, relay_scene(seed)) for seed in (0, 1))
    groups = token_groups(policy.tokens)
    assert [group.name for group in groups] == ["latent", "state", "env_state"]
    pattern = attention(policy, base)[0, 0]  # of the head that is planted
    assert float(pattern[:, 1].max()) < 1e-12
    assert float(pattern[:, 2].min()) == pytest.approx(1)
    found = interchange(policy, base, other, groups, counted=np.ones(policy.config.chunk))
    assert found.scenes_differ > 0.1
    assert found.at_input == pytest.approx([0, found.scenes_differ, 0], abs=1e-9)
    assert found.at_memory == pytest.approx([0, 0, found.scenes_differ], abs=1e-9)
    assert found.carried_along[1] / found.carried_total[1] == pytest.approx([0, 0, 1], abs=1e-9)
    assert leave_one_out(policy, base)[:2] == pytest.approx(0, abs=1e-9)
