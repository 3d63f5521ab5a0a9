"""The same interventions through nnsight and through hooks: neither may be right alone."""

import pytest
import torch
from nnsight import NNsight, save
from torch import nn

from actlens.config import Camera
from actlens.errors import HookNameError, HookNeverFired, HookReturnError, SceneError
from actlens.interop.nnsight import ACTNNsight, patch_between_scenes, sharing_copy


@pytest.fixture
def traced(model):
    return ACTNNsight(model)


@pytest.fixture
def scene(model, observe):
    return observe(model, rows=2, seed=0)


@pytest.fixture
def other(model, observe):
    return observe(model, rows=2, seed=1)


def equal(a, b):
    return torch.equal(a, b)


# ── reading ──────────────────────────────────────────────────────────────────────────────────


def reached(model):
    """Every hook point of an inference pass, on-demand ones included, in order."""
    return [name for name in model.hook_dict if not name.startswith("vae.")]


def test_every_hook_point_can_be_read_and_is_what_hooks_see(model, traced, scene):
    with torch.no_grad():
        actions, cache = model.run_with_cache(scene, names_filter=reached(model))
        read = {}
        with traced.trace(scene):
            for name in reached(model):
                read[name] = save(traced.point(name).output)
    assert [name for name in reached(model) if not equal(read[name], cache[name])] == []
    assert equal(read["hook_actions"], actions)


ARCHITECTURES = [
    {"pre_norm": True},
    {"n_decoder_layers": 2},
    {"pre_norm": True, "n_decoder_layers": 3, "env_state_dim": 4},
    {"cameras": (), "env_state_dim": 4, "state_dim": None},
]


@pytest.mark.parametrize("changes", ARCHITECTURES, ids=str)
def test_other_architectures_read_alike(make_model, observe, changes):
    model = make_model(**changes)
    traced, scene = ACTNNsight(model), observe(model, rows=2)
    with torch.no_grad():
        _, cache = model.run_with_cache(scene, names_filter=reached(model))
        read = {}
        with traced.trace(scene):
            for name in reached(model):
                read[name] = save(traced.point(name).output)
    assert [name for name in reached(model) if not equal(read[name], cache[name])] == []


# nnsight's own attributes have such names; all but the last two are read-only properties.
@pytest.mark.parametrize("name", ["output", "input", "source", "device", "root", "path", "skip"])
@pytest.mark.filterwarnings("ignore:Module 'model.embed' has a submodule named")
def test_a_camera_may_have_any_name(make_model, observe, name):
    model = make_model(cameras=(Camera(f"observation.images.{name}", 32, 64),))
    traced, scene = ACTNNsight(model), observe(model, rows=2)
    address = f"embed.{name}.hook_tokens"
    with torch.no_grad():
        _, cache = model.run_with_cache(scene, names_filter=address)
        with traced.trace(scene):
            tokens = save(traced.point(address).output)
    assert equal(tokens, cache[address])


def test_the_cvaes_points_are_there_when_a_chunk_is_given(model, traced, scene, demonstration):
    action = demonstration(model, rows=2)
    with torch.no_grad():
        _, cache = model.run_with_cache(scene, action=action, names_filter="vae.hook_*")
        with traced.trace(scene, action=action):
            tokens = save(traced.vae.hook_tokens.output)
            mu = save(traced.vae.hook_mu.output)
    assert equal(tokens, cache["vae.hook_tokens"])
    assert equal(mu, cache["vae.hook_mu"])


def test_each_camera_has_its_own_points(model, traced, scene):
    with torch.no_grad():
        _, cache = model.run_with_cache(scene)
        with traced.trace(scene):
            top = save(traced.embed.top.hook_tokens.output)
            side = save(traced.embed.side.hook_tokens.output)
    assert equal(top, cache["embed.top.hook_tokens"])
    assert equal(side, cache["embed.side.hook_tokens"])


