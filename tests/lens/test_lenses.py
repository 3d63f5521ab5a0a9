"""Lenses against hooks written by hand, the policy itself, and a relay whose answer is known."""

import pytest
import torch
import torch.nn.functional as F

from actlens.errors import InterventionError, SceneError
from actlens.interventions import Constant, Edit, Intervention, run, run_scene
from actlens.lens import (
    Lens,
    Part,
    Place,
    Sublayer,
    Variant,
    decoded,
    encoder_lens,
    head_lens,
    head_lenses,
    lens_hooks,
    policy_itself,
    raw_lenses,
    renorm_lenses,
    stream_lens,
    token_groups,
    token_lens,
    tuned_stream_lens,
)
from actlens.planted.relay import relay_pairs, relay_policy
from actlens.scene import stack
from actlens.sites import Site


def by_hand(model, scenes, hooks):
    """A whole forward under hooks, in dataset units."""
    with torch.no_grad():
        return model.run_with_hooks(stack(scenes), fwd_hooks=hooks)


def scaled(x):
    return 0.5 * x + 0.1


def every_lens(model):
    tokens = (0, model.config.n_tokens - 1)
    return [
        *raw_lenses(model),
        *renorm_lenses(model),
        *head_lenses(model),
        token_lens(model, 0, tokens, "two", early=True),
        token_lens(model, 0, tokens, "two", early=False, through=scaled),
        tuned_stream_lens(model, 0, Sublayer.CROSS, scaled),
    ]


def test_the_last_lenses_are_the_policy_bit_for_bit(policy, scenes_of):
    scenes = scenes_of(policy)
    last = policy.config.n_decoder_layers - 1
    found = decoded(
        policy, scenes, [policy_itself(policy), stream_lens(policy, last, Sublayer.MLP)]
    )
    own = by_hand(policy, scenes, [])
    assert torch.equal(found[0], own)
    assert torch.equal(found[1], own)


def test_every_lens_has_the_bits_of_a_hooked_forward(policy, scenes_of):
    scenes = scenes_of(policy)
    lenses = every_lens(policy)
    assert len({lens.name for lens in lenses}) == len(lenses)
    own = by_hand(policy, scenes, [])
    for lens, chunks in zip(lenses, decoded(policy, scenes, lenses), strict=True):
        assert torch.equal(chunks, by_hand(policy, scenes, lens_hooks(policy, lens))), lens.name
        is_policy = torch.equal(chunks, own)
        assert is_policy == (lens.place.name in {f"encoder {policy.config.n_encoder_layers}",
                             f"MLP {policy.config.n_decoder_layers - 1}"}), lens.name  # fmt: skip


def test_an_encoder_lens_is_the_stream_in_the_place_of_the_memory(policy, scenes_of):
    scenes, held = scenes_of(policy), {}

    def keep(x, hook):
        held["stream"] = x

    def put(x, hook):
        stream = held["stream"]
        return policy.encoder.ln_final(stream) if policy.config.pre_norm else stream

    hooks = [("encoder.0.hook_resid_pre", keep), ("encoder.hook_out", put)]
    (found,) = decoded(policy, scenes, [encoder_lens(policy, 0)])
    assert torch.equal(found, by_hand(policy, scenes, hooks))


def test_renorm_is_the_encoders_last_norm(small, scenes_of):
    policy = small("act")
    scenes, held = scenes_of(policy), {}
    norm = policy.encoder[-1].ln2

    def keep(x, hook):
        held["stream"] = x

    def put(x, hook):
        x = held["stream"]
        normalized = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True)
                                                       + norm.eps).sqrt()  # fmt: skip
        return normalized * norm.weight + norm.bias

    (found,) = decoded(policy, scenes, renorm_lenses(policy)[1:])
    by_formula = by_hand(policy, scenes, [("encoder.1.hook_resid_pre", keep),
                                          ("encoder.hook_out", put)])  # fmt: skip
    assert torch.allclose(found, by_formula, atol=1e-5)
    assert renorm_lenses(small("pre_norm_three_decoder_layers")) == ()


