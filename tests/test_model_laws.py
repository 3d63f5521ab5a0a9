import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from actlens.config import ACTConfig, Camera
from actlens.errors import HookNeverFired, SceneError
from actlens.model.act import HookedACT

ARCHITECTURES = {
    "as LeRobot's default": {},
    "pre-norm": {"pre_norm": True},
    "two decoder layers": {"n_decoder_layers": 2},
    "pre-norm, two decoder layers": {"pre_norm": True, "n_decoder_layers": 2},
}
every_architecture = pytest.mark.parametrize(
    "changes", ARCHITECTURES.values(), ids=ARCHITECTURES.keys()
)


def difference(a, b):
    return float((a - b).detach().abs().max())


def add_noise(activation, hook):
    generator = torch.Generator().manual_seed(3)
    return activation + torch.randn(activation.shape, generator=generator).to(activation)


# ── the hook points: names, order, axes ──────────────────────────────────────────────────────


def attention(block):
    for leaf in ("q", "k", "v", "attn_scores", "pattern", "z", "result"):
        yield f"{block}.hook_{leaf}"


def norm(block, number):
    yield from (f"{block}.ln{number}.hook_scale", f"{block}.ln{number}.hook_normalized")


def encoder_block(block, *, pre_norm):
    yield f"{block}.hook_resid_pre"
    if pre_norm:
        yield from norm(block, 1)
        yield f"{block}.hook_normalized_resid_pre"
    yield from attention(f"{block}.attn")
    yield from (f"{block}.hook_attn_out", f"{block}.hook_resid_mid")
    yield from norm(block, 2 if pre_norm else 1)
    yield f"{block}.hook_normalized_resid_mid"
    yield from (f"{block}.mlp.hook_pre", f"{block}.mlp.hook_post")
    yield from (f"{block}.hook_mlp_out", f"{block}.hook_resid_post")
    if not pre_norm:
        yield from norm(block, 2)
        yield f"{block}.hook_normalized_resid_post"


def encoder(stack, n_layers, *, pre_norm):
    for layer in range(n_layers):
        yield from encoder_block(f"{stack}.{layer}", pre_norm=pre_norm)
    if pre_norm:
        yield from (f"{stack}.ln_final.hook_scale", f"{stack}.ln_final.hook_normalized")
    yield f"{stack}.hook_out"


def decoder_block(block, *, pre_norm):
    yield f"{block}.hook_resid_pre"
    if pre_norm:
        yield from norm(block, 1)
        yield f"{block}.hook_normalized_resid_pre"
    yield from attention(f"{block}.attn")
    yield from (f"{block}.hook_attn_out", f"{block}.hook_resid_mid")
    yield from norm(block, 2 if pre_norm else 1)
    yield f"{block}.hook_normalized_resid_mid"
    yield from attention(f"{block}.cross_attn")
    yield from (f"{block}.hook_cross_attn_out", f"{block}.hook_resid_mid_cross")
    yield from norm(block, 3 if pre_norm else 2)
    yield f"{block}.hook_normalized_resid_mid_cross"
    yield from (f"{block}.mlp.hook_pre", f"{block}.mlp.hook_post")
    yield from (f"{block}.hook_mlp_out", f"{block}.hook_resid_post")
    if not pre_norm:
        yield from norm(block, 3)
        yield f"{block}.hook_normalized_resid_post"


def all_names(config):
    yield from ("embed.hook_latent", "embed.hook_latent_token")
    if config.state_dim is not None:
        yield "embed.hook_state_token"
    if config.env_state_dim is not None:
        yield "embed.hook_env_token"
    for camera in config.cameras:
        for leaf in ("image", "layer1", "layer2", "layer3", "layer4", "tokens"):
            yield f"embed.{camera.name}.hook_{leaf}"
    yield from ("embed.hook_tokens", "embed.hook_pos")
    if config.use_vae:
        vae = list(encoder("vae", config.n_vae_encoder_layers, pre_norm=config.pre_norm))
        yield from (*vae, "vae.hook_tokens", "vae.hook_mu", "vae.hook_log_var")
    yield from encoder("encoder", config.n_encoder_layers, pre_norm=config.pre_norm)
    for layer in range(config.n_decoder_layers):
        yield from decoder_block(f"decoder.{layer}", pre_norm=config.pre_norm)
    yield from ("ln_final.hook_scale", "ln_final.hook_normalized")
    yield from ("hook_actions_normalized", "hook_actions")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pre_norm": True},
        {"n_decoder_layers": 7, "use_vae": False},
        {"state_dim": None},
        {"env_state_dim": 4},
        {"cameras": (), "env_state_dim": 4},
    ],
    ids=str,
)
def test_the_hook_points_of_the_default_sizes_are_these_in_this_order(changes):
    two_cameras = tuple(
        Camera(f"observation.images.{name}", 480, 640) for name in ("top", "lateral")
    )
    config = ACTConfig(**{"cameras": two_cameras, "action_dim": 6, "state_dim": 6} | changes)
    with torch.device("meta"):
        names = list(HookedACT(config).hook_dict)
    assert names == list(all_names(config))
    if not changes:
        assert (len(names), Counter(n.split(".")[0] for n in names)) == (
            218,
            {"embed": 17, "vae": 84, "encoder": 81, "decoder": 32, "ln_final": 2}
            | {"hook_actions_normalized": 1, "hook_actions": 1},
        )