def test_attribute_paths_aliases_and_names_lead_to_the_same_point(traced):
    by_path = traced.decoder[0].hook_normalized_resid_mid_cross
    assert traced.decoder[0].hook_action_vector is by_path
    assert traced.point("decoder.0.hook_action_vector") is by_path
    assert traced.point("decoder.0.hook_normalized_resid_mid_cross") is by_path
    with pytest.raises(HookNameError, match=r"Did you mean 'encoder\.hook_out'"):
        traced.point("encoder.hook_outt")


# ── writing ──────────────────────────────────────────────────────────────────────────────────


def zero(activation):
    return torch.zeros_like(activation)


def mean(activation):
    return activation.mean(0, keepdim=True).expand_as(activation)


def first_neuron_off(activation):
    return torch.cat([torch.zeros_like(activation[..., :1]), activation[..., 1:]], -1)


def one_head_off(activation):
    kept = torch.ones(activation.shape[2]).index_fill(0, torch.tensor(1), 0)
    return activation * kept[:, None]


def uniform(activation):
    return torch.full_like(activation, 1 / activation.shape[-1])


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("encoder.1.hook_attn_out", zero),
        ("encoder.0.hook_resid_pre", mean),
        ("decoder.0.mlp.hook_post", first_neuron_off),
        ("encoder.1.mlp.hook_post", first_neuron_off),
        ("decoder.0.cross_attn.hook_z", one_head_off),
        ("decoder.0.cross_attn.hook_result", one_head_off),
        ("decoder.0.cross_attn.hook_pattern", uniform),
        ("encoder.0.attn.hook_attn_scores", zero),
        ("encoder.1.ln1.hook_scale", torch.ones_like),
        ("embed.top.hook_image", zero),
        ("hook_actions", zero),
    ],
)
def test_an_edit_gives_the_bits_that_the_same_hook_gives(model, traced, scene, name, edit):
    with torch.no_grad():
        expected = model.run_with_hooks(scene, fwd_hooks=[(name, lambda a, hook: edit(a))])
        plain = model(scene)
        with traced.trace(scene):
            traced.point(name).output = edit(traced.point(name).output)
            actions = save(traced.output)
    assert equal(actions, expected)
    assert not equal(actions, plain)


def test_every_hook_point_can_be_written(model, traced, scene):
    noise = lambda a: a + torch.randn(a.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for name in reached(model):
            expected = model.run_with_hooks(scene, fwd_hooks=[(name, lambda a, hook: noise(a))])
            with traced.trace(scene):
                traced.point(name).output = noise(traced.point(name).output)
                actions = save(traced.hook_actions.output)
            assert equal(actions, expected), name


def test_a_patch_from_another_scene_is_bit_equal(model, traced, scene, other):
    name = "encoder.1.hook_resid_pre"
    with torch.no_grad():
        _, cache = model.run_with_cache(other, names_filter=name)

        def patch(activation, hook):
            activation[:, 3] = cache[name][:, 3]

        expected = model.run_with_hooks(scene, fwd_hooks=[(name, patch)])
        with traced.trace(scene):
            patched = traced.point(name).output.clone()
            patched[:, 3] = cache[name][:, 3]
            traced.point(name).output = patched
            actions = save(traced.output)
    assert equal(actions, expected)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (lambda a: a.mean(0, keepdim=True), r"shape \(1, 7, 32\); the activation has shape \(2, 7"),
        (lambda a: a.double(), "dtype torch.float64"),
        (lambda a: 0.0, "returned float"),
    ],
    ids=["rows", "dtype", "number"],
)
def test_what_cannot_stand_in_for_the_activation_is_refused(traced, scene, written, message):
    with pytest.raises(HookReturnError, match=message), torch.no_grad(), traced.trace(scene):
        traced.encoder.hook_out.output = written(traced.encoder.hook_out.output)


