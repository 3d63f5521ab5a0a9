"""The size of a cache, known before the run: held against the cache that the run leaves."""

import pytest
import torch

from actlens.errors import HookNameError, HookNeverFired, SceneError
from actlens.hooks import Reader
from actlens.model.act import HookedACT

FILTERS = {
    "everything": None,
    "on demand too": lambda name: not name.startswith("vae."),
    "residual": "*hook_resid_*",
    "patterns": ["encoder.*.hook_pattern", "decoder.*.hook_pattern"],
    "one site": "decoder.0.mlp.hook_post",
}
SPECIAL = {
    "shared memory": ["encoder.*", "decoder.*"],
    "inputs": ["embed.*.hook_image", "embed.hook_latent", "embed.hook_pos"],
    "the output": ["hook_actions", "hook_actions_normalized"],
}


def measured(model, observation, names):
    with torch.no_grad():
        return model.run_with_cache(observation, names_filter=names)[1].nbytes


@pytest.mark.parametrize("names", FILTERS.values(), ids=FILTERS)
def test_it_is_the_size_of_the_cache_in_every_architecture(policy, observe, names):
    assert policy.cache_bytes(names, rows=2) == measured(policy, observe(policy, rows=2), names)


@pytest.mark.parametrize("names", SPECIAL.values(), ids=SPECIAL)
def test_it_is_the_size_of_caches_of_special_points(act, observe, names):
    assert act.cache_bytes(names, rows=3) == measured(act, observe(act, rows=3), names)


@pytest.mark.parametrize(
    ("dtype", "rows", "fused"), [(torch.float32, 3, True), (torch.bfloat16, 1, False)]
)
def test_it_follows_batch_dtype_and_fused_attention(new_model, observe, dtype, rows, fused):
    model = new_model().to(dtype)
    model.fused_attention = fused
    assert model.cache_bytes(rows=rows) == measured(model, observe(model, rows), None)


def test_an_output_that_is_kept_twice_counts_twice(make_config, observe):
    bare = HookedACT(make_config()).eval()  # no statistics: actions are the normalised ones
    observation = {
        key: value / 255 if value.dtype == torch.uint8 else value
        for key, value in observe(bare).items()
    }
    both = ["hook_actions", "hook_actions_normalized"]
    assert bare.cache_bytes(both, rows=3) == measured(bare, observation, both) == 2 * 3 * 5 * 3 * 4


def test_a_network_without_weights_will_do(make_config, new_model):
    with torch.device("meta"):
        empty = HookedACT(make_config()).eval()
    names = lambda name: "hook_image" not in name and "vae" not in name
    assert empty.cache_bytes(names) == new_model().cache_bytes(names)


def test_hooks_are_left_aside_and_the_model_as_it_was(model, observe):
    seen = []
    model.add_hook("hook_actions", Reader(lambda x, hook: seen.append(x)))
    model.add_perma_hook("encoder.hook_out", lambda x, hook: seen.append(x) or x + 1)
    with torch.no_grad():
        before = model(observe(model))
    runs, receipts, seen_before = model.forward_count, model.receipts, len(seen)
    model.cache_bytes()
    assert (model.forward_count, model.receipts, len(seen)) == (runs, receipts, seen_before)
    assert not model.is_caching
    with torch.no_grad():
        assert torch.equal(model(observe(model)), before)
    assert len(seen) == 2 * seen_before
    model.reset_hooks(including_permanent=True)


def test_what_a_run_would_refuse_is_refused(model):
    with pytest.raises(HookNameError, match="Did you mean"):
        model.cache_bytes("encoder.0.hook_resid_pree")
    with pytest.raises(HookNeverFired, match=r"vae\.hook_mu"):
        model.cache_bytes(["hook_actions", "vae.hook_mu"])
    with pytest.raises(SceneError, match="at least one observation, not 0"):
        model.cache_bytes(rows=0)
    assert model.list_hooks() == {}
