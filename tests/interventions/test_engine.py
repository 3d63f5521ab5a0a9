"""The engine against one hooked forward per intervention, at every hook point of inference."""

import copy
import random

import pytest
import torch

from actlens.errors import HookNameError, InterventionError
from actlens.interventions import (
    Call,
    Constant,
    Edit,
    FromScene,
    GaussianNoise,
    Intervention,
    Steering,
    Subspace,
    activations_under,
    as_hooks,
    each_neuron_alone,
    mean_of,
    random_subspace,
    run,
    run_scene,
)
from actlens.sites import Site

FROM_CLEAN = FromScene("clean")


def hooked(model, observation, intervention, donors, wanted=("hook_actions_normalized",)):
    """The referee: a whole forward with plain hooks."""
    with model.hooks(fwd_hooks=as_hooks(model, intervention, donors)):
        _, cache = model.run_with_cache(observation, names_filter=list(wanted))
    return {name: cache[name] for name in wanted}, model.receipts


def agree(effects, i, expected, **tolerance):
    torch.testing.assert_close(
        effects.actions[i : i + 1], expected, **({"rtol": 1e-9, "atol": 1e-10} | tolerance)
    )


def inference_points(model):
    """All but the CVAE encoder's, and the unnormalised actions, which effects do not reach."""
    left_out = lambda name: name.startswith("vae.") or name == "hook_actions"
    return [name for name in model.hook_dict if not left_out(name)]