def test_a_stream_lens_is_the_remaining_norms_and_the_head(small, scenes_of):
    """Written out for post-norm: everything that would still be written is left away."""
    policy = small("two_decoder_layers")
    scenes = scenes_of(policy)
    with torch.no_grad():
        _, cache = policy.run_with_cache(stack(scenes))
        x = cache["decoder.0.hook_resid_mid_cross"]
        first, second = policy.decoder[0], policy.decoder[1]
        for norm in (first.ln2, first.ln3, second.ln1, second.ln2, second.ln3, policy.ln_final):
            x = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        expected = policy.normalizer.unnormalize("action", policy.action_head(x))
    (found,) = decoded(policy, scenes, [stream_lens(policy, 0, Sublayer.CROSS)])
    assert torch.allclose(found, expected, atol=1e-5)


def test_before_the_first_cross_attention_all_scenes_are_one(policy, scenes_of):
    scenes = scenes_of(policy, episodes=9)
    lenses = [stream_lens(policy, 0, one) for one in (Sublayer.START, Sublayer.SELF)]
    blind = decoded(policy, scenes, lenses)
    assert torch.equal(blind, blind[:, :1].expand_as(blind))
    seen = decoded(policy, scenes, [stream_lens(policy, 0, Sublayer.CROSS)])[0]
    assert (seen - seen[:1]).abs().amax((1, 2))[1:].min() > 1e-4


def test_heads_alone_are_heads_whose_others_mix_nothing_or_their_mean(small, scenes_of):
    policy = small("act")
    scenes = scenes_of(policy)
    site = "decoder.0.cross_attn.hook_z"
    mean = policy.run_with_cache(stack(scenes))[1][site].mean(0)

    def silent(z, hook):
        kept = torch.zeros_like(z)
        kept[:, :, 2] = z[:, :, 2]
        return kept

    def average(z, hook):
        kept = mean.expand_as(z).clone()
        kept[:, :, 2] = z[:, :, 2]
        return kept

    lenses = [head_lens(policy, 0, 2), head_lens(policy, 0, 2, mean)]
    found = decoded(policy, scenes, lenses)
    assert torch.equal(found[0], by_hand(policy, scenes, [(site, silent)]))
    assert torch.equal(found[1], by_hand(policy, scenes, [(site, average)]))


def test_token_lenses_split_an_encoder_lens(policy, scenes_of):
    scenes, every = scenes_of(policy), range(policy.config.n_tokens)
    whole, all_early, none_final = decoded(
        policy,
        scenes,
        [
            encoder_lens(policy, 0),
            token_lens(policy, 0, every, "all", early=True),
            token_lens(policy, 0, [], "none", early=False),
        ],
    )
    assert torch.equal(all_early, whole)
    assert torch.equal(none_final, whole)
    halves = [
        token_lens(policy, 0, [0], "latent", early=True),
        token_lens(policy, 0, list(every)[1:], "others", early=False),
    ]
    assert torch.equal(*decoded(policy, scenes, halves))


def test_groups_name_every_vector_token_every_camera_and_all_of_them(small):
    groups = token_groups(small("act").tokens)
    assert list(groups) == ["latent", "state", "top", "side", "all cameras"]
    assert groups["all cameras"] == (*groups["top"], *groups["side"])
    assert list(token_groups(small("no_cameras").tokens)) == ["latent", "state", "env_state"]


@pytest.mark.parametrize("name", ["act", "pre_norm_three_decoder_layers", "two_decoder_layers"])
def test_the_engine_runs_the_same_interventions(name, small, scenes_of):
    policy = small(name)
    scene = scenes_of(policy)[1]
    base = run_scene(policy, scene)
    for lens in every_lens(policy):
        effects = run(policy, base, [lens.intervention], lens.donors_of(base))
        (chunk,) = decoded(policy, [scene], [lens])[0]
        made = policy.normalizer.unnormalize("action", effects.actions[0])
        assert torch.allclose(made, chunk, atol=2e-5), lens.name


