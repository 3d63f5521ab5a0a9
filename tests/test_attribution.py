"""Estimates against finite differences, plain backward hooks, and networks that are linear.

The audits against planted circuits: a relay whose map is known, and a gate that turns a saturated
attention, which no gradient sees.
"""

import dataclasses

import numpy as np
import pytest
import torch
from relay import DENOISE_MAP, relay_policy
from scipy import stats
from torch import nn

from actlens.attribution import (
    AttributionOptions,
    Cut,
    Direction,
    Gradient,
    attributable,
    attribute_pairs,
    cuts_of,
)
from actlens.attribution.agreement import agreement, figures, missed_bound
from actlens.attribution.audit import draw_sample
from actlens.attribution.cost import cost_in_forwards
from actlens.attribution.cuts import START
from actlens.attribution.estimates import attribute, names_needed
from actlens.attribution.linearise import linearise
from actlens.config import ACTConfig, Activation, Camera
from actlens.errors import HookNameError, InterventionError, SceneError
from actlens.interventions import FromScene, Intervention, run, run_scene
from actlens.interventions.network import QUERY_POS, TOKEN_POS
from actlens.metrics import Positions, project
from actlens.model.act import HookedACT
from actlens.model.token_major import LayerNorm
from actlens.scene import Scene, ScenePair

ANY_EFFECT = AttributionOptions(min_effect=0.0)
EVERYTHING = "*"


def options(**changes):
    return dataclasses.replace(ANY_EFFECT, **changes)


NO_CAMERAS = {"cameras": (), "env_state_dim": 4}
ARCHITECTURES = {
    "act": {},
    "pre_norm_two_decoder_layers": NO_CAMERAS | {"pre_norm": True, "n_decoder_layers": 2},
    "gelu": NO_CAMERAS | {"activation": Activation.GELU},
}


def with_cheap_trunk(model):
    """In float64, with a trunk that does hardly any work: nothing here depends on it."""
    same = lambda: nn.Identity()
    torch.manual_seed(3)
    if not model.config.cameras:
        return model.double()
    model.embed.backbone = nn.ModuleDict(
        {"conv1": nn.Conv2d(3, 512, 32, stride=32), "bn1": same(), "relu": nn.ReLU(),
         "maxpool": same(), "layer1": same(), "layer2": same(), "layer3": same(), "layer4": same()}
    )  # fmt: skip
    return model.double()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def policy(request, new_model):
    return with_cheap_trunk(new_model(**ARCHITECTURES[request.param]))


@pytest.fixture(scope="module")
def act(new_model):
    """ACT as it is used, but that it sees an environment state."""
    return new_model(**NO_CAMERAS).double()


@pytest.fixture(scope="module")
def pair_of(observe):
    """A pair of random scenes for a model."""

    def make(model, seed=0):
        scenes = [
            Scene({k: v[0] for k, v in observe(model, rows=1, seed=s).items()}, episode=s)
            for s in (2 * seed, 2 * seed + 1)
        ]
        return ScenePair(*scenes, "everything")

    return make


def runs_of(model, pair):
    return run_scene(model, pair.corrupt), run_scene(model, pair.clean)


def towards(base, donor):
    return lambda actions: project(actions, base.actions, donor.actions).along


def all_cuts(model):
    """Every hook point that can be attributed, on-demand ones too."""
    return cuts_of(model, list(attributable(model)))


def exact(model, base, donor, cuts):
    """Every site of the cuts patched by the engine."""
    patches = [Intervention.at(c.site(i), FromScene("d")) for c in cuts for i in range(len(c))]
    effects = run(model, base, patches, {"d": donor})
    return project(effects.actions, base.actions, donor.actions).along.numpy()


def estimated(model, base, donor, cuts, *, qk_fix=True):
    return attribute(
        model, base, donor, cuts, towards(base, donor), qk_fix=qk_fix
    ).numpy()  # fmt: skip