def test_rows_cannot_be_lost_in_a_shared_forward(traced, scene, other):
    def run():
        with torch.no_grad(), traced.trace() as tracer:
            with tracer.invoke(scene):
                traced.encoder.hook_out.output = traced.encoder.hook_out.output[:1]
            with tracer.invoke(other):
                save(traced.hook_actions.output)

    with pytest.raises(HookReturnError, match=r"shape \(3, 7, 32\)"):
        run()


def gradients_by_hooks(model, scene, weight):
    """The gradient at every hook point that has one, of the weighted sum of the actions."""
    kept = {}

    def retain(activation, hook):
        if activation.requires_grad:
            activation.retain_grad()
            kept[hook.name] = activation

    actions = model.run_with_hooks(scene, fwd_hooks=[(name, retain) for name in reached(model)])
    (actions * weight).sum().backward()
    model.zero_grad()
    return {name: a.grad for name, a in kept.items() if a.grad is not None}


def one_name_each(read):
    """Hook points by activation: where two pass the same tensor on, nnsight serves one gradient."""
    memory = {id(a if a._base is None else a._base): name for name, a in read.items()}
    return list(memory.values())


@pytest.mark.parametrize("changes", [{}, *ARCHITECTURES], ids=str)
def test_gradients_at_every_hook_point_are_bit_equal(make_model, observe, changes):
    model = make_model(**changes)
    traced, scene = ACTNNsight(model), observe(model, rows=2)
    weight = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(8))
    expected = gradients_by_hooks(model, scene, weight)
    with traced.trace(scene):
        read = {name: traced.point(name).output for name in expected}
        loss = (traced.output * weight).sum()
        found = save({})
        with loss.backward():
            for name in reversed(one_name_each(read)):
                found[name] = read[name].grad
    model.zero_grad()
    assert len(found) > 0.9 * len(expected)
    assert any(name.endswith("hook_scale") for name in found)
    assert [name for name in found if not equal(found[name], expected[name])] == []


@pytest.mark.parametrize("changes", [{}, *ARCHITECTURES], ids=str)
def test_gradients_in_a_shared_forward_are_those_of_the_scene_alone(make_model, observe, changes):
    model = make_model(**changes)
    traced, scene = ACTNNsight(model), observe(model, rows=2)
    weight = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(8))
    expected = gradients_by_hooks(model, scene, weight)
    with traced.trace() as tracer:
        with tracer.invoke(observe(model, rows=1, seed=1)):
            save(traced.hook_actions.output)
        with tracer.invoke(scene):
            read = {name: traced.point(name).output for name in expected}
            loss = (read["hook_actions"] * weight).sum()
            found = save({})
            with loss.backward():
                for name in reversed(one_name_each(read)):
                    found[name] = read[name].grad
    model.zero_grad()
    assert len(found) > 0.9 * len(expected)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_gradients_are_bit_equal(model, traced, scene):
    kept = []

    def retain(activation, hook):
        activation.retain_grad()
        kept.append(activation)

    name = "decoder.0.hook_action_vector"
    model.run_with_hooks(scene, fwd_hooks=[(name, retain)]).square().sum().backward()
    with traced.trace(scene):
        vector = traced.decoder[0].hook_action_vector.output
        loss = traced.output.square().sum()
        with loss.backward():
            gradient = save(vector.grad)
    model.zero_grad()
    assert equal(gradient, kept[0].grad)


def test_a_trace_can_stop_early(model, traced, scene):
    ran = []
    handle = model.decoder.register_forward_hook(lambda *args: ran.append("decoder"))
    with torch.no_grad():
        _, cache = model.run_with_cache(scene, names_filter="encoder.0.hook_resid_post")
        ran.clear()
        with traced.trace(scene) as tracer:
            stream = save(traced.encoder[0].hook_resid_post.output)
            tracer.stop()
    handle.remove()
    assert equal(stream, cache["encoder.0.hook_resid_post"])
    assert ran == []


