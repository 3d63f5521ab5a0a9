"""Who is looked at? Raw attention, attention by the norm of what it brings, and rollout."""

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from actlens.interventions import SceneRun
from actlens.model.act import HookedACT


def cross_attentions(model: HookedACT) -> tuple[str, ...]:
    """Every decoder block's attention to the tokens, by name."""
    return tuple(f"decoder.{block}.cross_attn" for block in range(model.config.n_decoder_layers))


def attention(model: HookedACT, run: SceneRun) -> Float[Tensor, "layer head query token"]:
    """The patterns of cross-attention."""
    return torch.stack([run[f"{name}.hook_pattern"][0] for name in cross_attentions(model)])


def logit_spread(model: HookedACT, run: SceneRun) -> Float[Tensor, "layer head query"]:
    """The standard deviation over tokens of the logits of cross-attention."""
    scores = [run[f"{name}.hook_attn_scores"][0] for name in cross_attentions(model)]
    return torch.stack(scores).std(-1)


@torch.no_grad()
def norm_based(model: HookedACT, run: SceneRun) -> Float[Tensor, "layer query token"]:
    """|sum over heads of a_h W_O^h v_h(m_j)|, as shares of a query's sum (Kobayashi et al. 2020).

    A token that is looked at and has nothing to bring weighs little. Values hold their bias, as in
    the paper, and no position, which ACT adds to queries and keys alone.
    """
    layers = []
    for block, name in enumerate(cross_attentions(model)):
        pattern, values = run[f"{name}.hook_pattern"][0], run[f"{name}.hook_v"][0]
        brought = einsum(
            values, model.decoder[block].cross_attn.W_O, "token h e, h e d -> token h d"
        )
        # |sum of vectors|² from their inner products: vectors by query and token would not fit.
        inner = einsum(brought, brought, "token h d, token g d -> token h g")
        square = einsum(pattern, pattern, inner, "h q token, g q token, token h g -> q token")
        norm = square.clamp_min(0).sqrt()
        total = norm.sum(-1, keepdim=True)
        layers.append(norm / torch.where(total > 0, total, 1))
    return torch.stack(layers)


def encoder_rollout(patterns: Float[Tensor, "layer token token"]) -> Float[Tensor, "token token"]:
    """Attention rollout (Abnar and Zuidema 2020): the product of (A + I) / 2 over layers.

    Args:
        patterns: each layer's, averaged over heads.
    """
    n = patterns.shape[-1]
    mixed = torch.eye(n, dtype=patterns.dtype, device=patterns.device)
    for pattern in patterns:
        mixed = (pattern @ mixed + mixed) / 2
    return mixed


def rollout(model: HookedACT, run: SceneRun) -> Float[Tensor, "query input_token"]:
    """Rollout through the encoder and on through the decoder: from queries to input tokens.

    The decoder's stream starts as a constant, so its first block passes on what cross-attention
    brings alone; later blocks mix it with what was there, half and half as in the encoder. Rows
    sum to one. Rollout assumes that heads and residuals weigh alike; it knows no values.
    """
    mean = lambda name: run[f"{name}.hook_pattern"][0].mean(0)
    blocks = range(model.config.n_encoder_layers)
    memory = encoder_rollout(torch.stack([mean(f"encoder.{block}.attn") for block in blocks]))
    stream = None
    for block, name in enumerate(cross_attentions(model)):
        brought = mean(name) @ memory
        if stream is None:
            stream = brought
            continue
        stream = (mean(f"decoder.{block}.attn") @ stream + stream) / 2
        stream = (brought + stream) / 2
    assert stream is not None
    return stream
