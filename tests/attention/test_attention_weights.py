"""Raw attention, norm-based attention and rollout, against the network itself."""

import pytest
import torch

from actlens.attention import attention, encoder_rollout, logit_spread, norm_based, rollout
from actlens.attention.weights import cross_attentions


def test_attention_is_what_the_network_used(policy, scenes, runs):
    _, cache = policy.run_with_cache(scenes[0])
    found = attention(policy, runs[0])
    assert found.shape[0] == policy.config.n_decoder_layers
    for pattern, name in zip(found, cross_attentions(policy), strict=True):
        torch.testing.assert_close(pattern, cache[f"{name}.hook_pattern"][0])
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))


def test_the_spread_is_that_of_the_logits(policy, scenes, runs):
    name = cross_attentions(policy)[-1]
    _, cache = policy.run_with_cache(scenes[0], names_filter=f"{name}.hook_attn_scores")
    scores = cache[f"{name}.hook_attn_scores"][0]
    centred = scores - scores.mean(-1, keepdim=True)
    expected = (centred.square().sum(-1) / (scores.shape[-1] - 1)).sqrt()
    torch.testing.assert_close(logit_spread(policy, runs[0])[-1], expected)


def test_norms_are_those_of_the_vectors_that_tokens_bring(policy, runs):
    found = norm_based(policy, runs[0])
    for layer, name in enumerate(cross_attentions(policy)):
        pattern, values = runs[0][f"{name}.hook_pattern"][0], runs[0][f"{name}.hook_v"][0]
        out = policy.decoder[layer].cross_attn.W_O
        for query in (0, policy.config.chunk - 1):
            brought = torch.stack(
                [
                    sum(
                        pattern[head, query, token] * values[token, head] @ out[head]
                        for head in range(policy.config.n_heads)
                    )
                    for token in range(len(policy.tokens))
                ]
            )
            norm = brought.norm(dim=-1)
            torch.testing.assert_close(found[layer, query], norm / norm.sum())
            # They are the attention's write, but for its bias.
            written = runs[0][f"decoder.{layer}.hook_cross_attn_out"][0, query]
            bias = policy.decoder[layer].cross_attn.b_O
            torch.testing.assert_close(brought.sum(0) + bias, written)


def test_rollout_is_a_distribution_over_input_tokens(policy, runs):
    found = rollout(policy, runs[0])
    assert found.shape == (policy.config.chunk, len(policy.tokens))
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[:, 0]))


def test_rollout_of_one_decoder_block_is_its_attention_rolled_through_the_encoder(act, observe):
    from actlens.interventions import run_scene

    run = run_scene(act, observe(act, rows=1))
    mixed = torch.eye(len(act.tokens), dtype=torch.float64)
    for block in range(act.config.n_encoder_layers):
        pattern = run[f"encoder.{block}.attn.hook_pattern"][0].mean(0)
        mixed = (0.5 * pattern + 0.5 * torch.eye(len(pattern))) @ mixed
    expected = run["decoder.0.cross_attn.hook_pattern"][0].mean(0) @ mixed
    torch.testing.assert_close(rollout(act, run), expected)


def test_later_decoder_blocks_mix_what_they_are_brought_with_what_was_there(policy, runs):
    mean = lambda name: runs[0][f"{name}.hook_pattern"][0].mean(0)
    n_blocks = policy.config.n_encoder_layers
    memory = encoder_rollout(torch.stack([mean(f"encoder.{i}.attn") for i in range(n_blocks)]))
    brought = [mean(name) @ memory for name in cross_attentions(policy)]
    expected = brought[0]
    for block in range(1, policy.config.n_decoder_layers):
        among = 0.5 * mean(f"decoder.{block}.attn") + 0.5 * torch.eye(policy.config.chunk)
        expected = 0.5 * brought[block] + 0.5 * among @ expected
    torch.testing.assert_close(rollout(policy, runs[0]), expected)


def test_encoder_rollout_of_tokens_that_see_themselves_stays_where_it_is():
    eye = torch.eye(4).expand(3, 4, 4)
    torch.testing.assert_close(encoder_rollout(eye), torch.eye(4))
    relay = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0]])[None]
    torch.testing.assert_close(encoder_rollout(relay)[2], torch.tensor([0.0, 0.5, 0.5]))


def test_a_relabelling_of_tokens_relabels_rollout():
    patterns = torch.rand(3, 6, 6, dtype=torch.float64).softmax(-1)
    order = torch.randperm(6)
    moved = encoder_rollout(patterns[:, order][:, :, order])
    torch.testing.assert_close(moved, encoder_rollout(patterns)[order][:, order])


def test_tokens_that_bring_nothing_have_no_norm(own_model, observe):
    from actlens.interventions import run_scene

    attn = own_model.decoder[0].cross_attn
    with torch.no_grad():
        attn.out_proj.weight.zero_()
    found = norm_based(own_model, run_scene(own_model, observe(own_model, rows=1)))
    assert float(found.abs().max()) == pytest.approx(0)
