"""Causal tracing on the planted relay; attention knockout against attention without the keys."""

import json

import pytest
import torch
from relay import DENOISE_MAP, relay_policy

from actlens.errors import HookNameError, InterventionError
from actlens.interventions import (
    Intervention,
    knock_out,
    noisy_tokens,
    restored,
    run,
    run_scene,
    token_spread,
)
from actlens.metrics import project
from actlens.scene import Scene
from actlens.sites import Site


@pytest.fixture(scope="module")
def relay():
    """The planted circuit with runs of five scenes."""
    model = relay_policy()
    generator = torch.Generator().manual_seed(4)
    draw = lambda: torch.randn(6, generator=generator, dtype=torch.float64)
    scenes = [
        Scene({"observation.state": draw(), "observation.environment_state": draw()})
        for _ in range(5)
    ]
    return model, [run_scene(model, scene) for scene in scenes]


def test_the_spread_is_that_of_the_tokens_over_scenes(relay, act, observe):
    model, runs = relay
    spread = token_spread(model, runs)
    states = torch.stack([run["embed.hook_state_token"][0] for run in runs])
    assert spread["state"] == pytest.approx(float(states.var(0).mean().sqrt()))
    assert spread["latent"] == pytest.approx(0.0, abs=1e-12)
    scenes = [run_scene(act, observe(act, rows=1, seed=seed)) for seed in range(3)]
    top = torch.stack([run["embed.top.hook_tokens"][0] for run in scenes])
    assert token_spread(act, scenes)["top"] == pytest.approx(float(top.var(0).mean().sqrt()))
    with pytest.raises(InterventionError, match="two scenes"):
        token_spread(act, scenes[:1])


def test_tracing_the_state_of_the_relay_gives_back_its_known_map(relay):
    model, runs = relay
    base, spread = runs[0], token_spread(model, runs)
    streams = [*(f"encoder.{i}.hook_resid_pre" for i in range(3)), "encoder.hook_out"]
    for seed in range(2):
        noise = noisy_tokens(model, [model.tokens.index("state")], spread, seed=seed)
        cells = [
            restored(model, noise, Site(stream, {"token": token}))
            for stream in streams
            for token in range(3)
        ]
        effects = run(model, base, [noise, *cells], {"clean": base})
        assert effects.output_change[0] > 0.1, "noise on the state moves the action"
        shares = project(effects.actions[1:], effects.actions[0], base.actions).share
        expected = torch.tensor(DENOISE_MAP).double().flatten()
        torch.testing.assert_close(shares, expected, rtol=0, atol=1e-6)


def test_no_noise_is_no_effect_and_other_seeds_are_other_noise(act, observe):
    runs = [run_scene(act, observe(act, rows=1, seed=seed)) for seed in range(3)]
    spread = token_spread(act, runs)
    tokens = [1, 2, 3, len(act.tokens) - 1]
    some = [noisy_tokens(act, tokens, spread, seed=seed) for seed in (0, 0, 1)]
    none = noisy_tokens(act, tokens, spread, multiple=0.0)
    effects = run(act, runs[0], [none, *some])
    assert effects.output_change[0] < 1e-14
    assert torch.equal(effects.actions[1], effects.actions[2])
    assert not torch.allclose(effects.actions[1], effects.actions[3])
    by_kind = [edit.site.where["token"] for edit in some[0].edits]
    assert by_kind == [(1,), (2, 3), (tokens[-1],)], "the state, the top camera, the side camera"
    seeds = {edit.source.seed for edit in some[0].edits}
    assert len(seeds) == len(some[0].edits), "the kinds do not share their noise"


def test_restoring_every_token_at_the_input_is_the_clean_run(act, observe):
    runs = [run_scene(act, observe(act, rows=1, seed=seed)) for seed in range(3)]
    noise = noisy_tokens(act, range(1, len(act.tokens)), token_spread(act, runs))
    cell = restored(act, noise, Site("encoder.0.hook_resid_pre"))
    effects = run(act, runs[0], [noise, cell], {"clean": runs[0]})
    assert effects.output_change[0] > 1e-3
    assert effects.output_change[1] < 1e-12


