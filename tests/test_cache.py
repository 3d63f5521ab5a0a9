import pytest
import torch

from actlens.errors import HookNameError, SceneError


@pytest.fixture
def run(model, observe):
    with torch.no_grad():
        return model.run_with_cache(observe(model))


@pytest.fixture
def cache(run):
    return run[1]


def test_it_is_a_mapping_in_the_order_of_firing(model, cache):
    in_order = [n for n, p in model.hook_dict.items() if not p.on_demand and "vae" not in n]
    assert list(cache) == in_order
    assert len(cache) == len(in_order)
    assert "embed.hook_tokens" in cache
    assert "embed.hook_token" not in cache
    assert cache.get("nonsense") is None


@pytest.mark.parametrize(
    ("key", "name", "index"),
    [
        ("decoder.0.hook_action_vector", "decoder.0.hook_normalized_resid_mid_cross", ...),
        ("decoder.0.mlp.hook_post[5]", "decoder.0.mlp.hook_post", (..., 5)),
        ("decoder.0.mlp.hook_post[-1]", "decoder.0.mlp.hook_post", (..., -1)),
        ("decoder.0.mlp.hook_post[query=0:3, 5]", "decoder.0.mlp.hook_post", (..., slice(3), 5)),
        ("encoder.1.hook_resid_pre[top[0,1]]", "encoder.1.hook_resid_pre", (slice(None), 3)),
        ("encoder.1.hook_resid_pre[side]", "encoder.1.hook_resid_pre", (slice(None), slice(4, 7))),
        ("encoder.0.attn.hook_z[head=3]", "encoder.0.attn.hook_z", (..., 3, slice(None))),
        (
            "decoder.0.cross_attn.hook_pattern[head=1, query=0:3, state]",
            "decoder.0.cross_attn.hook_pattern",
            (slice(None), 1, slice(3), 1),
        ),
        ("hook_actions[joint=gripper]", "hook_actions", (..., 2)),
        (("pattern", 0, "cross_attn"), "decoder.0.cross_attn.hook_pattern", ...),
        (("pattern", 0, "decoder", "attn"), "decoder.0.attn.hook_pattern", ...),
        (("pattern", -1, "encoder"), "encoder.1.attn.hook_pattern", ...),
        (("hook_post", -1, "decoder"), "decoder.0.mlp.hook_post", ...),
        (("resid_mid_cross", 0), "decoder.0.hook_resid_mid_cross", ...),
        (("action_vector", 0), "decoder.0.hook_normalized_resid_mid_cross", ...),
    ],
    ids=str,
)
def test_keys_are_names_aliases_addresses_and_tuples(cache, key, name, index):
    assert torch.equal(cache[key], cache.activations[name][index])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("encoder.0.hook_resid_pree", "was not cached. Did you mean 'encoder.0.hook_resid_pre'"),
        ("encoder.0.ln1.hook_scale", "'encoder.0.ln1.hook_scale' was not cached. Add it to names"),
        ("vae.hook_mu", "'vae.hook_mu' was not cached. Add it to names_filter"),
        ("decoder.0.mlp.hook_post_grad", "incl_bwd=True"),
        ("decoder.0.mlp.hook_post[24]", "axis 'neuron' has 24 entries; 24 selects none"),
        ("decoder.0.mlp.hook_post[query=5:9]", "axis 'query' has 5 entries; 5:9 selects none"),
        ("decoder.0.mlp.hook_post[head=1]", "it has no head"),
        (("pattern", 0), "matches encoder.0.attn.hook_pattern, decoder.0.attn.hook_pattern, dec"),
        (("pattern", 0, "decoder"), "add parts of the name"),
        (("pattern", 7, "encoder"), "matches nothing that was cached"),
        (("pattern", -3, "encoder"), "matches nothing that was cached"),
        (("pattern",), "needs a short name and a layer"),
    ],
    ids=str,
)
def test_keys_that_name_nothing_are_errors(cache, key, message):
    with pytest.raises(HookNameError, match=message):
        cache[key]