def test_on_demand_points_are_per_head_writes_and_norms(make_model):
    for changes in ARCHITECTURES.values():
        for name, point in make_model(**changes).hook_dict.items():
            expected = name.endswith(("hook_result", "hook_scale", "hook_normalized"))
            assert point.on_demand == expected, name


@every_architecture
def test_points_fire_once_each_in_the_order_in_which_they_are_listed(
    make_model, observe, demonstration, changes
):
    model = make_model(**changes)
    fired = []
    with torch.no_grad(), model.hooks([(lambda _: True, lambda a, hook: fired.append(hook.name))]):
        model(observe(model), action=demonstration(model))
    of_the_vae = [name for name in model.hook_dict if name.startswith("vae.")]
    first = ["vae.hook_tokens", *(n for n in of_the_vae if n != "vae.hook_tokens")]
    assert fired == first + [name for name in model.hook_dict if name not in of_the_vae]


def shapes_of(model, rows):
    """Every axis' length by its name, from the configuration alone."""
    config = model.config
    sizes = {
        "batch": rows,
        "token": 1 + 1 + sum(-(-c.height // 32) * -(-c.width // 32) for c in config.cameras),
        "query": config.chunk,
        "chunk": config.chunk,
        "vae_token": config.chunk + 2,
        "head": config.n_heads,
        "d_head": config.d_model // config.n_heads,
        "d_model": config.d_model,
        "neuron": config.d_mlp,
        "latent": config.latent_dim,
        "joint": config.action_dim,
        "one": 1,
    }
    for axis in ("token", "query", "vae_token"):
        sizes |= {f"{axis}_q": sizes[axis], f"{axis}_k": sizes[axis]}
    pictures = {}
    for camera in config.cameras:
        stages = {"image": (3, 1), "layer1": (64, 4), "layer2": (128, 8)}
        stages |= {"layer3": (256, 16), "layer4": (512, 32)}
        for leaf, (channel, stride) in stages.items():
            pictures[f"embed.{camera.name}.hook_{leaf}"] = {
                "channel": channel,
                "height": -(-camera.height // stride),
                "width": -(-camera.width // stride),
            }
        pixels = -(-camera.height // 32) * -(-camera.width // 32)
        pictures[f"embed.{camera.name}.hook_tokens"] = {"pixel": pixels}
    return lambda name: sizes | pictures.get(name, {})


@every_architecture
def test_every_activation_has_the_shape_that_its_axes_say(
    make_model, observe, demonstration, changes
):
    model = make_model(**changes)
    with torch.no_grad():
        _, cache = model.run_with_cache(
            observe(model, rows=4), action=demonstration(model, rows=4), names_filter="*"
        )
    assert set(cache) == set(model.hook_dict)
    sizes = shapes_of(model, rows=4)
    for name, point in model.hook_dict.items():
        lengths = sizes(name)
        assert tuple(cache[name].shape) == tuple(lengths[axis] for axis in point.axes), name
        assert len(point.axes) == cache[name].ndim, name


# ── looking changes nothing; writing changes something ───────────────────────────────────────


def from_the_encoder_on(model, cache, name):
    """A run from the stream that enters the encoder, if `name` fires there; else None.

    It is the whole run without the trunk (see `test_resuming_…`), which is most of its time.
    """
    if not name.startswith(("encoder.", "decoder.", "ln_final.", "hook_actions")):
        return None
    return lambda: model.resume(cache["embed.hook_tokens"], cache["embed.hook_pos"], layer=0)


@every_architecture
def test_identity_hooks_everywhere_change_no_bit(make_model, observe, demonstration, changes):
    model = make_model(**changes)
    observation, action = observe(model), demonstration(model)  # several rows: strides matter
    identities = (lambda a, hook: a, lambda a, hook: None)
    usual = [name for name, point in model.hook_dict.items() if not point.on_demand]
    with torch.no_grad():
        plain = model(observation, action=action)
        seen = model.run_with_hooks(
            observation, action=action, fwd_hooks=[(n, hook) for n in usual for hook in identities]
        )
    assert torch.equal(seen, plain)
    assert [receipt.changed for receipt in model.receipts] == [0] * 2 * len(usual)


@every_architecture
def test_an_identity_hook_on_demand_changes_no_more_than_rounding(
    make_model, observe, demonstration, changes
):
    """What follows is then computed from the point, which the usual path never makes."""
    model = make_model(**changes)
    observation, action = observe(model, rows=1), demonstration(model, rows=1)
    identities = (lambda a, hook: a, lambda a, hook: None)
    with torch.no_grad():
        plain, cache = model.run_with_cache(observation, action=action)
        whole = lambda: model(observation, action=action)
        for name, point in model.hook_dict.items():
            if point.on_demand:
                run = from_the_encoder_on(model, cache, name) or whole
                with model.hooks([(name, hook) for hook in identities]):
                    assert difference(run(), plain) < 1e-5, name
                assert [receipt.changed for receipt in model.receipts] == [0, 0]


@every_architecture
def test_caching_everything_on_demand_points_included_changes_no_bit(
    make_model, observe, demonstration, changes
):
    model = make_model(**changes)
    with torch.no_grad():
        plain = model(observe(model), action=demonstration(model))
        seen, cache = model.run_with_cache(
            observe(model), action=demonstration(model), names_filter="*"
        )
    assert torch.equal(seen, plain)
    assert torch.equal(cache["hook_actions"], plain)


def inert(name, model):
    """Points that cannot move the actions, whatever is written there.

    The first decoder block attends to a stream of zeros: all its values are equal, so every mixture
    of them is the same, and neither queries nor keys nor scores matter (the pattern does only if
    its rows no longer sum to one). Under pre-norm its first norm divides those zeros, by whatever.
    z is the posterior's *mean*, so its variance goes unread.
    """
    if name == "decoder.0.ln1.hook_scale":
        return model.config.pre_norm
    return name == "vae.hook_log_var" or name in (
        "decoder.0.attn.hook_q",
        "decoder.0.attn.hook_k",
        "decoder.0.attn.hook_attn_scores",
    )


@every_architecture
def test_writing_anywhere_but_at_inert_points_moves_the_actions(
    make_model, observe, demonstration, changes
):
    model = make_model(**changes)
    observation, action = observe(model, rows=1), demonstration(model, rows=1)
    with torch.no_grad():
        plain, cache = model.run_with_cache(observation, action=action)
        whole = lambda: model(observation, action=action)
        for name in model.hook_dict:
            with model.hooks([(name, add_noise)]):
                moved = (from_the_encoder_on(model, cache, name) or whole)()
            if inert(name, model):
                assert difference(moved, plain) < 1e-5, name
            else:
                assert difference(moved, plain) > 1e-3, name
            assert model.receipts[0].changed > 0


@every_architecture
def test_gradients_reach_every_point_but_inert_ones(make_model, observe, demonstration, changes):
    model = make_model(**changes)
    activations = {}

    def watch(activation, hook):
        activation.requires_grad_() if activation.is_leaf else activation.retain_grad()
        activations[hook.name] = activation

    actions = model.run_with_hooks(
        observe(model), action=demonstration(model), fwd_hooks=[(lambda _: True, watch)]
    )
    generator = torch.Generator().manual_seed(4)
    (actions * torch.randn(actions.shape, generator=generator)).sum().backward()
    model.zero_grad()
    assert set(activations) == set(model.hook_dict)
    for name, activation in activations.items():
        gradient = 0 if activation.grad is None else float(activation.grad.abs().max())
        if inert(name, model):
            assert gradient < 1e-5, name
        else:
            assert gradient > 1e-5, name


def gradients(model, observation, watch):
    model.zero_grad()
    with model.hooks(fwd_hooks=watch):
        model(observation).square().sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@every_architecture
@pytest.mark.parametrize("on_demand", ["*.hook_scale", "*.hook_normalized", "*.hook_result"])
def test_watching_on_demand_points_leaves_gradients_as_they_are(
    make_model, observe, changes, on_demand
):
    model = make_model(**changes)
    plain = gradients(model, observe(model), [])
    watched = gradients(model, observe(model), [(on_demand, lambda a, hook: None)])
    largest = max(float(g.abs().max()) for g in plain.values())
    assert watched.keys() == plain.keys()
    for name, gradient in plain.items():
        assert difference(watched[name], gradient) < 1e-5 * largest, name


# ── patching a whole layer hands over the whole scene ────────────────────────────────────────


def cuts(model):
    """Points through which everything that differs between two scenes must pass."""
    config = model.config
    post = "hook_resid_post" if config.pre_norm else "hook_normalized_resid_post"
    for layer in range(config.n_encoder_layers):
        yield f"encoder.{layer}.hook_resid_pre"
        yield f"encoder.{layer}.{post}"
    yield from ("embed.hook_tokens", "encoder.hook_out")
    if config.n_decoder_layers == 1:
        yield "decoder.0.hook_cross_attn_out"
        yield "decoder.0.hook_resid_mid_cross"
    yield f"decoder.{config.n_decoder_layers - 1}.{post}"
    yield from ("hook_actions_normalized", "hook_actions")


@every_architecture
def test_patching_a_cut_gives_the_other_scenes_actions_bit_for_bit(make_model, observe, changes):
    model = make_model(**changes)
    clean, corrupt = observe(model, seed=0), observe(model, seed=1)
    with torch.no_grad():
        goal, cache = model.run_with_cache(clean)
        start = model(corrupt)
        assert difference(goal, start) > 0.01
        for name in cuts(model):
            patch = lambda a, hook, name=name: cache[name]
            assert torch.equal(model.run_with_hooks(corrupt, fwd_hooks=[(name, patch)]), goal), name


@every_architecture
def test_patching_a_scene_with_itself_changes_no_bit(make_model, observe, changes):
    model = make_model(**changes)
    observation = observe(model, rows=1)
    with torch.no_grad():
        plain, cache = model.run_with_cache(observation)
        whole = lambda: model(observation)
        for name, value in cache.items():
            with model.hooks([(name, lambda a, hook, value=value: value)]):
                assert torch.equal((from_the_encoder_on(model, cache, name) or whole)(), plain)
            assert model.receipts[0].changed == 0, name


@every_architecture
def test_a_patch_at_one_token_changes_that_token_and_no_other(make_model, observe, changes):
    model = make_model(**changes)
    with torch.no_grad():
        _, donor = model.run_with_cache(observe(model, seed=0))
        name = "encoder.1.hook_resid_pre"

        def patch(activation, hook):
            activation[:, 3] = donor[name][:, 3]
            return activation

        with model.hooks(fwd_hooks=[(name, patch)]):
            _, cache = model.run_with_cache(observe(model, seed=1), names_filter=name)
        assert model.receipts[0].changed == 3 * model.config.d_model
        _, plain = model.run_with_cache(observe(model, seed=1), names_filter=name)
    different = (cache[name] != plain[name]).any(-1)
    assert different.nonzero()[:, 1].unique().tolist() == [3]


@every_architecture
def test_resuming_at_any_layer_equals_the_whole_run_bit_for_bit(make_model, observe, changes):
    model = make_model(**changes)
    with torch.no_grad():
        whole, cache = model.run_with_cache(observe(model))
        n = model.config.n_encoder_layers
        for layer in range(n + 1):
            name = "encoder.hook_out" if layer == n else f"encoder.{layer}.hook_resid_pre"
            store, caching, _ = model.get_caching_hooks()
            with model.hooks(fwd_hooks=caching):
                again = model.resume(cache[name], cache["embed.hook_pos"], layer=layer)
            assert torch.equal(again, whole)
            assert [k for k, value in store.items() if not torch.equal(value, cache[k])] == []
            assert list(store) == list(cache)[list(cache).index(name) :]
            one = model.resume(cache[name][1:2], cache["embed.hook_pos"], layer=layer)
            assert difference(one, whole[1:2]) < 1e-5


@pytest.mark.parametrize("layer", [-1, 3])
def test_runs_resume_at_layers_that_exist(model, layer):
    resid, pos = torch.zeros(1, model.config.n_tokens, 32), torch.zeros(model.config.n_tokens, 32)
    with pytest.raises(SceneError, match=f"encoder layers 0..2, not {layer}"):
        model.resume(resid, pos, layer=layer)


def test_runs_resume_from_a_stream_of_all_tokens(model):
    with pytest.raises(SceneError, match=r"resid has shape \(1, 4, 32\); this policy needs"):
        model.resume(torch.zeros(1, 4, 32), torch.zeros(7, 32), layer=1)


def test_hooks_that_a_resumed_run_cannot_reach_are_errors(model, observe):
    with torch.no_grad():
        _, cache = model.run_with_cache(observe(model))
    hooks = [("encoder.0.hook_attn_out", lambda a, hook: a * 0)]
    with pytest.raises(HookNeverFired, match="reached encoder"), model.hooks(fwd_hooks=hooks):
        model.resume(cache["encoder.1.hook_resid_pre"], cache["embed.hook_pos"], layer=1)


def test_a_run_that_breaks_off_at_its_very_end_does_not_make_hooks_silent(model, observe):
    def fail(activation, hook):
        raise ZeroDivisionError

    hooks = [("hook_actions", fail), ("hook_actions", lambda a, hook: a * 0)]
    with model.hooks(fwd_hooks=hooks), pytest.raises(ZeroDivisionError):
        model(observe(model))
    assert [receipt.fired for receipt in model.receipts] == [1, 0]


def test_a_hook_on_the_cvae_is_an_error_at_inference(model, observe):
    with pytest.raises(HookNeverFired, match=r"never reached vae\.hook_mu"):
        model.run_with_hooks(observe(model), fwd_hooks=[("vae.hook_mu", lambda a, hook: a * 0)])
    with pytest.raises(HookNeverFired, match=r"never reached vae\.0\.hook_resid_pre"):
        model.run_with_cache(observe(model), names_filter="vae.*")


# ── what the architecture fixes ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_first_decoder_self_attention_is_one_constant_of_the_weights(
    make_model, observe, pre_norm
):
    model = make_model(pre_norm=pre_norm)
    block = model.decoder[0]
    with torch.no_grad():
        _, cache = model.run_with_cache(observe(model))
        read = block.ln1.bias if pre_norm else torch.zeros(model.config.d_model)
        values = torch.einsum("d,hde->he", read, block.attn.W_V) + block.attn.b_V
        constant = torch.einsum("he,hed->d", values, block.attn.W_O) + block.attn.b_O
    assert difference(cache["decoder.0.hook_attn_out"], constant) < 1e-5


def test_equal_cameras_may_swap_places(make_model, observe):
    cameras = tuple(Camera(f"observation.images.{name}", 64, 64) for name in ("left", "right"))
    model = make_model(cameras=cameras, use_vae=False)
    keys = [camera.key for camera in cameras]
    model = copy.deepcopy(model)
    for part in ("shift", "scale"):  # the statistics of both must be equal, too
        buffers = [model.normalizer.get_buffer(f"{part}_{i}") for i in (0, 1)]
        buffers[1].copy_(buffers[0])
    observation = observe(model)
    swapped = observation | {keys[0]: observation[keys[1]], keys[1]: observation[keys[0]]}
    one_replaced = observation | {keys[0]: observation[keys[1]]}
    with torch.no_grad():
        actions = model(observation)
        assert difference(model(swapped), actions) < 1e-5
        assert difference(model(one_replaced), actions) > 1e-3


def test_the_latent_token_is_its_bias_at_inference(model, observe):
    with torch.no_grad():
        _, cache = model.run_with_cache(observe(model))
    bias = model.embed.latent_proj.bias
    assert torch.equal(cache["embed.hook_latent"], torch.zeros(3, 9))
    assert torch.equal(cache["embed.hook_latent_token"], bias.expand(3, -1))
    assert torch.equal(cache["embed.hook_tokens[latent]"], bias.expand(3, -1))


@every_architecture
def test_the_order_of_tokens_does_not_matter(make_model, observe, changes):
    model = make_model(**changes)
    with torch.no_grad():
        actions, cache = model.run_with_cache(observe(model))
        order = torch.randperm(model.config.n_tokens, generator=torch.Generator().manual_seed(5))
        shuffled = model.resume(
            cache["embed.hook_tokens"][:, order], cache["embed.hook_pos"][order], layer=0
        )
        misplaced = model.resume(
            cache["embed.hook_tokens"][:, order], cache["embed.hook_pos"], layer=0
        )
    assert difference(shuffled, actions) < 1e-5
    assert difference(misplaced, actions) > 1e-4


def test_with_one_decoder_layer_the_mlp_never_sees_the_step_of_the_chunk(own_model, observe):
    order = torch.tensor([3, 0, 4, 2, 1])
    with torch.no_grad():
        actions = own_model(observe(own_model))
        own_model.decoder.query_pos.weight.copy_(own_model.decoder.query_pos.weight[order])
        permuted = own_model(observe(own_model))
    assert difference(permuted, actions[:, order]) < 1e-5
    assert difference(permuted, actions) > 1e-3


@pytest.mark.parametrize("n_decoder_layers", [1, 2])
def test_queries_are_independent_with_one_decoder_layer_only(make_model, observe, n_decoder_layers):
    model = make_model(n_decoder_layers=n_decoder_layers)

    def shift_one_query(activation, hook):
        activation[:, 2] += 1
        return activation

    with torch.no_grad():
        plain = model(observe(model))
        moved = model.run_with_hooks(
            observe(model), fwd_hooks=[("decoder.0.cross_attn.hook_q", shift_one_query)]
        )
    touched = (moved - plain).abs().amax((0, 2)) > 1e-5
    assert touched.tolist() == (
        [False, False, True, False, False] if n_decoder_layers == 1 else [True] * 5
    )


@every_architecture
def test_rows_of_every_pattern_sum_to_one(make_model, observe, demonstration, changes):
    model = make_model(**changes)
    with torch.no_grad():
        _, cache = model.run_with_cache(
            observe(model), action=demonstration(model), names_filter="*.hook_pattern"
        )
    assert len(cache) == sum(name.endswith("hook_pattern") for name in model.hook_dict)
    for name, pattern in cache.items():
        assert difference(pattern.sum(-1), torch.ones(())) < 1e-5, name
        assert (pattern >= 0).all(), name


def test_padded_actions_are_not_attended_to(model, observe, demonstration):
    padded = torch.zeros(3, 5, dtype=torch.bool)
    padded[0, 3:] = True
    chunk = demonstration(model)
    other = chunk.clone()
    other[0, 3:] = 7
    with torch.no_grad():
        _, cache = model.run_with_cache(
            observe(model), action=chunk, action_is_pad=padded, names_filter="vae.*.hook_pattern"
        )
        same = [model(observe(model), action=a, action_is_pad=padded) for a in (chunk, other)]
    for pattern in cache.values():
        assert (pattern[0, :, :, 5:] == 0).all()
        assert (pattern[1:, :, :, 5:] > 0).all()
    assert torch.equal(*same)


@every_architecture
def test_heads_writes_and_the_bias_sum_to_what_attention_writes(make_model, observe, changes):
    model = make_model(**changes)
    with torch.no_grad():
        _, cache = model.run_with_cache(
            observe(model), names_filter=["*.hook_result", "*_attn_out", "*.hook_attn_out"]
        )
    blocks = [(f"encoder.{i}", "attn", "hook_attn_out") for i in range(2)]
    for layer in range(model.config.n_decoder_layers):
        blocks.append((f"decoder.{layer}", "attn", "hook_attn_out"))
        blocks.append((f"decoder.{layer}", "cross_attn", "hook_cross_attn_out"))
    for block, part, out in blocks:
        bias = model.get_submodule(f"{block}.{part}").b_O
        total = cache[f"{block}.{part}.hook_result"].sum(2) + bias
        assert difference(total, cache[f"{block}.{out}"]) < 1e-5, block


@pytest.mark.parametrize("head", range(4))
def test_removing_a_head_from_result_equals_removing_it_from_z(model, observe, head):
    def without(activation, hook):
        activation[:, :, head] = 0
        return activation

    block = "decoder.0.cross_attn"
    with torch.no_grad():
        from_z, from_result = (
            model.run_with_hooks(observe(model), fwd_hooks=[(f"{block}.{leaf}", without)])
            for leaf in ("hook_z", "hook_result")
        )
        assert difference(from_z, from_result) < 1e-5
        assert difference(from_z, model(observe(model))) > 1e-5


@pytest.mark.parametrize("block", ["encoder.0", "encoder.1", "decoder.0"])
def test_the_mlps_write_is_the_sum_of_values_weighted_by_coefficients(model, observe, block):
    names = [f"{block}.mlp.hook_pre", f"{block}.mlp.hook_post", f"{block}.hook_mlp_out"]
    names.append(f"{block}.hook_normalized_resid_mid{'_cross' if 'dec' in block else ''}")
    with torch.no_grad():
        _, cache = model.run_with_cache(observe(model), names_filter=names)
        mlp = model.get_submodule(f"{block}.mlp")
        pre, post, out, read = (cache[name] for name in names)
        assert difference(read @ mlp.W_in + mlp.b_in, pre) < 1e-5
        assert torch.equal(F.relu(pre), post)
        assert difference(post @ mlp.W_out + mlp.b_out, out) < 1e-5


@pytest.mark.parametrize("block", ["encoder.0", "encoder.1", "decoder.0"])
def test_silencing_a_neuron_equals_subtracting_its_value(model, observe, block):
    with torch.no_grad():
        _, cache = model.run_with_cache(observe(model), names_filter=f"{block}.mlp.hook_post")
        post = cache[f"{block}.mlp.hook_post"]
        neuron = int(post.mean((0, 1)).argmax())
        value = model.get_submodule(f"{block}.mlp").W_out[neuron]

        def silence(activation, hook):
            activation[..., neuron] = 0

        silenced = model.run_with_hooks(
            observe(model), fwd_hooks=[(f"{block}.mlp.hook_post", silence)]
        )
        subtracted = model.run_with_hooks(
            observe(model),
            fwd_hooks=[(f"{block}.hook_mlp_out", lambda a, hook: a - post[..., [neuron]] * value)],
        )
        assert difference(silenced, subtracted) < 1e-5
        assert difference(silenced, model(observe(model))) > 1e-5


def test_a_frozen_scale_makes_layernorm_linear(model):
    ln = model.encoder[0].ln1
    generator = torch.Generator().manual_seed(6)
    a, b = (torch.randn(2, 7, 32, generator=generator) for _ in range(2))
    freeze = lambda activation, hook: torch.full_like(activation, 1.7)
    with torch.no_grad():
        curved = ln(a + b) - ln(a) - ln(b) + ln(torch.zeros_like(a))
        handle = ln.hook_scale.add_hook(freeze)
        straight = ln(a + b) - ln(a) - ln(b) + ln(torch.zeros_like(a))
        ln.hook_scale.remove(handle)
    assert float(curved.abs().max()) > 0.1
    assert float(straight.abs().max()) < 1e-5


def test_a_norms_internals_are_what_their_names_say(model):
    ln = model.ln_final
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(7))
    seen = {}
    handles = [
        (point, point.add_hook(lambda a, hook: seen.update({hook.name: a})))
        for point in (ln.hook_scale, ln.hook_normalized)
    ]
    with torch.no_grad():
        out = ln(x)
    for point, handle in handles:
        point.remove(handle)
    scale = (x.var(-1, correction=0, keepdim=True) + ln.eps).sqrt()
    normalized = seen["ln_final.hook_normalized"]
    assert difference(seen["ln_final.hook_scale"], scale) < 1e-6
    assert difference(normalized, (x - x.mean(-1, keepdim=True)) / scale) < 1e-5
    assert difference(normalized * ln.weight + ln.bias, out) < 1e-6


# ── fused attention ──────────────────────────────────────────────────────────────────────────


@every_architecture
def test_fused_attention_agrees_and_steps_aside_where_somebody_looks(
    make_model, observe, demonstration, changes, monkeypatch
):
    model = copy.deepcopy(make_model(**changes))
    padded = torch.zeros(3, 5, dtype=torch.bool)
    padded[0, 3:] = True
    arguments = {"action": demonstration(model), "action_is_pad": padded}
    calls = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    blocks = 4 + 2 * model.config.n_decoder_layers
    with torch.no_grad():
        explicit = model(observe(model), **arguments)
        assert not calls
        model.fused_attention = True
        assert model.fused_attention
        assert difference(model(observe(model), **arguments), explicit) < 1e-5
        assert len(calls) == blocks
        for leaf in ("hook_pattern", "hook_attn_scores"):
            calls.clear()
            zeroed = model.run_with_hooks(
                observe(model),
                **arguments,
                fwd_hooks=[(f"encoder.1.attn.{leaf}", lambda a, hook: a * 0)],
            )
            assert len(calls) == blocks - 1
            assert difference(zeroed, explicit) > 1e-5
        calls.clear()
        model.run_with_cache(observe(model), **arguments)
        assert not calls


# ── number formats ───────────────────────────────────────────────────────────────────────────


@every_architecture
def test_float64_works_throughout_and_agrees(make_model, observe, demonstration, changes):
    model = make_model(**changes)
    exact = copy.deepcopy(model).double()
    action = demonstration(model)
    with torch.no_grad():
        plain = model(observe(model), action=action)
        actions, cache = exact.run_with_cache(observe(model), action=action, names_filter="*")
    assert {value.dtype for value in cache.values()} == {torch.float64}
    assert difference(actions, plain.double()) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_of_16_bits_runs_and_stays_near(model, observe, demonstration, dtype):
    coarse = copy.deepcopy(model).to(dtype)
    with torch.no_grad():
        plain = model(observe(model))
        actions, cache = coarse.run_with_cache(
            observe(model), action=demonstration(model), names_filter="*"
        )
        zeros = coarse(observe(model))
    assert {cache["hook_actions"].dtype, actions.dtype} == {torch.float32}
    assert {v.dtype for name, v in cache.items() if name != "hook_actions"} == {dtype}
    assert actions.isfinite().all()
    assert difference(zeros, plain) < 0.1 * float(plain.abs().max())


def test_degrees_are_not_rounded_to_16_bits(own_model, observe):
    """Joints at 1000 units, where neighbours in bfloat16 lie 4 apart, with a deviation of one."""
    coarse = own_model.to(torch.bfloat16)
    index = coarse.normalizer.features.index
    for key, part, value in (
        ("observation.state", "shift", 1000.0), ("observation.state", "scale", 1.0),
        ("action", "shift", 1000.0), ("action", "unscale", 1.0),
    ):  # fmt: skip
        coarse.normalizer.get_buffer(f"{part}_{index(key)}").fill_(value)
    observation = observe(coarse)
    shifted = observation | {"observation.state": observation["observation.state"] + 1000}
    with torch.no_grad():
        state = coarse.prepare(shifted).state
        actions, cache = coarse.run_with_cache(shifted)
        mu, _ = coarse.posterior(coarse.prepare(shifted), actions)
    assert difference(state.float(), observation["observation.state"]) < 0.02
    assert difference(actions - 1000, cache["hook_actions_normalized"].float()) < 1e-3
    assert mu.dtype is torch.bfloat16


def test_statistics_follow_over_dtypes_but_never_below_float32(own_model):
    kinds = lambda: {buffer.dtype for buffer in own_model.normalizer.buffers()}
    exact = [buffer.clone() for buffer in own_model.normalizer.buffers()]
    own_model.half()
    assert kinds() == {torch.float32}
    own_model.double()
    assert kinds() == {torch.float64}
    assert all(map(torch.equal, own_model.normalizer.float().buffers(), exact))


# ── observations ─────────────────────────────────────────────────────────────────────────────


def test_bytes_and_floats_give_the_same_bits(model, observe):
    observation = observe(model)
    floats = {k: v / 255 if v.dtype == torch.uint8 else v for k, v in observation.items()}
    with torch.no_grad():
        assert torch.equal(model(observation), model(floats))


def test_a_single_observation_is_a_batch_of_one(model, observe):
    observation = observe(model, rows=1)
    with torch.no_grad():
        single = model({key: value[0] for key, value in observation.items()})
        assert single.shape == (1, 5, 3)
        assert torch.equal(single, model(observation))


def test_numpy_arrays_scenes_and_foreign_keys_are_welcome(model, observe):
    from actlens.scene import Scene

    observation = observe(model, rows=1)
    single = {key: value[0] for key, value in observation.items()}
    with torch.no_grad():
        actions = model(observation)
        arrays = {key: value.numpy() for key, value in single.items()}
        assert torch.equal(model(arrays), actions)
        assert torch.equal(model(Scene(single)), actions)
        assert torch.equal(model(observation | {"task": ["pick"], "index": torch.ones(9)}), actions)


TOP, STATE = "observation.images.top", "observation.state"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda o: o.pop(TOP), rf"no '{TOP}', which this policy needs; it has \['obs.*state'\]"),
        (lambda o: o.pop(STATE), f"no '{STATE}'"),
        (
            lambda o: o.update({TOP: o[TOP].movedim(1, -1)}),
            r"top has shape \(3, 32, 64, 3\); .* \(3, 32, 64\) or .* permute them to channel first",
        ),
        (lambda o: o.update({TOP: o[TOP][0].movedim(0, -1)}), "permute them to channel first"),
        (lambda o: o.update({TOP: o[TOP][..., :32]}), r"\(3, 3, 32, 32\); this policy needs"),
        (lambda o: o.update({STATE: o[STATE][:, :5]}), r"state has shape \(3, 5\); .* \(6,\) or"),
        (lambda o: o.update({STATE: torch.tensor(1.0)}), r"state has shape \(\)"),
        (lambda o: o.update({TOP: o[TOP].float()}), "must lie in 0..1, these span 0..255"),
        (lambda o: o.update({TOP: o[TOP] / 255 - 0.5}), "must lie in 0..1, these span -0.5"),
        (lambda o: o.update({TOP: o[TOP] * torch.nan}), "must lie in 0..1, these span nan"),
        (lambda o: o.update({TOP: o[TOP].int()}), "holds torch.int32; pass uint8"),
        (lambda o: o[STATE].fill_(torch.nan), "state holds NaN or infinite values"),
        (lambda o: o[STATE].fill_(torch.inf), "state holds NaN or infinite values"),
        (lambda o: o.update({k: v[:0] for k, v in o.items()}), "top holds an empty batch"),
        (lambda o: o.update({STATE: o[STATE][:2]}), r"different batch sizes: .*top': 3.*state': 2"),
        (lambda o: o.update({STATE: o[STATE][0]}), "different batch sizes"),
    ],
)
def test_observations_that_do_not_fit_are_refused(model, observe, spoil, message):
    observation = observe(model)
    spoil(observation)
    with pytest.raises(SceneError, match=message):
        model(observation)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent": torch.zeros(9)}, r"latent has shape \(9,\); it must be \(3, 9\)"),
        ({"latent": torch.zeros(1, 9)}, r"it must be \(3, 9\)"),
        ({"action": torch.zeros(3, 5, 6)}, r"action has shape \(3, 5, 6\); it must be \(3, 5, 3\)"),
        ({"action": torch.zeros(5, 3)}, r"action has shape \(1, 5, 3\)"),
        (
            {"action": torch.zeros(3, 5, 3), "action_is_pad": torch.zeros(3, 4).bool()},
            r"action_is_pad has shape \(3, 4\); it must be \(3, 5\)",
        ),
        ({"action": torch.zeros(3, 5, 3), "latent": torch.zeros(3, 9)}, "either a latent or"),
    ],
)
def test_latents_and_actions_that_do_not_fit_are_refused(model, observe, arguments, message):
    with pytest.raises(SceneError, match=message):
        model(observe(model), **arguments)