@pytest.mark.parametrize(
    ("block", "window", "blocks"),
    [
        (2, 1, [2]),
        (2, 3, [1, 2, 3]),
        (0, 3, [0, 1]),
        (4, 3, [3, 4]),
        (2, 4, [0, 1, 2, 3]),
        (1, 99, [0, 1, 2, 3, 4]),
    ],
)
def test_windows_lie_around_the_block_and_end_with_the_stack(new_model, block, window, blocks):
    model = new_model(cameras=(), env_state_dim=4, n_encoder_layers=5)
    noise = noisy_tokens(model, [1], {"state": 1.0})
    cell = restored(model, noise, Site(f"encoder.{block}.hook_mlp_out"), window=window)
    names = [edit.site.name for edit in cell.edits[1:]]
    assert names == [f"encoder.{b}.hook_mlp_out" for b in blocks]


@pytest.mark.parametrize(
    ("attentions", "where"),
    [
        (["encoder.0.attn"], {"keys": (2, 5)}),
        (["encoder.1.attn"], {"keys": slice(2, 6), "queries": (0, 1), "heads": 2}),
        (["encoder.0.attn", "encoder.1.attn"], {"keys": 4, "queries": slice(3, 9)}),
        (["decoder.0.cross_attn"], {"keys": slice(1, 8), "queries": 0, "heads": (0, 3)}),
    ],
)
def test_what_is_knocked_out_is_not_seen_and_the_rest_shares_its_attention(
    act, observe, attentions, where
):
    observation = observe(act, rows=1)
    base = run_scene(act, observation)
    intervention = knock_out(act, attentions, **where)
    saved = Intervention.from_json(json.loads(json.dumps(intervention.to_json())))
    assert saved == intervention

    def without(pattern, hook):  # the referee: probabilities taken away and shared out anew
        _, head, query, key = hook.axes
        chosen = {head: where.get("heads"), query: where.get("queries"), key: where["keys"]}
        chosen = {axis: value for axis, value in chosen.items() if value is not None}
        pattern[hook.index(chosen, pattern.shape)] = 0
        return pattern / pattern.sum(-1, keepdim=True)

    hooks = [(f"{name}.hook_pattern", without) for name in attentions]
    with act.hooks(fwd_hooks=hooks):
        _, cache = act.run_with_cache(observation, names_filter="hook_actions_normalized")
    effects = run(act, base, [intervention])
    torch.testing.assert_close(effects.actions, cache["hook_actions_normalized"])
    assert effects.output_change[0] > 1e-6


def test_what_cannot_be_traced_or_knocked_out_is_refused(act):
    with pytest.raises(InterventionError, match="nothing is left to see"):
        knock_out(act, ["encoder.0.attn"], keys=slice(None), queries=3)
    with pytest.raises(InterventionError, match="Name an attention"):
        knock_out(act, [], keys=0)
    with pytest.raises(HookNameError, match="not a hook point"):
        knock_out(act, ["encoder.0.mlp"], keys=0)
    with pytest.raises(HookNameError, match="999"):
        knock_out(act, ["encoder.0.attn"], keys=999)
    with pytest.raises(InterventionError, match="999"):
        noisy_tokens(act, [1, 999], {"state": 1.0})
    with pytest.raises(InterventionError, match="indices of tokens"):
        noisy_tokens(act, [], {"state": 1.0})
    with pytest.raises(InterventionError, match="latent tokens over scenes is not known, or 0"):
        noisy_tokens(act, [0], {"state": 1.0, "latent": 0.0})
    noise = noisy_tokens(act, [1], {"state": 1.0})
    with pytest.raises(InterventionError, match="no window of 3 blocks"):
        restored(act, noise, Site("encoder.hook_out"), window=3)