def linear_norms(model):
    """LayerNorms that only centre: a variance beside 1e12 is nothing."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LayerNorm):
                module.eps = 1e12
                module.weight.mul_(1e6)
    return model


def linear_policy(new_model, **changes):
    """A policy that is linear from the tokens on: norms centre, attention is even, ReLUs are on."""
    model = linear_norms(with_cheap_trunk(new_model(**NO_CAMERAS, **changes)))
    d_model = model.config.d_model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "in_proj" in name:
                parameter[:d_model] = 0.0
            if name.endswith("linear1.bias"):
                parameter += 1e3
    return model


# ── the estimate ─────────────────────────────────────────────────────────────────────────────


def test_estimates_are_the_derivative_of_the_exact_patch(policy, pair_of):
    """Central differences of the engine, a millionth of the way from the run's to the donor's."""
    base, donor = runs_of(policy, pair_of(policy))
    cuts, step = all_cuts(policy), 1e-6
    found = estimated(policy, base, donor, cuts, qk_fix=False)
    at = lambda share: {
        name: base[name] + share * (donor[name] - base[name]) for name in attributable(policy)
    }
    rng = np.random.default_rng(0)
    sites, patches, start = [], {"plus": [], "minus": []}, 0
    for cut in cuts:
        for number in rng.permutation(len(cut))[:2]:
            sites.append(start + number)
            for role, made in patches.items():
                made.append(Intervention.at(cut.site(int(number)), FromScene(role)))
        start += len(cut)
    donors = {"plus": at(step), "minus": at(-step)}
    plus, minus = (
        project(run(policy, base, made, donors).actions, base.actions, donor.actions).along
        for made in patches.values()
    )
    derivative = ((plus - minus) / (2 * step)).numpy()
    assert (np.abs(derivative) > 1e-3).mean() > 0.5
    np.testing.assert_allclose(found[sites], derivative, rtol=1e-6, atol=1e-8)


def test_gradients_equal_those_of_plain_hooks_on_the_whole_model(policy, pair_of):
    pair = pair_of(policy)
    base, donor = runs_of(policy, pair)
    names = [n for n in attributable(policy) if not policy.hook_point(n).on_demand]
    kept = {}

    def keep(activation, hook):
        if activation.requires_grad:  # constants of the architecture have none
            activation.retain_grad()
            kept[hook.name] = activation

    with policy.hooks(fwd_hooks=[(name, keep) for name in names]):
        policy(pair.corrupt)
        towards(base, donor)(kept["hook_actions_normalized"][0]).backward()
    policy.zero_grad()
    found = linearise(policy, base, names, towards(base, donor))
    assert len(kept) > 0.8 * len(names)
    for name, activation in kept.items():
        gradient = found.gradients[name].reshape(activation.shape)  # positions have no batch axis
        torch.testing.assert_close(gradient, activation.grad, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.activations[name], base[name], rtol=1e-9, atol=1e-9)


def test_on_a_linear_network_estimates_are_exact_at_every_site(new_model, pair_of):
    model = linear_policy(new_model, n_decoder_layers=2)
    base, donor = runs_of(model, pair_of(model))
    cuts = all_cuts(model)
    truth = exact(model, base, donor, cuts)
    scale = float(towards(base, donor)(donor.actions))
    assert (np.abs(truth) > 1e-3 * scale).mean() > 0.5
    for qk_fix in (True, False):
        found = estimated(model, base, donor, cuts, qk_fix=qk_fix)
        np.testing.assert_allclose(found, truth, rtol=1e-6, atol=1e-7 * scale)


@pytest.mark.parametrize("sharpness", [1.0, 40.0], ids=["soft", "saturated"])
def test_queries_keys_and_scores_are_exact_where_all_after_the_softmax_is_linear(
    sharpness, new_model, pair_of
):
    model = linear_policy(new_model, n_decoder_layers=2)
    torch.manual_seed(5)
    with torch.no_grad():
        weights = model.decoder[1].cross_attn.in_proj_weight[: 2 * model.config.d_model]
        weights.copy_(sharpness * 0.1 * torch.randn_like(weights))
    base, donor = runs_of(model, pair_of(model))
    prefix = "decoder.1.cross_attn"
    cuts = [
        Cut.of(model, f"{prefix}.hook_{name}", axes)
        for name, position in (("q", "query"), ("k", "token"))
        for axes in ((position,), ("head",), (position, "head"), ("head", position), ())
    ]
    cuts += [Cut.of(model, f"{prefix}.hook_attn_scores", a) for a in (("head", "query"), ())]
    truth = exact(model, base, donor, cuts)
    found = estimated(model, base, donor, cuts)
    plain = estimated(model, base, donor, cuts, qk_fix=False)
    size = np.linalg.norm(truth)
    if sharpness > 1:
        assert (base[f"{prefix}.hook_pattern"] > 1 - 1e-9).any(), "one minus it is rounding alone"
    assert np.linalg.norm(found - truth) < 1e-7 * size
    assert np.linalg.norm(plain - truth) > 0.3 * size


def test_parts_of_queries_and_single_scores_are_linearised_as_all_else(act, pair_of):
    base, donor = runs_of(act, pair_of(act))
    prefix = "decoder.0.cross_attn"
    cuts = [
        Cut.of(act, f"{prefix}.hook_k", ("token", "d_head")),
        Cut.of(act, f"{prefix}.hook_attn_scores", ("head", "query", "token")),
        Cut.of(act, "encoder.0.attn.hook_attn_scores", ("token_k",)),
        Cut.of(act, "encoder.0.attn.hook_q", ("d_head",)),
    ]
    found, plain = (estimated(act, base, donor, cuts, qk_fix=qk_fix) for qk_fix in (True, False))
    assert np.abs(plain).max() > 1e-3
    np.testing.assert_array_equal(found, plain)


def test_a_single_key_keeps_all_attention(new_model, pair_of):
    model = new_model(**NO_CAMERAS, chunk=1, n_action_steps=1, n_decoder_layers=2).double()
    base, donor = runs_of(model, pair_of(model))
    cuts = [Cut.of(model, "decoder.1.attn.hook_k", axes) for axes in (("query",), ("head",), ())]
    np.testing.assert_allclose(estimated(model, base, donor, cuts), 0, atol=1e-12)


def test_cuts_of_one_hook_point_add_up_to_its_whole(act, pair_of):
    base, donor = runs_of(act, pair_of(act))
    hook = "encoder.1.attn.hook_z"
    sums = [
        estimated(act, base, donor, [Cut.of(act, hook, axes)]).sum()
        for axes in ((), ("token",), ("head",), ("head", "token"), ("token", "head", "d_head"))
    ]
    np.testing.assert_allclose(sums, sums[0], rtol=1e-9)


def test_any_scalar_of_the_actions_can_be_explained(act, pair_of):
    base, donor = runs_of(act, pair_of(act))
    cuts = [Cut.of(act, "hook_actions_normalized", ("chunk", "joint"))]
    found = attribute(act, base, donor, cuts, lambda a: a[2, 1] - 3 * a[0, 0], qk_fix=True)
    change = donor.actions - base.actions
    expected = torch.zeros_like(change)
    expected[2, 1], expected[0, 0] = change[2, 1], -3 * change[0, 0]
    torch.testing.assert_close(found, expected.flatten(), rtol=1e-9, atol=1e-12)


def test_attributing_leaves_the_model_as_it_was(act, pair_of):
    before = {name: p.requires_grad for name, p in act.named_parameters()}
    with torch.no_grad():
        attribute_pairs(act, [pair_of(act)], cuts_of(act, "encoder.1.*"), options=ANY_EFFECT)
    assert not act.list_hooks()
    assert {name: p.requires_grad for name, p in act.named_parameters()} == before
    assert all(p.grad is None for p in act.parameters())


# ── what it costs ────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def real_size():
    """ACT's usual sizes without memory: 602 tokens, d_model 512, four encoder layers."""
    config = ACTConfig(
        cameras=tuple(Camera(f"observation.images.{name}", 480, 640) for name in "ab"),
        action_dim=6, state_dim=6, n_vae_encoder_layers=1,
    )  # fmt: skip
    with torch.device("meta"):
        model = HookedACT(config)
        inputs = {
            START: torch.zeros(1, config.n_tokens, config.d_model),
            TOKEN_POS: torch.zeros(1, config.n_tokens, config.d_model),
            QUERY_POS: torch.zeros(1, config.chunk, config.d_model),
            "decoder.0.hook_resid_pre": torch.zeros(1, config.chunk, config.d_model),
        }
    return model, inputs