def test_the_posteriors_mean_may_be_given_as_the_latent(model, observe, demonstration):
    observation, action = observe(model), demonstration(model)
    with torch.no_grad():
        mu, log_var = model.posterior(model.prepare(observation), action)
        assert mu.shape == log_var.shape == (3, 9)
        assert torch.equal(model(observation, latent=mu), model(observation, action=action))
        assert not torch.equal(model(observation, latent=mu), model(observation))


def test_a_policy_without_a_cvae_has_no_posterior(make_model, observe):
    model = make_model(use_vae=False)
    with pytest.raises(SceneError, match="trained without a CVAE"):
        model(observe(model), action=torch.zeros(3, 5, 3))


# ── control steps ────────────────────────────────────────────────────────────────────────────


def test_hooks_around_a_rollout_fire_at_inference_steps_and_know_both_clocks(make_model, observe):
    model = make_model(n_action_steps=2)
    model.reset()
    seen = []
    hooks = [("hook_actions", lambda a, hook: seen.append(copy.copy(hook.clock)))]
    with model.hooks(fwd_hooks=hooks):
        for step in range(5):
            model.select_action(observe(model, rows=1, seed=step))
    assert [(c.control_step, c.inference_step) for c in seen] == [(0, 0), (2, 1), (4, 2)]
    model.reset()
