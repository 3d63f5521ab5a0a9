"""Circuits by their own claims, with plain hooks, and the tools they referee."""

import itertools
import math

import numpy as np
import pytest
import torch

from actlens.attribution import AttributionOptions, Cut, attribute_pairs
from actlens.config import ENV_STATE_KEY, STATE_KEY
from actlens.keyvalue import Keys, find_patterns, read_memories
from actlens.keyvalue.entries import run_entries
from actlens.model.act import HookedACT
from actlens.planted import (
    additive_policy,
    copy_head,
    dead_policy,
    gated_pair,
    gated_policy,
    latent_switch,
    phase_policy,
    relay_pairs,
    relay_policy,
    scene_of,
)
from actlens.planted.relay import DENOISE_MAP

EPISODES_OWN = [f"felt joint_{i}" for i in range(2, 6)]
"""Traits that say nothing of the phase."""
ALL = {
    "copy head": lambda: copy_head().model,
    "additive": lambda: additive_policy().model,
    "phases": lambda: phase_policy().model,
    "switch": lambda: latent_switch().model,
    "relay": relay_policy,
    "gated": gated_policy,
    "dead": dead_policy,
}


def draw(seed, n=6):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", ALL)
def test_every_circuit_saves_and_loads(name, tmp_path):
    model = ALL[name]()
    again = HookedACT.from_pretrained(model.save_pretrained(tmp_path / "it"), dtype=torch.float64)
    scene = scene_of(draw(0), draw(1))
    assert torch.equal(again(scene), model(scene))


# ── relay and gate ───────────────────────────────────────────────────────────────────────────


def patched(model, hook, token, clean, corrupt):
    cached = model.run_with_cache(clean)[1][hook]

    def put(value, hook):
        value = value.clone()
        value[:, token] = cached[:, token]
        return value

    with torch.no_grad(), model.hooks([(hook, put)]):
        return model(corrupt)


@torch.no_grad()
def test_the_relays_patching_map_is_exact_while_attention_on_the_cause_is_zero():
    model = relay_policy()
    (pair,) = relay_pairs(1)
    assert not torch.equal(pair.clean.observation[STATE_KEY], pair.corrupt.observation[STATE_KEY])
    assert torch.equal(
        pair.clean.observation[ENV_STATE_KEY], pair.corrupt.observation[ENV_STATE_KEY]
    )
    corrupt = model(pair.corrupt)
    delta = model(pair.clean) - corrupt
    assert delta.abs().max() > 0.1
    for row, hook in enumerate([*(f"encoder.{i}.hook_resid_pre" for i in range(3)),
                                "encoder.hook_out"]):  # fmt: skip
        for token in range(3):
            moved = patched(model, hook, token, pair.clean, pair.corrupt) - corrupt
            share = float((moved * delta).sum() / delta.square().sum())
            assert share == pytest.approx(DENOISE_MAP[row][token], abs=1e-6)
    pattern = model.run_with_cache(pair.clean)[1]["decoder.0.cross_attn.hook_pattern"]
    assert pattern[:, 0, :, 1].max() < 1e-12
    np.testing.assert_allclose(pattern[:, 0, :, 2], 1, atol=1e-9)


def test_attribution_misses_the_gate_and_its_audit_says_so():
    model = gated_policy()
    cut = Cut.of(model, "encoder.hook_out", ("token",))
    result = attribute_pairs(
        model, [gated_pair()], [cut], options=AttributionOptions(min_effect=0.0)
    )
    gate = result.frame().set_index("token").loc[2]
    assert abs(gate.denoise) < 0.01
    assert gate.exact_denoise == pytest.approx(1, abs=1e-6)
    missed = result.missed()
    assert set(missed.address) == {"encoder.hook_out[env_state]"}


# ── copy head ────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def test_the_copy_head_alone_carries_the_action():
    circuit = copy_head()
    state, env = draw(2), draw(3)
    scene = scene_of(state, env)
    np.testing.assert_allclose(circuit.model(scene)[0], env.expand(5, -1), atol=1e-6)
    assert circuit.model.tokens.names.index(circuit.token) == 2
    pattern = circuit.model.run_with_cache(scene)[1]["decoder.0.cross_attn.hook_pattern"]
    np.testing.assert_allclose(pattern[0, circuit.head, :, 2], 1, atol=1e-9)

    for head in range(4):

        def silence(value, hook, head=head):
            value = value.clone()
            value[:, :, head] = 0
            return value

        with circuit.model.hooks([("decoder.0.cross_attn.hook_z", silence)]):
            found = circuit.model(scene)[0]
        left = torch.zeros(6).double() if head == circuit.head else env
        np.testing.assert_allclose(found, left.expand(5, -1), atol=1e-6)