def some_sites(point, shape, rng):
    """The whole activation, one entry on each axis, a span, a set on one and sets on two axes."""
    axes = [(a, n) for a, n in zip(point.axes, shape, strict=True) if a != "batch"]
    pick = lambda n: rng.randrange(n)
    several = lambda n: tuple(rng.sample(range(n), min(n, 2)))
    yield Site(point.name)
    for axis, n in axes:
        yield Site(point.name, {axis: pick(n)})
        yield Site(point.name, {axis: slice(n // 2, n)})
        yield Site(point.name, {axis: several(n)})
    if len(axes) > 1:
        first, last = axes[0], axes[-1]
        yield Site(point.name, {first[0]: several(first[1]), last[0]: several(last[1])})
        yield Site(point.name, {first[0]: -1, last[0]: pick(last[1])})


def some_source(site, point, shape, rng):
    """Any source that fits the site; directions need an unselected or set-selected last axis."""
    kinds = [FROM_CLEAN, Constant(0.3), GaussianNoise(0.5, seed=rng.randrange(99)), Call(torch.sin)]
    chosen = site.where.get(point.axes[-1], slice(None))
    if not isinstance(chosen, int):
        width = len(range(shape[-1])[chosen]) if isinstance(chosen, slice) else len(chosen)
        vector = tuple(rng.gauss(0, 1) for _ in range(width))
        basis = tuple(map(tuple, random_subspace(width, 1, seed=rng.randrange(99)).tolist()))
        kinds += [Steering(vector, scale=0.7), Subspace(basis, "clean")]
    return rng.choice(kinds)


def check(model, observation, base, interventions, donors):
    """Actions and receipts of every intervention are the referee's."""
    effects = run(model, base, interventions, donors)
    receipts = effects.receipts(interventions)
    for i, intervention in enumerate(interventions):
        expected, counted = hooked(model, observation, intervention, donors)
        try:
            agree(effects, i, expected["hook_actions_normalized"])
        except AssertionError as error:
            raise AssertionError(f"{intervention}: {error}") from None
        assert receipts[i].fired == sum(receipt.fired for receipt in counted)
        assert receipts[i].changed == sum(receipt.changed for receipt in counted), intervention
        largest = max(receipt.max_change for receipt in counted)
        assert receipts[i].max_change == pytest.approx(largest, rel=1e-9, abs=1e-12), intervention
    return effects


def test_every_hook_point_equals_a_hooked_forward(policy, scenes, runs):
    rng = random.Random(0)
    interventions = []
    for name in inference_points(policy):
        point = policy.hook_point(name)
        shape = runs[0][name].shape[-len(point.axes) :]
        sites = list(some_sites(point, shape, rng))
        sites = [sites[0], *rng.sample(sites[1:], min(4, len(sites) - 1))]
        interventions += [
            Intervention.at(site, some_source(site, point, shape, rng)) for site in sites
        ]
    effects = check(policy, scenes[0], runs[0], interventions, {"clean": runs[1]})
    assert (effects.output_change > 1e-6).mean() > 0.8, "most of these interventions have effects"


def test_joint_edits_equal_a_hooked_forward(policy, scenes, runs):
    rng = random.Random(1)
    names = inference_points(policy)
    interventions = []
    for _ in range(60):
        edits = []
        for name in rng.sample(names, rng.choice([2, 3])):
            point = policy.hook_point(name)
            shape = runs[0][name].shape[-len(point.axes) :]
            for site in rng.sample(list(some_sites(point, shape, rng)), rng.choice([1, 2])):
                edits.append(Edit(site, some_source(site, point, shape, rng)))
        interventions.append(Intervention(tuple(edits)))
    check(policy, scenes[0], runs[0], interventions, {"clean": runs[1]})


def test_single_neurons_of_the_last_mlp_are_exact_in_closed_form(policy, scenes, runs):
    name = f"decoder.{policy.config.n_decoder_layers - 1}.mlp.hook_post"
    where = [{"neuron": n} for n in range(policy.config.d_mlp)]
    where += [{"neuron": -2, "query": q} for q in (0, -1, slice(1, 3), (3, 0))]
    sources = [FROM_CLEAN, Constant(0.0), Constant(1e3), GaussianNoise(0.7), Call(torch.exp)]
    interventions = [Intervention.at(Site(name, w), s) for w in where for s in sources]
    effects = check(policy, scenes[0], runs[0], interventions, {"clean": runs[1]})
    small = run(policy, runs[0], interventions, {"clean": runs[1]}, memory_budget=2**16)
    torch.testing.assert_close(small.actions, effects.actions, rtol=1e-12, atol=1e-13)
    for number, source in enumerate(sources[:3]):
        alone = each_neuron_alone(policy, runs[0], source, {"clean": runs[1]})
        one_by_one = effects.actions[number : policy.config.d_mlp * len(sources) : len(sources)]
        torch.testing.assert_close(alone, one_by_one, rtol=1e-12, atol=1e-13)


def test_sets_of_tokens_update_the_softmax_exactly(policy, scenes, runs):
    streams = [f"encoder.{i}.hook_resid_pre" for i in range(policy.config.n_encoder_layers)]
    sets = [(0,), (1, 5), (2, 0), (4, 9, 3), (-1, 2), (0, -2)]
    interventions = [
        Intervention.at(Site(name, {"token": tokens}), source)
        for name in [*streams, "encoder.hook_out", "embed.hook_tokens"]
        for tokens in sets
        for source in (FROM_CLEAN, Constant(0.0), GaussianNoise(2.0))
    ]
    check(policy, scenes[0], runs[0], interventions, {"clean": runs[1]})


def test_attention_that_leaves_its_token_is_computed_anew(policy, scenes):
    sharp = copy.deepcopy(policy)
    with torch.no_grad():
        for name, parameter in sharp.named_parameters():
            if name.endswith("in_proj_weight"):
                parameter[: 2 * sharp.config.d_model] *= 12
    base, clean = (run_scene(sharp, scene) for scene in scenes)
    assert (base["encoder.0.attn.hook_pattern"] > 1 - 1e-6).any(), "the update divides by zero here"
    far = tuple(50 * x for x in random_subspace(sharp.config.d_model, 1)[0].tolist())
    sources = (FROM_CLEAN, Constant(0.0), Steering(far), Steering(far, scale=-1.0))
    interventions = [
        Intervention.at(Site(name, {"token": token}), source)
        for name in ("encoder.0.hook_resid_pre", "encoder.hook_out")
        for token in range(len(sharp.tokens))
        for source in sources
    ]
    interventions += [
        Intervention.at(Site(f"encoder.0.attn.hook_{x}", {"token": (token, 1)}), Constant(number))
        for x in "qkv"
        for token in (0, 2, 5)
        for number in (0.0, 1e3, -1e3)
    ]
    check(sharp, scenes[0], base, interventions, {"clean": clean})


def every_token(model):
    streams = [f"encoder.{i}.hook_resid_pre" for i in range(model.config.n_encoder_layers)]
    return [
        Intervention.at(Site(name, {"token": token}), FROM_CLEAN)
        for name in [*streams, "encoder.hook_out"]
        for token in range(len(model.tokens))
    ]


def test_results_do_not_depend_on_how_many_interventions_share_a_batch(act, observe):
    base, clean = (run_scene(act, observe(act, rows=1, seed=seed)) for seed in (0, 1))
    interventions = every_token(act)
    whole = run(act, base, interventions, {"clean": clean})
    steps = []
    small = run(
        act, base, interventions, {"clean": clean}, memory_budget=60_000, advance=steps.append
    )
    assert max(steps) <= 4, "the budget holds only a few at a time"
    assert sum(steps) == len(interventions)
    torch.testing.assert_close(small.actions, whole.actions, rtol=1e-12, atol=1e-13)
    assert small.changed.tolist() == whole.changed.tolist()


def test_a_budget_too_small_for_one_intervention_is_an_error_that_says_what_it_needs(act, observe):
    base = run_scene(act, observe(act, rows=1))
    with pytest.raises(InterventionError, match=r"needs .* MiB .* Raise memory_budget"):
        run(act, base, every_token(act), {"clean": base}, memory_budget=1)


@pytest.mark.parametrize(
    ("site", "source", "error", "message"),
    [
        (Site("encoder.7.hook_out"), Constant(), HookNameError, "encoder.1.hook"),
        (Site("encoder.hook_out", {"head": 1}), Constant(), HookNameError, "has no head"),
        (Site("encoder.hook_out", {"token": 99}), Constant(), HookNameError, "99 selects none"),
        (
            Site("encoder.hook_out", {"batch": 0}),
            Constant(),
            InterventionError,
            "leave 'batch' out",
        ),
        (Site("hook_actions"), Constant(), InterventionError, "edit hook_actions_normalized"),
        (Site("vae.hook_mu"), Constant(), InterventionError, "does not pass vae"),
        (
            Site("encoder.hook_out"),
            FromScene("dirty"),
            InterventionError,
            "no donor 'dirty'.*clean",
        ),
        (
            Site("encoder.hook_out"),
            FromScene("some"),
            InterventionError,
            "holds no encoder.hook_out",
        ),
        (Site("encoder.hook_out"), Steering((1.0,)), InterventionError, "1 entries.*has 32"),
        (
            Site("decoder.0.mlp.hook_post", {"neuron": 3}),
            Steering((1.0,) * 5),
            InterventionError,
            r"neuron=\{3\}",
        ),
        (
            Site("encoder.hook_out"),
            Subspace(((1.0,) * 32,), "clean"),
            InterventionError,
            "orthonormal",
        ),
        (Site("encoder.hook_out"), Call(lambda x: x[:1, :1]), InterventionError, r"\(1, 1, 32\)"),
        (Site("encoder.hook_out"), Call(lambda x: None), InterventionError, "returned NoneType"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_why(act, observe, site, source, error, message):
    base = run_scene(act, observe(act, rows=1))
    donors = {"clean": base, "some": mean_of([base], ["encoder.0.hook_resid_pre"])}
    with pytest.raises(error, match=message):
        run(act, base, [Intervention.at(site, source)], donors)


def test_a_batch_of_scenes_is_no_base(act, observe):
    with pytest.raises(InterventionError, match="one scene at a time"):
        run_scene(act, observe(act, rows=2))


def test_no_interventions_have_no_effects(act, observe):
    effects = run(act, run_scene(act, observe(act, rows=1)), [])
    assert len(effects.actions) == len(effects.receipts([])) == 0


def test_a_donors_own_scene_changes_nothing(act, observe):
    base = run_scene(act, observe(act, rows=1))
    effects = run(act, base, every_token(act), {"clean": base})
    assert effects.changed.tolist() == [0] * len(effects.actions)
    assert effects.output_change.max() < 1e-12


def test_the_mean_of_runs_is_the_mean_of_their_activations(act, observe):
    names = ["encoder.hook_out", "decoder.0.mlp.hook_post", "decoder.0.cross_attn.hook_result"]
    runs = [run_scene(act, observe(act, rows=1, seed=seed)) for seed in range(3)]
    mean = mean_of(iter(runs), names)
    assert set(mean) == set(names)
    for name in names:
        torch.testing.assert_close(mean[name], torch.stack([run[name] for run in runs]).mean(0))
    with pytest.raises(InterventionError, match="at least one scene"):
        mean_of([], names)


def test_a_runs_derived_activations_are_the_models_own(policy, scenes, runs):
    names = inference_points(policy)
    _, cache = policy.run_with_cache(scenes[0], names_filter=names)
    for name in names:
        kept = cache[name]
        torch.testing.assert_close(
            runs[0][name].reshape(kept.shape), kept, rtol=1e-9, atol=1e-10, msg=name
        )


def test_activations_under_an_intervention_are_those_of_a_hooked_forward(policy, scenes, runs):
    rng = random.Random(2)
    names = inference_points(policy)
    for name in rng.sample(names, 12):
        intervention = Intervention.at(Site(name), FROM_CLEAN)
        wanted = [name for name in rng.sample(names, 6) if name != "embed.hook_pos"]
        expected, _ = hooked(policy, scenes[0], intervention, {"clean": runs[1]}, wanted)
        found = activations_under(policy, runs[0], intervention, wanted, {"clean": runs[1]})
        for point in wanted:
            torch.testing.assert_close(found[point], expected[point], rtol=1e-9, atol=1e-10)


def test_frozen_activations_stay_as_in_the_base_run(policy, scenes, runs):
    frozen = [f"encoder.{i}.hook_mlp_out" for i in range(policy.config.n_encoder_layers)]
    frozen += [f"decoder.{i}.hook_cross_attn_out" for i in range(policy.config.n_decoder_layers)][
        1:
    ]
    intervention = Intervention.at(Site("encoder.0.attn.hook_v", {"token": 3}), FROM_CLEAN)
    wanted = ["hook_actions_normalized", *frozen]
    found = activations_under(
        policy, runs[0], intervention, wanted, {"clean": runs[1]}, frozen=frozen
    )
    held = [(name, lambda x, hook: runs[0][hook.name].clone()) for name in frozen]
    with policy.hooks([*as_hooks(policy, intervention, {"clean": runs[1]}), *held]):
        _, cache = policy.run_with_cache(scenes[0], names_filter=wanted)
    for name in wanted:
        torch.testing.assert_close(found[name], cache[name], rtol=1e-9, atol=1e-10)
