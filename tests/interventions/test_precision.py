"""Changes passed on in bfloat16 against exact ones: close in relative terms, however small."""

import pytest
import torch

from actlens.interventions import (
    Constant,
    Edit,
    FromScene,
    Intervention,
    Precision,
    Steering,
    random_subspace,
    run,
    run_scene,
    run_within,
)
from actlens.sites import Site

CLEAN = FromScene("clean")


def interventions(model):
    """Single tokens and sets, whole activations, heads, neurons and joint edits."""
    streams = [f"encoder.{i}.hook_resid_pre" for i in range(model.config.n_encoder_layers)]
    made = [
        Intervention.at(Site(name, {"token": token}), CLEAN)
        for name in [*streams, "embed.hook_tokens", "encoder.hook_out"]
        for token in (1, (2, 5), slice(0, 12))
    ]
    made += [
        Intervention.at(Site("encoder.0.attn.hook_z", {"head": 1}), CLEAN),
        Intervention.at(Site("encoder.0.attn.hook_q", {"token": 4}), CLEAN),
        Intervention.at(Site("encoder.0.mlp.hook_post", {"neuron": slice(0, 9)}), Constant(1.0)),
        Intervention.at(Site("decoder.0.cross_attn.hook_v"), CLEAN),
        Intervention.at(Site("decoder.0.cross_attn.hook_pattern"), CLEAN),
        Intervention.at(Site("decoder.0.hook_mlp_out"), CLEAN),
    ]
    edits = (Edit(Site("encoder.0.hook_attn_out", {"token": 3}), Constant()),)
    made.append(Intervention((*edits, Edit(Site("encoder.hook_out", {"token": 1}), CLEAN))))
    return made


def relative_errors(model, base, made, donors):
    exact, half = (
        run(model, base, made, donors, precision=precision).actions - base.actions
        for precision in Precision
    )
    return (half - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)


def test_effects_in_half_precision_are_the_exact_ones_to_a_few_parts_in_a_thousand(policy, runs):
    errors = relative_errors(policy, runs[0], interventions(policy), {"clean": runs[1]})
    assert 0 < errors.max() < 0.03
    assert errors.median() < 0.01


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6])
def test_small_effects_keep_their_relative_precision(policy, runs, scale):
    vector = tuple(random_subspace(policy.config.d_model, 1, seed=2)[0].tolist())
    made = [
        Intervention.at(Site("encoder.0.hook_resid_pre", {"token": token}), Steering(vector, scale))
        for token in range(6)
    ]
    errors = relative_errors(policy, runs[0], made, {})
    assert errors.median() < 0.02
    assert errors.max() < 0.1, "activations in bfloat16 would drown the smaller ones altogether"


def test_the_audit_is_exact_whatever_the_precision(act, observe):
    base, clean = (run_scene(act, observe(act, rows=1, seed=seed)) for seed in (0, 1))
    made, donors = interventions(act), {"clean": clean}
    exact = run(act, base, made, donors)
    within = lambda allowed: run_within(
        act, base, made, donors, max_error=allowed, n_audit=4, precision=Precision.HALF
    )
    effects, audit = within(0.02)
    assert 0 < audit.largest <= 0.02
    assert not torch.equal(effects.actions, exact.actions)
    effects, audit = within(1e-9)
    assert audit.tolerance == 0, "no tolerance makes up for bfloat16: exact after all"
    torch.testing.assert_close(effects.actions, exact.actions)