@pytest.mark.parametrize(("qk_fix", "most"), [(False, 2.2), (True, 2.3)])
def test_all_sites_cost_little_more_than_two_forwards(real_size, qk_fix, most):
    model, inputs = real_size
    cuts = cuts_of(model)
    assert sum(map(len, cuts)) > 50_000
    scalar = lambda actions: actions.double().sum()
    donor = linearise(model, inputs, names_needed(cuts, qk_fix=qk_fix), scalar).activations
    work = lambda: attribute(model, inputs, donor, cuts, scalar, qk_fix=qk_fix)
    cost = cost_in_forwards(model, inputs, work)
    assert 2.0 < cost <= most


# ── integrated and symmetrised ───────────────────────────────────────────────────────────────


def test_integrated_gradients_of_the_tokens_are_complete(policy, pair_of):
    """Scenes of equal pictures: on a long way many ReLUs switch, and each needs many points."""
    pair = pair_of(policy)
    state = pair.clean.observation["observation.state"]
    moved = Scene(pair.clean.observation | {"observation.state": state + 0.5}, episode=9)
    pair = ScenePair(pair.clean, moved, "the state")
    cuts = [Cut.of(policy, START, ()), Cut.of(policy, START, ("token",))]
    integrated = options(gradient=Gradient.INTEGRATED, points=100)
    found = attribute_pairs(policy, [pair], cuts, options=integrated).frame()
    for way in Direction:
        whole, tokens = found[way][0], found[way][1:].sum()
        assert whole == pytest.approx(1, abs=1e-3)
        assert tokens == pytest.approx(whole)
    at_one_end = attribute_pairs(policy, [pair], cuts, options=ANY_EFFECT).frame()
    assert abs(at_one_end.denoise[0] - 1) > 2 * abs(found.denoise[0] - 1)