def test_interventions_of_lenses_save(small):
    policy = small("act")
    lens = encoder_lens(policy, 1)
    assert Intervention.from_json(lens.intervention.to_json()) == lens.intervention


def test_hooks_that_are_attached_act_in_lenses_as_in_forwards(policy, scenes_of):
    scenes, lenses = scenes_of(policy), every_lens(policy)
    mine = [
        ("embed.hook_tokens", lambda x, hook: 1.3 * x),
        ("encoder.hook_out", lambda x, hook: x + 0.2),
        ("decoder.0.hook_mlp_out", lambda x, hook: x - 0.3),
    ]
    with policy.hooks(fwd_hooks=mine):
        inside = decoded(policy, scenes, lenses)
    assert not torch.equal(inside[0], decoded(policy, scenes, lenses)[0])
    for lens, chunks in zip(lenses, inside, strict=True):
        hooks = [*mine, *lens_hooks(policy, lens)]
        assert torch.equal(chunks, by_hand(policy, scenes, hooks)), lens.name


def test_a_rollout_acts_on_what_a_lens_shows(small, scenes_of):
    policy = small("act")
    scene, lens = scenes_of(policy)[0], encoder_lens(policy, 0)
    (chunk,) = decoded(policy, [scene], [lens])[0]
    policy.reset()
    with policy.hooks(fwd_hooks=lens_hooks(policy, lens)):
        acted = policy.select_action(stack([scene]))
    policy.reset()
    assert torch.equal(acted[0], chunk[0])


def test_a_relay_is_read_from_the_layer_behind_it():
    """The state reaches the token that the decoder looks at in block 0, and not before."""
    policy = relay_policy()
    for pair in relay_pairs(3):
        scenes = [pair.clean, pair.corrupt]  # they differ in the state alone
        chunks = decoded(policy, scenes, [encoder_lens(policy, layer) for layer in range(4)])
        before, behind, own = chunks[0], chunks[1:], chunks[-1]
        assert (before[0] - before[1]).abs().max() < 1e-9
        assert (own[0] - own[1]).abs().max() > 0.1
        assert torch.allclose(behind, own.expand_as(behind), atol=1e-3)


def test_batches_do_not_matter(small, scenes_of):
    policy = small("act", torch.float64)
    scenes, lenses = scenes_of(policy, episodes=11), raw_lenses(policy)
    told = []
    together = decoded(policy, scenes, lenses, progress=told.append)
    alone = torch.cat([decoded(policy, [scene], lenses) for scene in scenes], 1)
    assert torch.allclose(together, alone, atol=1e-9)
    assert told == [8, 3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: encoder_lens(m, 3), r"no encoder layer 3: this policy has 0\.\.2"),
        (lambda m: stream_lens(m, 1, Sublayer.MLP), r"no decoder layer 1"),
        (lambda m: head_lens(m, 0, 4), r"no head 4: this policy has 0\.\.3"),
        (lambda m: token_lens(m, 0, [], "nothing", early=True), "'nothing' leaves no token"),
    ],
    ids=["encoder", "decoder", "head", "tokens"],
)
def test_what_is_not_there_is_an_error_that_names_it(make, message, small):
    with pytest.raises(InterventionError, match=message):
        make(small("act"))


def test_one_head_is_no_part_of_its_attention(small):
    with pytest.raises(InterventionError, match="one head"):
        head_lens(small("no_cameras"), 0, 0)
    assert head_lenses(small("no_cameras")) == ()


def test_lenses_look_behind_the_encoder_only(small, scenes_of):
    policy = small("act")
    edit = Edit(Site("encoder.0.hook_attn_out"), Constant(0.0))
    lens = Lens(Place(Part.ENCODER, 0), Variant.RAW, edits=(edit,))
    with pytest.raises(InterventionError, match=r"encoder\.0\.hook_attn_out"):
        decoded(policy, scenes_of(policy), [lens])
    with pytest.raises(SceneError, match="no scene"):
        decoded(policy, [], raw_lenses(policy))