# ── additive joints ──────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def test_shapley_values_of_the_additive_policy_are_those_of_the_definition():
    policy = additive_policy(seed=3)
    state, base = draw(4), draw(5)
    chosen = np.array(list(itertools.product([False, True], repeat=6)))
    mixed = torch.where(torch.from_numpy(chosen), state, base)
    found = torch.stack([policy.model(scene_of(row))[0, 2] for row in mixed])
    np.testing.assert_allclose(found, policy.parts(mixed).sum(-1), atol=1e-5)
    by_set = {tuple(row): value for row, value in zip(chosen, found, strict=True)}
    shapley = torch.zeros(6, 6).double()
    for row in chosen:
        size = row.sum()
        for joint in np.flatnonzero(~row):
            weight = math.factorial(size) * math.factorial(5 - size) / math.factorial(6)
            after = row.copy()
            after[joint] = True
            shapley[:, joint] += weight * (by_set[tuple(after)] - by_set[tuple(row)])
    np.testing.assert_allclose(shapley, policy.shapley(state, base), atol=1e-5)
    assert (policy.bend.abs() > 0.1).any(), "it is not linear"


# ── phases ───────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def test_phase_neurons_are_on_in_their_phase_of_every_episode():
    phases = phase_policy()
    assert len(phases.neurons) == 3
    for episode in (0, 5):
        for frame in range(phases.length):
            cache = phases.model.run_with_cache(phases.scene(episode, frame))[1]
            on = cache["decoder.0.mlp.hook_post"][0, :, list(phases.neurons)] > 1e-9
            assert on.all(0).tolist() == [frame in frames for frames in phases.on]


def test_pattern_analysis_types_the_phase_neurons_by_frame_and_no_other():
    phases = phase_policy()
    scenes = [phases.scene(e, t) for e in range(40) for t in range(phases.length)]
    keys = Keys.of(phases.model, "decoder.0")
    entries = run_entries(phases.model, scenes, "decoder.0", batch_size=100)
    (reading,) = read_memories([keys], entries, top=10)
    patterns = find_patterns(reading, draws=199, sizes=(10,))
    frame = patterns.traits.index("frame")
    own = [i for i, name in enumerate(patterns.traits) if name in EPISODES_OWN]
    assert len(own) == 4
    found = patterns.significant()
    for neuron, on in zip(phases.neurons, phases.on, strict=True):
        assert found[neuron, frame]
        low, high, _ = patterns.region[neuron, frame]
        assert min(on) <= low <= high <= max(on)
        assert patterns.score[neuron, own].max() < 0.5 * patterns.score[neuron, frame]
    others = np.setdiff1d(np.arange(48), phases.neurons)
    assert found[others, frame].sum() == 0


# ── the latent ───────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def test_the_latent_switches_one_joint_and_is_off_at_inference():
    switch = latent_switch()
    state = draw(6)
    scene = scene_of(state)
    np.testing.assert_allclose(switch.model(scene)[0, 0], switch.answer(state), atol=1e-6)
    assert switch.answer(state)[switch.joint] == 0
    for number in (-2.0, -0.05, 0.03, 1.5):
        latent = torch.zeros(1, 4)
        latent[0, switch.dimension] = number
        found = switch.model(scene, latent=latent)[0]
        np.testing.assert_allclose(found, switch.answer(state, number).expand(5, -1), atol=1e-5)
    other = torch.zeros(1, 4)
    other[0, switch.dimension + 1] = 3.0
    np.testing.assert_allclose(switch.model(scene, latent=other), switch.model(scene), atol=1e-6)


@torch.no_grad()
def test_the_posterior_reads_the_choice_off_a_demonstration():
    switch = latent_switch()
    state = draw(7)
    scene = scene_of(state)
    for sign in (1.0, -1.0):
        chunk = switch.answer(state, sign).expand(1, 5, -1)
        mean, log_variance = switch.model.posterior(switch.model.prepare(scene), chunk)
        assert mean[0, switch.dimension] == pytest.approx(sign * switch.amount, abs=1e-4)
        np.testing.assert_allclose(mean[0, switch.dimension + 1 :], 0, atol=1e-5)
        assert log_variance.exp().max() < 1.1e-4
        # With the latent of the demonstration the policy does it; without, it stays between.
        np.testing.assert_allclose(switch.model(scene, action=chunk), chunk, atol=1e-5)
        missing = (switch.model(scene) - chunk).abs().amax((0, 1))
        assert missing[switch.joint] == pytest.approx(switch.amount, abs=1e-5)


# ── nothing ──────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def test_the_dead_policy_is_alive_inside_and_answers_one_chunk():
    model = dead_policy()
    (one, first), (other, second) = (
        model.run_with_cache(scene_of(draw(i), draw(i + 1))) for i in (0, 8)
    )
    assert torch.equal(one, other)
    assert one.abs().max() > 0.5
    for hook in ("encoder.0.hook_resid_pre", "encoder.hook_out", "decoder.0.hook_action_vector"):
        assert (first[hook] - second[hook]).abs().max() > 0.1
