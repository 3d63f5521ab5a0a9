"""Multi-head attention written out, so that every step has a hook point."""

import math

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from actlens.hooks import HookPoint
from actlens.model.token_major import Linear


class Attention(nn.Module):
    """Multi-head attention: `nn.MultiheadAttention`'s parameters, TransformerLens' hook names.

    Args:
        query, key: what the query and key axes hold (`"token"`, `"query"`, …).
        pattern_axes: names of the two axes of scores and pattern, which must differ.
        fused: compute with `scaled_dot_product_attention` while nobody watches scores or pattern;
            equal to the explicit path to float rounding. May be switched at any time.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        dropout: float,
        *,
        query: str,
        key: str,
        pattern_axes: tuple[str, str],
    ):
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.fused = False
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = Linear(d_model, d_model)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)
        self.hook_q = HookPoint(f"batch {query} head d_head")
        self.hook_k = HookPoint(f"batch {key} head d_head")
        self.hook_v = HookPoint(f"batch {key} head d_head")
        self.hook_attn_scores = HookPoint(f"batch head {' '.join(pattern_axes)}")
        self.hook_pattern = HookPoint(f"batch head {' '.join(pattern_axes)}")
        self.hook_z = HookPoint(f"batch {query} head d_head")
        self.hook_result = HookPoint(f"batch {query} head d_model", on_demand=True)

    def forward(
        self,
        query: Float[Tensor, "batch query d_model"],
        key: Float[Tensor, "batch key d_model"],
        value: Float[Tensor, "batch key d_model"],
        key_padding_mask: Bool[Tensor, "batch key"] | None = None,
    ) -> Float[Tensor, "batch query d_model"]:
        """The attention's write. `key_padding_mask` is True where a key must not be attended to."""
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        q, k, v = (
            hook(self._split(x, w, b))
            for hook, x, w, b in zip(
                (self.hook_q, self.hook_k, self.hook_v),
                (query, key, value),
                weights,
                biases,
                strict=True,
            )
        )
        watched = self.hook_attn_scores.is_watched or self.hook_pattern.is_watched
        if self.fused and not watched:
            z = self._fused(q, k, v, key_padding_mask)
        else:
            z = self._explicit(q, k, v, key_padding_mask)
        z = self.hook_z(z)
        out = self._write(z)
        if not self.hook_result.is_watched:
            return out
        per_head = einsum(z, self.W_O, "b q h e, h e d -> b q h d")
        hooked = self.hook_result(per_head)
        return out if hooked is per_head else hooked.sum(2) + self.out_proj.bias

    def _split(
        self, x: Float[Tensor, "batch pos d_model"], weight: Tensor, bias: Tensor
    ) -> Float[Tensor, "batch pos head d_head"]:
        projected = F.linear(x.transpose(0, 1), weight, bias)
        return rearrange(projected, "t b (h e) -> b t h e", h=self.n_heads)

    def _explicit(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """The steps of torch's own `multi_head_attention_forward`, in its order and layout."""
        flat_q, flat_k, flat_v = (rearrange(x, "b t h e -> (b h) t e") for x in (q, k, v))
        scaled = flat_q * math.sqrt(1.0 / q.shape[-1])
        if mask is None:
            scores = torch.bmm(scaled, flat_k.transpose(-2, -1))
        else:
            scores = torch.baddbmm(self._additive(mask, q), scaled, flat_k.transpose(-2, -1))
        split = lambda x: rearrange(x, "(b h) q k -> b h q k", h=self.n_heads)
        scores = self.hook_attn_scores(split(scores))
        pattern = self.hook_pattern(scores.softmax(-1))
        if self.training and self.dropout:
            pattern = F.dropout(pattern, self.dropout)
        z = torch.bmm(rearrange(pattern, "b h q k -> (b h) q k"), flat_v)
        return rearrange(z, "(b h) q e -> b q h e", h=self.n_heads)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        heads_first = (rearrange(x, "b t h e -> b h t e") for x in (q, k, v))
        z = F.scaled_dot_product_attention(
            *heads_first,
            attn_mask=None if mask is None else rearrange(~mask, "b k -> b 1 1 k"),
            dropout_p=self.dropout if self.training else 0.0,
        )
        return rearrange(z, "b h q e -> b q h e")

    def _additive(self, mask: Tensor, q: Tensor) -> Tensor:
        blocked = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, float("-inf"))
        return blocked.repeat_interleave(self.n_heads, dim=0)[:, None]

    def _write(self, z: Float[Tensor, "batch query head d_head"]) -> Tensor:
        batch = z.shape[0]
        rows = rearrange(z, "b q h e -> (q b) (h e)")
        written = F.linear(rows, self.out_proj.weight, self.out_proj.bias)
        return rearrange(written, "(q b) d -> b q d", b=batch)

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        """Query weights in TransformerLens' shape (a view: edits reach the network)."""
        return self._per_head(self.in_proj_weight.chunk(3)[0])

    @property
    def W_K(self) -> Float[Tensor, "head d_model d_head"]:
        """Key weights in TransformerLens' shape (a view)."""
        return self._per_head(self.in_proj_weight.chunk(3)[1])

    @property
    def W_V(self) -> Float[Tensor, "head d_model d_head"]:
        """Value weights in TransformerLens' shape (a view)."""
        return self._per_head(self.in_proj_weight.chunk(3)[2])

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """Output weights in TransformerLens' shape (a view)."""
        return rearrange(self.out_proj.weight, "d (h e) -> h e d", h=self.n_heads)

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        """Query bias per head (a view)."""
        return rearrange(self.in_proj_bias.chunk(3)[0], "(h e) -> h e", h=self.n_heads)

    @property
    def b_K(self) -> Float[Tensor, "head d_head"]:
        """Key bias per head (a view); the softmax cancels its effect on the pattern."""
        return rearrange(self.in_proj_bias.chunk(3)[1], "(h e) -> h e", h=self.n_heads)

    @property
    def b_V(self) -> Float[Tensor, "head d_head"]:
        """Value bias per head (a view)."""
        return rearrange(self.in_proj_bias.chunk(3)[2], "(h e) -> h e", h=self.n_heads)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        """Output bias."""
        return self.out_proj.bias

    def _per_head(self, weight: Tensor) -> Tensor:
        return rearrange(weight, "(h e) d -> h d e", h=self.n_heads)