def test_gradients_are_kept_under_the_name_with_grad_and_under_aliases(own_model, observe):
    class Loss(type(own_model)):
        def forward(self, observation):
            return super().forward(observation).square().sum()

    own_model.__class__ = Loss
    _, cache = own_model.run_with_cache(
        observe(own_model), names_filter="decoder.0.*", incl_bwd=True
    )
    gradient = cache["decoder.0.hook_action_vector_grad"]
    assert torch.equal(gradient, cache["decoder.0.hook_normalized_resid_mid_cross_grad"])
    assert torch.equal(cache["decoder.0.hook_action_vector_grad[query=2]"], gradient[:, 2])
    assert cache.axes("decoder.0.hook_action_vector_grad") == ("batch", "query", "d_model")
    with pytest.raises(HookNameError, match="none does at an input, or at anything computed from"):
        cache["decoder.0.hook_resid_pre_grad"]  # zeros: nothing that gradients could be sought for


def test_axes_are_named_with_and_without_a_batch(model, observe):
    with torch.no_grad():
        _, cache = model.run_with_cache(observe(model, rows=1))
    bare = cache.remove_batch_dim()
    assert cache.axes("decoder.0.attn.hook_pattern") == ("batch", "head", "query_q", "query_k")
    assert bare.axes("decoder.0.attn.hook_pattern") == ("head", "query_q", "query_k")
    assert bare.axes("embed.hook_pos") == ("token", "d_model")
    for name, value in bare.items():
        assert value.ndim == len(bare.axes(name)), name
    with pytest.raises(HookNameError, match="'nonsense' is not a hook point"):
        cache.axes("nonsense")


@pytest.mark.parametrize("how", ["while running", "afterwards"])
def test_addresses_work_without_a_batch_axis(model, observe, how):
    observation = observe(model, rows=1)
    with torch.no_grad():
        _, cache = model.run_with_cache(observation)
        if how == "afterwards":
            bare = cache.remove_batch_dim()
        else:
            _, bare = model.run_with_cache(observation, remove_batch_dim=True)
    assert not bare.has_batch_dim
    for key in ("encoder.1.hook_resid_pre[side]", "decoder.0.mlp.hook_post[query=0:3, 5]"):
        assert torch.equal(bare[key], cache[key][0])
    assert torch.equal(bare["embed.hook_pos"], cache["embed.hook_pos"])
    with pytest.raises(HookNameError, match="cached without its batch axis"):
        bare["encoder.1.hook_resid_pre[batch=0]"]
    assert torch.equal(bare.remove_batch_dim()["hook_actions"], bare["hook_actions"])


@pytest.mark.parametrize("by_keyword", [False, True])
def test_a_larger_batch_keeps_its_axis_or_raises(model, observe, cache, by_keyword):
    observation = observe(model, rows=2)
    arguments, keywords = ((), {"observation": observation}) if by_keyword else ((observation,), {})
    with pytest.raises(SceneError, match="needs a batch of one, this one has 2"):
        model.run_with_cache(*arguments, **keywords, remove_batch_dim=True)
    with pytest.raises(HookNameError, match="holds a batch of 3, not of one"):
        cache.remove_batch_dim()


def test_to_moves_everything_and_leaves_the_original(cache):
    moved = cache.to("meta")
    assert {value.device.type for value in moved.values()} == {"meta"}
    assert {value.device.type for value in cache.values()} == {"cpu"}
    assert moved.axes("embed.hook_tokens") == cache.axes("embed.hook_tokens")


def test_shared_memory_counts_once(model, observe):
    with torch.no_grad():
        names = ["encoder.0.hook_normalized_resid_post", "encoder.1.hook_resid_pre"]
        _, one = model.run_with_cache(observe(model), names_filter=names[:1])
        _, both = model.run_with_cache(observe(model), names_filter=names)
    tokens, d_model = model.config.n_tokens, model.config.d_model
    assert one.nbytes == both.nbytes == 3 * tokens * d_model * 4


def test_the_cache_does_not_follow_later_edits_of_observation_latent_or_output(model, observe):
    from dataclasses import replace

    from actlens.model.act import HookedACT

    bare = HookedACT(replace(model.config, use_vae=False)).eval()  # no statistics: inputs as given
    observation = {
        key: value / 255 if value.dtype == torch.uint8 else value
        for key, value in observe(bare).items()
    }
    latent = torch.randn(3, 9)
    with torch.no_grad():
        actions, cache = bare.run_with_cache(observation, latent=latent)
    before = {name: value.clone() for name, value in cache.items()}
    for tensor in (*observation.values(), latent, actions):
        tensor.zero_()
    assert [name for name, value in cache.items() if not torch.equal(value, before[name])] == []