def test_hooks_act_on_what_nnsight_wrote(model, traced, scene):
    name = "encoder.0.hook_attn_out"
    twice = [(name, lambda a, hook: 2 * a + 1)]
    with torch.no_grad():
        expected = model.run_with_hooks(scene, fwd_hooks=[(name, lambda a, hook: 2 * zero(a) + 1)])
        with model.hooks(fwd_hooks=twice), traced.trace(scene):
            traced.point(name).output = zero(traced.point(name).output)
            actions = save(traced.output)
    assert equal(actions, expected)
    assert model.receipts[0].fired == 1


def test_a_hook_that_a_traced_run_never_reaches_is_an_error(model, traced, scene):
    never = [("vae.hook_mu", lambda a, hook: zero(a))]

    def run():
        with torch.no_grad(), model.hooks(fwd_hooks=never), traced.trace(scene):
            save(traced.output)

    with pytest.raises(HookNeverFired, match=r"vae\.hook_mu"):
        run()


@pytest.mark.parametrize("error", [ZeroDivisionError, HookNameError])
def test_nothing_is_left_of_a_trace_that_failed(model, traced, scene, error):
    def fail():
        with traced.trace(scene):
            traced.encoder.hook_out.output = zero(traced.encoder.hook_out.output)
            traced.point("encoder.hook_outt" if error is HookNameError else "encoder.hook_out")
            raise error

    with torch.no_grad():
        plain = model(scene)
        with pytest.raises(error):
            fail()
        assert equal(traced(scene), plain)
        with traced.trace(scene):
            actions = save(traced.output)
    assert equal(actions, plain)


# ── two scenes in one forward ────────────────────────────────────────────────────────────────


def test_each_invoke_sees_and_edits_its_own_rows(model, traced, scene, other):
    with torch.no_grad():
        _, cache = model.run_with_cache(other)
        with traced.trace() as tracer:
            with tracer.invoke(scene):
                traced.encoder[0].hook_attn_out.output = zero(
                    traced.encoder[0].hook_attn_out.output
                )
                edited = save(traced.hook_actions.output)
            with tracer.invoke(other):
                positions = save(traced.embed.hook_pos.output)
                untouched = save(traced.encoder[0].hook_attn_out.output)
                plain = save(traced.hook_actions.output)
        expected = model.run_with_hooks(
            scene, fwd_hooks=[("encoder.0.hook_attn_out", lambda a, hook: a * 0)]
        )
    assert torch.allclose(edited, expected, atol=1e-5)
    assert torch.allclose(untouched, cache["encoder.0.hook_attn_out"], atol=1e-5)
    assert torch.allclose(plain, cache["hook_actions"], atol=1e-5)
    assert equal(positions, cache["embed.hook_pos"])


@pytest.mark.parametrize(
    "addresses",
    [
        ["encoder.hook_out"],
        ["encoder.1.hook_resid_pre[state]"],
        ["decoder.0.mlp.hook_post[5]", "encoder.0.attn.hook_z[head=1, top]"],
        ["decoder.0.cross_attn.hook_pattern[head=2, query=0:3]", "embed.hook_tokens[side]"],
    ],
    ids=str,
)
def test_patching_between_scenes_in_one_forward_equals_two_runs_with_hooks(
    model, traced, scene, other, addresses
):
    from actlens.sites import parse_where, split_address

    with torch.no_grad():
        donor, cache = model.run_with_cache(other)
        hooks = []
        for address in addresses:
            name, selectors = split_address(address)
            index = model.hook_point(name).index(
                parse_where(selectors, model.hook_point(name), model.tokens)
            )

            def patch(activation, hook, name=name, index=index):
                activation[index] = cache[name][index]

            hooks.append((name, patch))
        expected = model.run_with_hooks(scene, fwd_hooks=hooks)
        receipts = model.receipts
    found = patch_between_scenes(traced, other, scene, addresses)
    assert torch.allclose(found.patched, expected, atol=1e-5)
    assert torch.allclose(found.donor, donor, atol=1e-5)
    assert [receipt.name for receipt in found.receipts] == addresses
    for ours, theirs in zip(receipts, found.receipts, strict=True):
        assert theirs.fired == 1
        assert abs(theirs.max_change - ours.max_change) < 1e-5
        assert theirs.changed == ours.changed