def test_the_two_directions_differ_only_in_where_the_gradient_is_taken(act, pair_of):
    pair, cuts = pair_of(act), cuts_of(act, ["encoder.1.hook_*", "encoder.1.attn.hook_*"])
    linear = options(qk_fix=False, n_audit=1, points=3)
    one = attribute_pairs(act, [pair], cuts, options=linear).frame()
    turned = attribute_pairs(act, [pair.swapped()], cuts, options=linear).frame()
    np.testing.assert_allclose(one.denoise, turned.noise, rtol=1e-9)
    np.testing.assert_allclose(one.error_bar, (one.denoise - one.noise).abs(), atol=1e-12)
    for gradient in (Gradient.SYMMETRISED, Gradient.INTEGRATED):
        chosen = dataclasses.replace(linear, gradient=gradient)
        frame = attribute_pairs(act, [pair], cuts, options=chosen).frame()
        np.testing.assert_allclose(frame.denoise, frame.noise, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(frame.error_bar, one.error_bar, rtol=1e-9)
        if gradient is Gradient.SYMMETRISED:
            np.testing.assert_allclose(frame.denoise, (one.denoise + one.noise) / 2, rtol=1e-9)


# ── the audit ────────────────────────────────────────────────────────────────────────────────


def relay_pairs(n=6):
    def pair(seed):
        generator = torch.Generator().manual_seed(seed)
        draw = lambda: torch.randn(6, generator=generator, dtype=torch.float64)
        env = draw()
        scenes = [
            Scene({"observation.state": draw(), "observation.environment_state": env}, episode=e)
            for e in (2 * seed, 2 * seed + 1)
        ]
        return ScenePair(*scenes, "the state")

    return [pair(seed) for seed in range(n)]


def streams_by_token(model):
    layers = range(model.config.n_encoder_layers)
    hooks = [*(f"encoder.{i}.hook_resid_pre" for i in layers), "encoder.hook_out"]
    return [Cut.of(model, hook, ("token",)) for hook in hooks]


def test_the_relay_circuits_map_is_found_and_audited():
    model = relay_policy()
    result = attribute_pairs(model, relay_pairs(), streams_by_token(model), options=ANY_EFFECT)
    frame = result.frame()
    assert (frame.audited != "").all()
    for way in ("denoise", "noise"):
        exact = frame[f"exact_{way}"].to_numpy().reshape(4, 3)
        np.testing.assert_allclose(exact, DENOISE_MAP, atol=1e-6)
        estimates = frame[way].to_numpy().reshape(4, 3)
        # LayerNorm is in the way of the ones; the zeros are zeros of every derivative.
        np.testing.assert_allclose(estimates[np.array(DENOISE_MAP) == 0], 0, atol=1e-9)
        assert (estimates[np.array(DENOISE_MAP) == 1] > 0.5).all()
    audit = result.agreement()
    assert (audit.found == 1).all()
    assert (audit.pearson > 0.999).all()
    assert result.missed().empty


def test_without_the_norms_the_relay_circuits_map_is_estimated_exactly():
    model = linear_norms(relay_policy())
    frame = attribute_pairs(
        model, relay_pairs(1), streams_by_token(model), options=ANY_EFFECT
    ).frame()
    for way in ("denoise", "noise"):
        np.testing.assert_allclose(frame[way].to_numpy().reshape(4, 3), DENOISE_MAP, atol=1e-6)


def gated_policy():
    """The environment state decides where the decoder looks, and nothing else; all is saturated.

    Its token's key matches the queries where the first number is positive, and fails them where it
    is negative; what is read there is a constant of the token.
    """
    model = relay_policy()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".ln" not in f".{name}":
                parameter.zero_()
        noise = torch.randn(64, 12, generator=torch.Generator().manual_seed(1)).double()
        ones = torch.ones(64, 1, dtype=torch.float64)
        basis = torch.linalg.qr(torch.cat([ones, noise], 1))[0][:, 1:].T
        gate, mark, asking, anchor, *out = basis[:10]
        model.embed.env_proj.weight[:, 0] = gate
        for projection in (model.embed.latent_proj, model.embed.state_proj, model.embed.env_proj):
            projection.bias.copy_(3 * anchor)
        model.embed.env_proj.bias += 3 * mark
        model.decoder[0].attn.out_proj.bias.copy_(3 * anchor)
        model.decoder.query_pos.weight.copy_(asking.expand(5, -1))
        attn, out = model.decoder[0].cross_attn, torch.stack(out)
        attn.in_proj_weight[0] = 60 * asking
        attn.in_proj_weight[64] = 60 * gate
        attn.in_proj_weight[128] = mark
        attn.out_proj.weight[:, 0] = out[0]
        model.action_head.weight.copy_(out)
    return model


def gated_pair(seed=0):
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn(6, generator=generator, dtype=torch.float64)
    sees = torch.zeros(6, dtype=torch.float64)
    sees[0] = 0.2
    scene = lambda env: Scene({"observation.state": state, "observation.environment_state": env})
    return ScenePair(scene(sees), scene(-sees), "the gate")


@pytest.mark.parametrize("norms", ["linear", "real"])
def test_a_saturated_gate_is_invisible_to_the_gradient_and_flagged_by_the_audit(norms):
    model = linear_norms(gated_policy()) if norms == "linear" else gated_policy()
    result = attribute_pairs(model, [gated_pair()], streams_by_token(model), options=ANY_EFFECT)
    frame = result.frame()
    env = frame[frame.token == 2]
    assert len(env) == 4
    for way in ("denoise", "noise"):
        np.testing.assert_allclose(env[way], 0, atol=1e-9 if norms == "linear" else 0.01)
        np.testing.assert_allclose(env[f"exact_{way}"], 1, atol=1e-9)
    missed = result.missed()
    assert len(missed) == 8
    assert set(missed.address) == {f"{hook}[env_state]" for hook in env.hook}
    audit = result.agreement()
    assert (audit.missed == 1).all()
    assert (audit.relative_error > 0.99).all()


def test_the_gate_shows_where_keys_pass_the_softmax_exactly():
    model = linear_norms(gated_policy())
    cuts = [Cut.of(model, "decoder.0.cross_attn.hook_k", axes) for axes in (("token",), ("head",))]
    plain = attribute_pairs(model, [gated_pair()], cuts, options=options(qk_fix=False))
    fixed = attribute_pairs(model, [gated_pair()], cuts, options=ANY_EFFECT)
    assert len(plain.missed()) == 4
    assert fixed.missed().empty
    np.testing.assert_allclose(fixed.frame().denoise, [0, 0, 1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(fixed.frame().noise, [0, 0, 1, 1, 0], atol=1e-6)


@pytest.fixture(scope="module")
def result(act, pair_of):
    """Six pairs, two of which share an episode, and one more whose scenes are equal."""
    pairs = [pair_of(act, seed) for seed in range(6)]
    same = dataclasses.replace(pairs[0], corrupt=pairs[0].clean)
    return attribute_pairs(
        act,
        [*pairs[:2], same, *pairs[2:]],
        [*cuts_of(act, ["encoder.hook_out", "encoder.1.attn.hook_k", "decoder.0.mlp.hook_post"])],
        options=options(n_audit=2, min_effect=1e-6),
        clusters=np.array([0, 1, 9, 2, 3, 4, 0]),
        seed=3,
    )


def test_exact_effects_are_those_of_the_engine_in_every_pair(result, act):
    table = result.per_pair()
    assert len(table) == 2 * 6 * len(result.sample.sites)
    for number, pair in enumerate(result.pairs):
        corrupt, clean = runs_of(act, pair)
        for way, base, donor in (("denoise", corrupt, clean), ("noise", clean, corrupt)):
            rows = table[(table.pair == number) & (table.direction == way)]
            patches = [Intervention.at(act.site(a), FromScene("d")) for a in rows.address]
            effects = run(act, base, patches, {"d": donor})
            shares = project(effects.actions, base.actions, donor.actions).share
            np.testing.assert_allclose(rows.exact, shares.numpy(), rtol=1e-9, atol=1e-12)


def test_pairs_are_pooled_as_ratios_of_sums(result):
    totals = np.array([one.total for one in result.estimates])
    table = result.per_pair()
    frame = result.frame().set_index(["hook", "unit", "address"])
    for way in ("denoise", "noise"):
        rows = table[table.direction == way]
        for column, pooled in (("estimate", way), ("exact", f"exact_{way}")):
            wide = rows.pivot(index=["hook", "unit", "address"], columns="pair", values=column)
            expected = (wide * totals).sum(axis=1) / totals.sum()
            np.testing.assert_allclose(frame[pooled].loc[expected.index], expected, rtol=1e-9)
            assert (frame[f"{pooled}_low"].loc[expected.index] <= expected + 1e-12).all()
            assert (frame[f"{pooled}_high"].loc[expected.index] >= expected - 1e-12).all()


def test_rows_say_where_their_site_lies(result, act):
    frame = result.frame()
    assert len(frame) == result.n_sites
    token = frame[frame.address == "encoder.1.attn.hook_k[env_state]"].iloc[0]
    assert token[["unit", "depth", "token", "name"]].tolist() == ["token", 1, 2, "env_state"]
    neuron = frame[frame.address == "decoder.0.mlp.hook_post[neuron=7]"].iloc[0]
    assert (neuron.neuron, neuron.depth) == (7, act.config.n_encoder_layers)
    assert frame[frame.unit == "whole"].address.tolist() == [
        c.hook for c in result.cuts if not c.axes
    ]
    assert all(act.site(address) for address in frame.address[::5])


def test_pixel_tokens_have_camera_row_and_column(new_model, pair_of):
    model = with_cheap_trunk(new_model())
    cuts = [Cut.of(model, "encoder.hook_out", ("token",))]
    frame = attribute_pairs(model, [pair_of(model)], cuts, options=ANY_EFFECT).frame()
    row = frame[frame["name"] == "side[2,0]"].iloc[0]
    assert (row.camera, row.row, row.col, row.address) == (
        "side", 2, 0, "encoder.hook_out[side[2,0]]",
    )  # fmt: skip


def test_equal_scenes_are_left_out_and_counted(result):
    assert len(result.pairs) == 6
    assert result.clusters.tolist() == [0, 1, 2, 3, 4, 0]
    assert [effect for _, effect in result.left_out] == [0.0]


def test_only_equal_scenes_are_an_error_that_says_what_to_do(act, pair_of):
    pair = pair_of(act)
    same = dataclasses.replace(pair, corrupt=pair.clean)
    with pytest.raises(SceneError, match="choose scenes that differ more"):
        attribute_pairs(act, [same], options=options(min_effect=1e-6))


def test_the_sample_has_the_largest_pooled_estimates_of_either_direction(result):
    frame = result.frame()
    strength = frame[["denoise", "noise"]].abs().max(axis=1)
    for _, rows in frame.groupby(["hook", "unit"]):
        largest = strength[rows.index].nlargest(2).index
        assert set(rows.index[rows.audited == "top"]) == set(largest)
    top = frame[(frame.audited == "top") & frame.unit.isin(["head", "neuron"])]
    assert (top[["denoise", "noise"]].max(axis=1) < strength[top.index]).any(), "a negative one"


def test_agreement_is_that_of_the_audited_rows(result):
    frame, audit = result.frame(), result.agreement()
    assert len(audit) == 2 * len(result.cuts)
    for _, row in audit[audit.unit.isin(["token", "neuron"])].iterrows():
        rows = frame[(frame.hook == row.hook) & (frame.unit == row.unit) & (frame.audited != "")]
        estimate, exact = rows[row.direction], rows[f"exact_{row.direction}"]
        assert (row.n_sites, row.n_top) == (
            ((frame.hook == row.hook) & (frame.unit == row.unit)).sum(),
            2,
        )
        assert row.pearson == pytest.approx(stats.pearsonr(estimate, exact).statistic)
        assert row.spearman == pytest.approx(stats.spearmanr(estimate, exact).statistic)
        error = np.linalg.norm(estimate - exact) / np.linalg.norm(exact)
        assert row.relative_error == pytest.approx(error)
        inside = (exact - estimate).abs() <= rows.error_bar
        assert row.covered == pytest.approx(inside.mean())
        assert row.relative_error_low <= row.relative_error <= row.relative_error_high


def test_agreement_of_single_pairs_has_every_pair_and_cut(result):
    each = result.agreement_per_pair()
    assert each.groupby("pair").size().tolist() == [2 * len(result.cuts)] * 6
    table = result.per_pair()
    one = (table.pair == 4) & (table.direction == "noise") & (table.unit == "neuron")
    row = each[(each.pair == 4) & (each.direction == "noise") & (each.unit == "neuron")].iloc[0]
    expected = stats.pearsonr(table[one].estimate, table[one].exact).statistic
    assert row.pearson == pytest.approx(expected)


def test_intervals_are_missing_below_five_clusters(act, pair_of):
    pairs = [pair_of(act, seed) for seed in range(5)]
    cuts = [Cut.of(act, "encoder.hook_out", ("token",))]
    known, unknown = (
        attribute_pairs(act, pairs, cuts, options=ANY_EFFECT, clusters=np.array(clusters))
        for clusters in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 0])
    )
    for found, missing in ((known, False), (unknown, True)):
        assert found.frame().denoise_low.isna().all() == missing
        assert found.agreement().pearson_low.isna().all() == missing


def test_the_strongest_estimates_are_audited_and_as_many_others(act):
    cuts = [
        Cut.of(act, "encoder.hook_out", ("token",)),
        Cut.of(act, "encoder.0.mlp.hook_post", ("neuron",)),
    ]
    strength = np.random.default_rng(0).random(sum(map(len, cuts)))
    sample = draw_sample(cuts, strength, 4, seed=1)
    of_neurons = sample.sites >= 3
    assert sorted(sample.sites[~of_neurons]) == [0, 1, 2]
    assert sample.is_top[~of_neurons].all()
    top = sample.sites[of_neurons & sample.is_top]
    assert sorted(top) == sorted(3 + np.argsort(-strength[3:])[:4])
    assert len(np.unique(sample.sites)) == 3 + 8
    again, other = (draw_sample(cuts, strength, 4, seed=seed).sites for seed in (1, 2))
    assert sample.sites.tolist() == again.tolist() != other.tolist()


def test_every_site_is_as_likely_to_be_drawn(act):
    cut = [Cut.of(act, "encoder.0.mlp.hook_post", ("neuron",))]
    drawn = [draw_sample(cut, np.arange(24.0), 4, seed=seed) for seed in range(500)]
    counts = np.bincount(np.concatenate([s.sites[~s.is_top] for s in drawn]), minlength=24)
    assert counts[-4:].tolist() == [0] * 4
    assert stats.chisquare(counts[:-4]).pvalue > 0.001


@pytest.mark.parametrize(("missed", "drawn"), [(0, 8), (1, 8), (3, 20), (8, 8)])
def test_the_bound_on_missed_sites_is_clopper_and_pearsons(missed, drawn):
    bound = missed_bound(missed, drawn, 1000)
    if missed == drawn:
        assert bound == 1
    else:  # the share at which so few would be drawn in 5 % of cases
        assert stats.binom.cdf(missed, drawn, bound) == pytest.approx(0.05)


def test_nothing_is_left_to_chance_where_all_were_audited():
    assert missed_bound(2, 8, 8) == 0.25
    assert missed_bound(0, 0, 0) == 0
    assert missed_bound(0, 0, 5) == 1


def test_missed_sites_are_those_that_matter_and_do_not_seem_to():
    audit = agreement(
        np.array([0.5, 0.01, 0.04, -0.2, 0.03]), np.array([0.4, -0.3, 0.02, 0.0, 0.06]),
        np.full(5, 0.1), np.array([True, False, False, True, True]),
        n_sites=10, top_k=5, threshold=0.05,
    )  # fmt: skip
    assert (audit.missed, audit.missed_at_random, audit.n_top, audit.n_random) == (2, 1, 3, 2)
    assert audit.missed_bound == missed_bound(1, 2, 7)  # one of the two was no matter of chance
    assert audit.k == 2
    assert audit.figures.found == 0.5  # the first; of the others the estimates name the wrong one
    assert audit.covered == 0.6


def test_figures_of_nothing_are_undefined_and_not_good():
    none = figures(np.zeros(4), np.zeros(4), 2)
    assert all(np.isnan(value) for value in vars(none).values())
    blind = figures(np.zeros(4), np.array([0.0, 0, 0, 1]), 2)
    assert np.isnan(blind.pearson)
    assert blind.relative_error == 1


def test_completeness_is_the_gap_of_the_whole(act, pair_of):
    cuts = cuts_of(act, ["encoder.*.hook_resid_pre", "decoder.0.hook_attn_out"])
    result = attribute_pairs(act, [pair_of(act)], cuts, options=ANY_EFFECT)
    table = result.completeness()
    assert len(table) == 2 * 3
    streams = table[table.hook.str.startswith("encoder")]
    np.testing.assert_allclose(streams.exact, 1, rtol=1e-9)
    frame = result.frame()
    for _, row in streams.iterrows():
        tokens = frame[(frame.hook == row.hook) & (frame.unit == "token")]
        assert row.gap == pytest.approx(tokens[row.direction].sum() - 1)
    constant = table[table.hook == "decoder.0.hook_attn_out"]
    assert (constant[["estimate", "exact", "gap"]] == 0).all(axis=None)


def test_only_the_chunk_positions_asked_for_count(new_model, pair_of):
    model = new_model(**NO_CAMERAS, n_action_steps=2).double()
    cuts = [Cut.of(model, "hook_actions_normalized", ("chunk",))]
    executed = options(positions=Positions.EXECUTED)
    frame = attribute_pairs(model, [pair_of(model)], cuts, options=executed).frame()
    assert frame.denoise[:2].sum() == pytest.approx(1)
    assert (frame.denoise[2:] == 0).all()
    np.testing.assert_allclose(frame.denoise, frame.exact_denoise, rtol=1e-9)


def test_progress_reaches_its_total(act, pair_of):
    pair, seen = pair_of(act), []
    same = dataclasses.replace(pair, corrupt=pair.clean)
    for gradient in (Gradient.BASE, Gradient.INTEGRATED):
        attribute_pairs(
            act,
            [pair, same],
            [Cut.of(act, "encoder.0.mlp.hook_post", ("neuron",))],
            options=options(gradient=gradient, n_audit=3, points=2, min_effect=1e-6),
            progress=lambda done, total: seen.append((done, total)),
        )
        assert seen[-1][0] == seen[-1][1]


# ── what can be attributed ───────────────────────────────────────────────────────────────────


def test_every_hook_point_from_the_tokens_to_the_actions_is_cut(policy):
    names = attributable(policy)
    assert names[0] == START
    left_out = {n for n in policy.hook_dict if n not in names}
    assert {n.split(".")[0] for n in left_out} <= {"embed", "vae", "hook_actions"}
    usual = {cut.hook for cut in cuts_of(policy)}
    assert usual == {n for n in names if not policy.hook_point(n).on_demand}
    wholes = [cut.hook for cut in cuts_of(policy) if not cut.axes]
    assert len(wholes) == len(set(wholes)) == len(usual)


def test_cuts_have_as_many_sites_as_the_activation_has_entries(policy, pair_of):
    base, _ = runs_of(policy, pair_of(policy))
    for name in attributable(policy):
        axes = [axis for axis in policy.hook_point(name).axes if axis != "batch"]
        assert Cut.of(policy, name, axes).shape == tuple(base[name].shape[1:])


@pytest.mark.parametrize(
    ("hook", "axes", "error", "message"),
    [
        ("hook_actions", (), InterventionError, "take hook_actions_normalized"),
        ("vae.hook_mu", (), InterventionError, "inference does not pass it"),
        ("embed.hook_state_token", (), InterventionError, "patch it exactly"),
        ("encoder.0.hook_resid_prre", (), HookNameError, "Did you mean"),
        ("encoder.0.hook_resid_pre", ("head",), HookNameError, "it has no head"),
        ("encoder.0.hook_resid_pre", ("batch",), HookNameError, "it has no batch"),
    ],
)
def test_what_cannot_be_attributed_is_refused(hook, axes, error, message, act):
    with pytest.raises(error, match=message):
        Cut.of(act, hook, axes)


def test_globs_select_among_what_can_be_attributed(act):
    assert {cut.hook for cut in cuts_of(act, "embed.*")} == {START, TOKEN_POS}
    everything = {cut.hook for cut in cuts_of(act, "*")}
    assert everything == set(attributable(act))
    assert cuts_of(act, lambda name: True) == cuts_of(act, "*")


def test_names_of_what_cannot_be_attributed_are_refused(act):
    for names in (["encoder.*", "embed.hook_state_token"], iter(["embed.hook_state_token"])):
        with pytest.raises(InterventionError, match="lies before"):
            cuts_of(act, names)
    with pytest.raises(InterventionError, match="does not pass"):
        cuts_of(act, "vae.*")
    with pytest.raises(InterventionError, match="at least one cut"):
        attribute_pairs(act, [], [])


@pytest.mark.parametrize("wrong", [{"n_audit": 0}, {"points": 0}, {"top_k": 0}, {"threshold": 0.0}])
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InterventionError, match=next(iter(wrong))):
        AttributionOptions(**wrong)
