"""One intervention three ways: by the engine, by plain hooks and through nnsight."""

import json
import random

import pytest
import torch
from nnsight import save

from actlens.errors import HookNameError, HookNeverFired, InterventionError
from actlens.interop.nnsight import ACTNNsight, firing_order
from actlens.interop.nnsight_interventions import edit_in_trace, run_traced
from actlens.interventions import (
    Call,
    Constant,
    Edit,
    FromScene,
    GaussianNoise,
    Intervention,
    Schedule,
    Steering,
    Subspace,
    as_hooks,
    random_subspace,
    run,
    run_scene,
)
from actlens.sites import Site
from tests.interventions.conftest import ARCHITECTURES, CAMERAS, small_trunk

PLACES = {
    "token": "encoder.0.hook_resid_pre[top[1,3]]",
    "camera": "encoder.0.hook_resid_pre[side]",
    "camera region": "encoder.hook_out[top[0:2, 2:5]]",
    "tokens of several kinds": "embed.hook_tokens[{latent, side, top[0, :]}]",
    "region of a camera's own tokens": "embed.top.hook_tokens[top[:, 1:3]]",
    "positions of a region": "embed.hook_pos[top[1, 0:4]]",
    "head": "encoder.0.attn.hook_z[head=2]",
    "head x query": "decoder.0.cross_attn.hook_result[head={0, 3}, query=1:3]",
    "head x token": "encoder.0.attn.hook_result[head=1, side[0:2, 0]]",
    "queries only": "encoder.0.attn.hook_q[head=1]",
    "keys only": "encoder.0.attn.hook_k[top[0,2]]",
    "values only": "decoder.0.cross_attn.hook_v[token=latent, head=0]",
    "pattern entry": "decoder.0.cross_attn.hook_pattern[head=1, query=2, token=top[1,1]]",
    "pattern row": "encoder.0.attn.hook_pattern[head=0, token_q=latent]",
    "score entries": "encoder.0.attn.hook_attn_scores[head=3, token_q=side, token_k=top]",
    "neuron": "decoder.0.mlp.hook_post[5]",
    "neuron x query": "decoder.0.mlp.hook_post[query=0:2, {3, 7}]",
    "neuron x token": "encoder.0.mlp.hook_post[token=latent, 3]",
    "component": "encoder.0.hook_attn_out",
    "backbone stage region": "embed.top.hook_layer3[channel={0, 2}, top[0:2, 1:4]]",
    "backbone stage rows": "embed.top.hook_layer2[height=2:5, width=1]",
    "image region": "embed.side.hook_image[side[1, 0]]",
    "latent": "embed.hook_latent[0:3]",
    "LayerNorm scale": "ln_final.hook_scale[query=1]",
    "query": "decoder.0.hook_mlp_out[query=3]",
    "chunk position": "hook_actions_normalized[chunk=1:3, joint=gripper]",
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def policy(request, new_model):
    model = new_model(cameras=CAMERAS, **ARCHITECTURES[request.param])
    model.embed.backbone = small_trunk()
    return model.double()


@pytest.fixture(scope="module")
def scenes(policy, observe):
    return [observe(policy, rows=1, seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def runs(policy, scenes):
    return [run_scene(policy, scene) for scene in scenes]


@pytest.fixture(scope="module")
def act(new_model):
    """A policy without cameras, so that its forwards cost next to nothing."""
    return new_model(cameras=(), env_state_dim=4, n_action_steps=2).double()


def sites_of(policy):
    """Every kind of place that an address can name, and a mask's tokens."""
    mask = torch.zeros(64, 256, dtype=torch.bool)
    mask[20:40, 90:100] = mask[60, 250] = True
    sites = {kind: policy.site(address) for kind, address in PLACES.items()}
    tokens = policy.tokens.in_mask("top", mask)
    return sites | {"camera mask": Site("encoder.0.hook_resid_pre", {"token": tokens})}


def sources_of(site, policy, base, rng):
    """A source of every kind; directions need a last axis of which no single entry is selected."""
    point = policy.hook_point(site.name)
    activation = base[site.name].reshape(base[site.name].shape[-len(point.axes) :])
    part = activation[point.index(site.where, activation.shape)]
    sources = [FromScene("clean"), Constant(0.3), GaussianNoise(0.5, rng.randrange(99))]
    sources.append(Call(torch.sin))
    if not isinstance(site.where.get(point.axes[-1]), int):
        width = part.shape[-1]
        basis = random_subspace(width, 1, seed=rng.randrange(99)).tolist()
        sources.append(Steering(tuple(rng.gauss(0, 1) for _ in range(width)), scale=0.7))
        sources.append(Subspace(tuple(map(tuple, basis)), "clean"))
    return sources


def as_written_down(intervention):
    """The intervention after it was saved and read again; functions cannot be."""
    if any(isinstance(edit.source, Call) for edit in intervention.edits):
        return intervention
    return Intervention.from_json(json.loads(json.dumps(intervention.to_json())))


def check_three_ways(policy, scenes, runs, interventions):
    """The engine agrees to rounding with nnsight, which has the bits of plain hooks."""
    donors = {"clean": runs[1]}
    engine = run(policy, runs[0], interventions, donors)
    traced = run_traced(
        ACTNNsight(policy), scenes[0], [as_written_down(i) for i in interventions], donors
    )
    torch.testing.assert_close(traced.actions, engine.actions, rtol=1e-9, atol=1e-10)
    assert traced.changed.tolist() == engine.changed.tolist()
    assert traced.site_change == pytest.approx(engine.site_change, rel=1e-9, abs=1e-12)
    assert traced.output_change == pytest.approx(engine.output_change, rel=1e-9, abs=1e-10)
    for number, intervention in enumerate(interventions):
        with policy.hooks(as_hooks(policy, intervention, donors)):
            _, cache = policy.run_with_cache(scenes[0], names_filter="hook_actions_normalized")
        assert torch.equal(traced.actions[number], cache["hook_actions_normalized"][0])
        made = policy.receipts
        receipt = traced.receipts(interventions)[number]
        assert receipt.fired == sum(one.fired for one in made)
        assert receipt.changed == sum(one.changed for one in made)
        assert receipt.max_change == max(one.max_change for one in made)
    return traced


def test_every_source_at_every_kind_of_site_is_the_same_three_ways(policy, scenes, runs):
    rng = random.Random(repr(policy.config))
    interventions = [
        Intervention.at(site, source)
        for site in sites_of(policy).values()
        for source in rng.sample(sources_of(site, policy, runs[0], rng), 3)
    ]
    effects = check_three_ways(policy, scenes, runs, interventions)
    assert (effects.changed > 0).mean() > 0.85
    assert (effects.output_change > 1e-9).mean() > 0.8


def test_edits_made_jointly_are_the_same_three_ways_in_whatever_order_they_are_given(
    policy, scenes, runs
):
    rng = random.Random(repr(policy.config))
    sites, interventions = list(sites_of(policy).values()), []
    for _ in range(12):
        chosen = rng.sample(sites, 3)
        again = [Site(chosen[0].name), chosen[0]]  # several edits of one hook point
        edits = [
            Edit(site, rng.choice(sources_of(site, policy, runs[0], rng)))
            for site in rng.sample([*chosen, *again], 5)
        ]
        interventions.append(Intervention(tuple(edits)))
    check_three_ways(policy, scenes, runs, interventions)


def test_edits_at_one_point_are_made_in_the_order_given(act, observe):
    scene, site = observe(act, rows=1), Site("encoder.hook_out", {"token": 1})
    double, one = Edit(site, Call(lambda x: 2 * x)), Edit(site, Constant(1.0))
    both = [Intervention((double, one)), Intervention((one, double))]
    effects = run_traced(ACTNNsight(act), scene, both)
    expected = [Intervention.at(site, Constant(number)) for number in (1.0, 2.0)]
    assert torch.equal(effects.actions, run_traced(ACTNNsight(act), scene, expected).actions)
    assert not torch.equal(*effects.actions)


def test_hook_points_are_reached_in_the_order_that_edits_are_made_in(make_model, observe):
    for changes in ({}, {"pre_norm": True, "n_decoder_layers": 2, "env_state_dim": 4}):
        model, fired = make_model(**changes), []
        note = lambda activation, hook, fired=fired: fired.append(hook.name)
        action = torch.zeros(1, model.config.chunk, model.config.action_dim)
        with model.hooks([(name, note) for name in model.hook_dict]):
            model(observe(model, rows=1), action=action)
        assert fired == firing_order(model)


# ── in traces of one's own ───────────────────────────────────────────────────────────────────


def hooked_rollout(model, observations, intervention, donors):
    model.reset()
    with model.hooks(as_hooks(model, intervention, donors)):
        actions = [model.select_action(observation) for observation in observations]
    return torch.stack(actions), model.receipts


def traced_rollout(model, observations, intervention, donors):
    model.reset()
    traced, actions, receipts = ACTNNsight(model), [], []
    for observation in observations:
        with torch.no_grad(), traced.trace(observation, fn="select_action") as tracer:
            made = save(edit_in_trace(tracer, intervention, donors))
            action = save(tracer.result)
        actions.append(action)
        receipts.append(made)
    return torch.stack(actions), receipts


def test_in_a_rollout_the_schedule_and_the_noise_are_those_of_hooks(act, observe):
    observations = [observe(act, rows=1, seed=seed) for seed in range(10)]
    intervention = Intervention(
        (
            Edit(Site("encoder.hook_out", {"token": (0, 1)}), GaussianNoise(1.0, seed=3)),
            Edit(Site("embed.hook_state_token"), FromScene("clean")),
        ),
        Schedule(start=4, stop=8),
    )
    donors = {"clean": run_scene(act, observe(act, rows=1, seed=77))}
    expected, total = hooked_rollout(act, observations, intervention, donors)
    actions, receipts = traced_rollout(act, observations, intervention, donors)
    act.reset()
    assert torch.equal(actions, expected)
    fired = [tuple(receipt.fired for receipt in made) for made in receipts]
    assert fired == [(1, 1), (0, 0)] * 5, "every second action comes from the queue"
    acted = [all(receipt.changed for receipt in made) for made in receipts]
    assert [step for step in range(10) if acted[step]] == [4, 6]
    for number, receipt in enumerate(total):
        assert sum(made[number].changed for made in receipts) == receipt.changed
        assert max(made[number].max_change for made in receipts) == receipt.max_change


def test_between_rollouts_steps_an_intervention_is_made_whatever_its_schedule(act, observe):
    scene = observe(act, rows=1)
    late = Intervention.at(Site("encoder.hook_out"), Constant(), Schedule(start=50))
    act.select_action(scene)
    effects = run_traced(ACTNNsight(act), scene, [late])
    act.reset()
    expected = run(act, run_scene(act, scene), [late])
    torch.testing.assert_close(effects.actions, expected.actions, rtol=1e-9, atol=1e-10)
    assert effects.changed.tolist() == expected.changed.tolist()


def test_interventions_may_share_a_forward_in_invokes_of_their_own(act, observe):
    scene, traced = observe(act, rows=1), ACTNNsight(act)
    one = Intervention.at(Site("encoder.1.attn.hook_z", {"head": 2}), Constant())
    other = Intervention.at(Site("decoder.0.mlp.hook_post", {"neuron": 5}), GaussianNoise(2.0))
    with torch.no_grad(), traced.trace() as tracer:
        with tracer.invoke(scene):
            first = save(edit_in_trace(tracer, one))
            a = save(traced.hook_actions_normalized.output)
        with tracer.invoke(scene):
            second = save(edit_in_trace(tracer, other))
            b = save(traced.hook_actions_normalized.output)
    alone = run_traced(traced, scene, [one, other])
    torch.testing.assert_close(torch.cat([a, b]), alone.actions, rtol=1e-9, atol=1e-10)
    assert [first[0].changed, second[0].changed] == alone.changed.tolist()


def test_the_cvae_is_edited_where_a_chunk_is_given(act, observe, demonstration):
    scene, action = observe(act, rows=2), demonstration(act, rows=2)
    intervention = Intervention(
        (
            Edit(Site("encoder.0.hook_resid_pre", {"token": 0}), Steering((0.1,) * 32)),
            Edit(Site("vae.hook_mu", {"latent": slice(0, 4)}), Constant(0.5)),
            Edit(Site("vae.hook_tokens", {"vae_token": 1}), GaussianNoise(1.0)),
        )
    )
    traced = ACTNNsight(act)
    with torch.no_grad():
        with act.hooks(as_hooks(act, intervention)):
            expected = act(scene, action=action)
        with traced.trace(scene, action=action) as tracer:
            receipts = save(edit_in_trace(tracer, intervention))
            actions = save(traced.output)
    assert torch.equal(actions, expected)
    assert receipts == act.receipts


def test_gradients_pass_an_edit_as_they_pass_a_hook(act, observe):
    scene, name = observe(act, rows=2), "encoder.0.hook_resid_pre"
    donors = {"clean": run_scene(act, observe(act, rows=1, seed=9))}
    intervention = Intervention.at(act.site("encoder.hook_out[state]"), FromScene("clean"))
    kept = []

    def keep(activation, hook):
        activation.retain_grad()
        kept.append(activation)

    hooks = [(name, keep), *as_hooks(act, intervention, donors)]
    act.run_with_hooks(scene, fwd_hooks=hooks).square().sum().backward()
    traced = ACTNNsight(act)
    with traced.trace(scene) as tracer:
        stream = traced.point(name).output
        edit_in_trace(tracer, intervention, donors)
        loss = traced.output.square().sum()
        with loss.backward():
            gradient = save(stream.grad)
    act.zero_grad()
    assert torch.equal(gradient, kept[0].grad)


# ── what does not fit ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("site", "source", "error", "message"),
    [
        (Site("encoder.7.hook_out"), Constant(), HookNameError, "is not a hook point"),
        (Site("encoder.hook_out", {"head": 1}), Constant(), HookNameError, "has no head"),
        (Site("encoder.hook_out", {"token": 99}), Constant(), HookNameError, "99 selects none"),
        (Site("encoder.hook_out", {"batch": 0}), Constant(), InterventionError, "'batch' out"),
        (Site("hook_actions"), Constant(), InterventionError, "edit hook_actions_normalized"),
        (Site("vae.hook_mu"), Constant(), InterventionError, "does not pass vae"),
        (Site("encoder.hook_out"), FromScene("x"), InterventionError, "no donor 'x'.*clean"),
        (Site("encoder.hook_out"), Steering((1.0,)), InterventionError, "1 entries.*has 32"),
        (Site("encoder.hook_out"), Call(lambda x: None), InterventionError, "returned NoneType"),
    ],
)
def test_what_the_engine_refuses_is_refused_alike(act, observe, site, source, error, message):
    scene = observe(act, rows=1)
    donors = {"clean": run_scene(act, scene)}
    intervention = Intervention.at(site, source)
    with pytest.raises(error, match=message):
        run(act, donors["clean"], [intervention], donors)
    with pytest.raises(error, match=message):
        run_traced(ACTNNsight(act), scene, [intervention], donors)


def test_a_batch_is_refused(act, observe):
    with pytest.raises(InterventionError, match="one scene at a time"):
        run_traced(ACTNNsight(act), observe(act, rows=2), [])


def test_no_interventions_have_no_effects_and_progress_is_told(act, observe):
    scene, told = observe(act, rows=1), []
    assert run_traced(ACTNNsight(act), scene, []).actions.shape == (0, 5, 3)
    nothing = Intervention.at(Site("encoder.hook_out"), FromScene("own"))
    effects = run_traced(
        ACTNNsight(act), scene, [nothing] * 3, {"own": run_scene(act, scene)}, advance=told.append
    )
    assert told == [1, 1, 1]
    assert effects.changed.tolist() == effects.output_change.tolist() == [0, 0, 0]


def test_sites_that_a_trace_does_not_reach_or_has_passed_are_errors(act, observe):
    traced, scene = ACTNNsight(act), observe(act, rows=1)
    never = Intervention.at(Site("vae.hook_mu"), Constant())
    passed = Intervention.at(Site("embed.hook_tokens"), Constant())

    def edit(intervention):
        with torch.no_grad(), traced.trace(scene) as tracer:
            save(traced.encoder.hook_out.output)
            edit_in_trace(tracer, intervention)

    for intervention in (never, passed):
        with pytest.raises(HookNeverFired, match=intervention.edits[0].site.name):
            edit(intervention)