def test_patching_all_of_the_memory_brings_the_donors_actions(traced, scene, other):
    found = patch_between_scenes(traced, other, scene, ["encoder.hook_out"])
    assert equal(found.patched, found.donor)


def test_scenes_single_observations_and_floats_may_share_a_forward(model, traced, scene):
    from actlens.scene import Scene

    single = {key: value[0] for key, value in scene.items()}
    floats = {k: v / 255 if v.dtype == torch.uint8 else v for k, v in single.items()}
    with torch.no_grad(), traced.trace() as tracer:
        with tracer.invoke(Scene(single)):
            a = save(traced.hook_actions.output)
        with tracer.invoke(floats):
            b = save(traced.hook_actions.output)
        with tracer.invoke(scene):
            c = save(traced.hook_actions.output)
    assert a.shape == b.shape == (1, 5, 3)
    assert torch.allclose(a, b, atol=1e-6)
    assert torch.allclose(a, c[:1], atol=1e-6)


def test_options_are_batched_with_their_observations(model, traced, scene, other):
    latents = torch.randn(2, 2, 9, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        with traced.trace() as tracer:
            with tracer.invoke(scene, latent=latents[0]):
                a = save(traced.hook_actions.output)
            with tracer.invoke(other, latent=latents[1]):
                b = save(traced.hook_actions.output)
        assert torch.allclose(a, model(scene, latent=latents[0]), atol=1e-5)
        assert torch.allclose(b, model(other, latent=latents[1]), atol=1e-5)


@pytest.mark.parametrize("rows", [(2, 5), (2, 3)], ids=["as many as tokens", "as many as slots"])
def test_the_number_of_rows_does_not_matter(model, traced, observe, rows):
    scenes = [observe(model, rows=n, seed=n) for n in rows]
    read = [{}, {}]
    with torch.no_grad():
        with traced.trace() as tracer:
            for scene, mine in zip(scenes, read, strict=True):
                with tracer.invoke(scene):
                    for name in reached(model):
                        mine[name] = save(traced.point(name).output)
        for scene, mine in zip(scenes, read, strict=True):
            _, cache = model.run_with_cache(scene, names_filter=reached(model))
            for name in reached(model):
                torch.testing.assert_close(mine[name], cache[name], rtol=1e-4, atol=1e-5, msg=name)


def test_what_one_invoke_writes_to_the_positions_all_get(model, traced, scene, observe):
    five = observe(model, rows=5)
    with torch.no_grad():
        expected = model.run_with_hooks(
            five, fwd_hooks=[("embed.hook_pos", lambda a, hook: zero(a))]
        )
        with traced.trace() as tracer:
            with tracer.invoke(scene):
                traced.embed.hook_pos.output = zero(traced.embed.hook_pos.output)
            with tracer.invoke(five):
                positions = save(traced.embed.hook_pos.output)
                actions = save(traced.hook_actions.output)
    assert positions.shape == (7, 32)
    assert not positions.any()
    assert torch.allclose(actions, expected, atol=1e-5)


def test_bytes_and_floats_share_a_forward_at_full_precision(own_model, observe):
    own_model.double()
    scene, other = observe(own_model, rows=2), observe(own_model, rows=2, seed=1)
    other = {k: v.double() / 255 if v.dtype == torch.uint8 else v for k, v in other.items()}
    scene["observation.state"] = torch.full((2, 6), 200, dtype=torch.uint8)
    traced = ACTNNsight(own_model)
    with torch.no_grad():
        with traced.trace() as tracer:
            with tracer.invoke(scene):
                a = save(traced.hook_actions.output)
            with tracer.invoke(other):
                b = save(traced.hook_actions.output)
        assert torch.allclose(a, own_model(scene), rtol=0, atol=1e-12)
        assert torch.allclose(b, own_model(other), rtol=0, atol=1e-12)


def test_single_chunks_are_batched_with_their_observations(model, traced, scene, demonstration):
    chunks = demonstration(model, rows=2)
    pad = torch.zeros(2, 5, dtype=torch.bool)
    pad[:, 3:] = True
    singles = [{key: value[row] for key, value in scene.items()} for row in range(2)]
    with torch.no_grad():
        with traced.trace() as tracer:
            with tracer.invoke(singles[0], action=chunks[0], action_is_pad=pad[0], latent=None):
                a = save(traced.hook_actions.output)
            with tracer.invoke(singles[1], action=chunks[1], action_is_pad=pad[1]):
                b = save(traced.hook_actions.output)
        expected = model(scene, action=chunks, action_is_pad=pad)
    assert torch.allclose(torch.cat([a, b]), expected, atol=1e-5)


def test_forwards_that_would_be_cut_up_wrongly_are_refused(model, traced, observe):
    def run(*invokes):
        with traced.trace() as tracer:
            for observations, options in invokes:
                with tracer.invoke(*observations, **options):
                    save(traced.hook_actions.output)

    two, one = observe(model, rows=2), observe(model, rows=1)
    latent = {"latent": torch.zeros(2, 9)}
    with pytest.raises(SceneError, match="latent must be given in every invoke"):
        run(([two], latent), ([two], {}))
    with pytest.raises(SceneError, match=r"latent has shape \(1, 9\); .* has 2 rows"):
        run(([two], {"latent": torch.zeros(1, 9)}), ([one], latent))
    with pytest.raises(SceneError, match=r"no 'observation\.state'"):
        run(([two], {}), ([{k: v for k, v in two.items() if "state" not in k}], {}))
    for several in ([two, one], [[two, one]]):
        with pytest.raises(SceneError, match="One observation or scene at a time"):
            run((several, {}))


@pytest.mark.parametrize(
    ("addresses", "error", "message"),
    [
        ([], HookNameError, "empty list"),
        (["encoder.hook_outt"], HookNameError, "Did you mean"),
        (["encoder.hook_out[elbow]"], HookNameError, "is not a token"),
        (["hook_actions", "vae.hook_mu"], HookNeverFired, r"never reached vae\.hook_mu"),
    ],
)
def test_patches_of_nothing_are_refused(traced, scene, other, addresses, error, message):
    with pytest.raises(error, match=message):
        patch_between_scenes(traced, other, scene, addresses)


def test_parts_of_one_hook_point_are_patched_one_after_the_other(model, traced, scene, other):
    twice = ["encoder.hook_out[{state, 0}]", "encoder.hook_out[top]", "encoder.hook_out[top]"]
    found = patch_between_scenes(traced, other, scene, twice)
    with torch.no_grad():
        _, cache = model.run_with_cache(other, names_filter="encoder.hook_out")

        def patch(activation, hook):
            activation[:, :4] = cache["encoder.hook_out"][:, :4]

        expected = model.run_with_hooks(scene, fwd_hooks=[("encoder.hook_out", patch)])
    assert torch.allclose(found.patched, expected, atol=1e-5)
    assert [receipt.name for receipt in found.receipts] == twice
    assert [receipt.changed for receipt in found.receipts] == [2 * 2 * 32, 2 * 2 * 32, 0]


def test_a_policy_with_as_many_tokens_as_scenes_can_be_patched(make_model, observe):
    model = make_model(cameras=(), env_state_dim=4, state_dim=None)
    assert model.config.n_tokens == 2
    donor, base = observe(model, rows=1, seed=1), observe(model, rows=1)
    found = patch_between_scenes(ACTNNsight(model), donor, base, ["encoder.hook_out"])
    assert equal(found.patched, found.donor)
    with torch.no_grad():
        assert torch.allclose(found.donor, model(donor), atol=1e-5)


def test_scenes_of_different_size_cannot_be_patched_into_each_other(model, traced, scene, observe):
    with pytest.raises(SceneError, match="same number of rows"):
        patch_between_scenes(traced, observe(model, rows=1), scene, ["encoder.hook_out"])


# ── the wrapped model stays as it was ────────────────────────────────────────────────────────


def test_the_users_model_is_not_touched(own_model, observe):
    scene = observe(own_model, rows=2)
    modules = dict(own_model.named_modules())
    before = {name: set(module.__dict__) for name, module in modules.items()}
    traced = ACTNNsight(own_model)
    with torch.no_grad(), traced.trace(scene):
        traced.hook_actions.output = zero(traced.hook_actions.output)
    assert dict(own_model.named_modules()) == modules
    assert {name: set(module.__dict__) for name, module in modules.items()} == before
    assert not any(point.is_watched for point in own_model.hook_points())
    assert all(point is own_model.get_submodule(n) for n, point in own_model.hook_dict.items())
    torch.export.export(own_model.encoder, (torch.randn(1, 7, 32), torch.randn(7, 32)))


def test_weights_are_shared_both_ways(own_model, observe):
    scene = observe(own_model, rows=2)
    traced = ACTNNsight(own_model)
    twin = traced._module
    assert [id(p) for p in twin.parameters()] == [id(p) for p in own_model.parameters()]
    with torch.no_grad():
        own_model.action_head.bias.add_(1)
        own_model.ln_final.weight = nn.Parameter(torch.full((32,), 2.0))
        own_model.load_state_dict({k: v + 0.01 for k, v in own_model.state_dict().items()})
        own_model.double()
        with traced.trace(scene):
            actions = save(traced.output)
        assert actions.dtype == torch.float64
        assert equal(actions, own_model(scene))


def test_a_trace_runs_in_the_models_mode(own_model, observe):
    scene = observe(own_model, rows=2)
    traced = ACTNNsight(own_model.train())
    own_model.eval()
    with torch.no_grad():
        with traced.trace(scene):
            actions = save(traced.output)
        assert equal(actions, own_model(scene))
        own_model.train()
        with traced.trace(scene):
            dropped = save(traced.output)
    assert not equal(dropped, actions)
    assert own_model.training


def test_a_rollout_goes_on_in_traces_and_is_reset_with_the_model(own_model, observe):
    first, second = observe(own_model, rows=1), observe(own_model, rows=1, seed=1)
    traced, steps = ACTNNsight(own_model), []
    expected = [own_model.select_action(first) for _ in range(2)]
    own_model.reset()
    clock = [("hook_actions", lambda a, hook: steps.append(hook.clock.control_step))]
    with own_model.hooks(fwd_hooks=clock), traced.trace(first, fn="select_action") as tracer:
        action = save(tracer.result)
    assert steps == [0]
    assert equal(action, expected[0])
    assert equal(own_model.select_action(second), expected[1])  # the rest of the first chunk
    own_model.reset()
    with traced.trace(second, fn="select_action") as tracer:
        action = save(tracer.result)
    assert equal(action, own_model.predict_action_chunk(second)[:, 0])


def test_a_model_that_nnsight_already_wrapped_is_left_to_it(own_model, observe):
    scene = observe(own_model, rows=2)
    theirs = NNsight(own_model)
    ours = ACTNNsight(own_model)
    with torch.no_grad():
        with ours.trace(scene):
            ours.encoder.hook_out.output = zero(ours.encoder.hook_out.output)
            edited = save(ours.output)
        with theirs.trace(scene):
            plain = save(theirs.output)
        assert equal(plain, own_model(scene))
    assert not equal(edited, plain)
    assert ours._module.encoder.forward is not own_model.encoder.forward


def test_a_sharing_copy_keeps_shared_modules_shared(model):
    twin = sharing_copy(model)
    assert twin.decoder[0].hook_action_vector is twin.decoder[0].hook_normalized_resid_mid_cross
    assert twin.decoder[0].hook_action_vector is not model.decoder[0].hook_action_vector
    assert list(twin.state_dict()) == list(model.state_dict())
