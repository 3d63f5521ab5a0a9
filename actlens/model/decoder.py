"""The transformer decoder over the queries of the action chunk, and one block of it."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from actlens.config import ACTConfig
from actlens.hooks import HookPoint
from actlens.model.attention import Attention
from actlens.model.mlp import MLP
from actlens.model.token_major import LayerNorm

Queries = Float[Tensor, "batch query d_model"]


class DecoderBlock(nn.Module):
    """Self-attention among the queries, cross-attention to the tokens, MLP.

    `hook_normalized_resid_mid_cross`, alias `hook_action_vector`, is what the MLP reads: the action
    vector after cross-attention. In the first block the stream starts at zero, so self-attention
    adds values of a zero vector: its write is one constant of the weights, for every query and
    scene (under pre-norm the values are those of the norm's bias: a constant as well).
    """

    def __init__(self, config: ACTConfig):
        super().__init__()
        stream = "batch query d_model"
        self.pre_norm = config.pre_norm
        self.dropout = config.dropout
        sizes = (config.d_model, config.n_heads, config.dropout)
        self.hook_resid_pre = HookPoint(stream)
        if config.pre_norm:
            self.ln1 = LayerNorm(config.d_model, "query")
            self.hook_normalized_resid_pre = HookPoint(stream)
        self.attn = Attention(
            *sizes, query="query", key="query", pattern_axes=("query_q", "query_k")
        )
        self.hook_attn_out = HookPoint(stream)
        self.hook_resid_mid = HookPoint(stream)
        if config.pre_norm:
            self.ln2 = LayerNorm(config.d_model, "query")
        else:
            self.ln1 = LayerNorm(config.d_model, "query")
        self.hook_normalized_resid_mid = HookPoint(stream)
        self.cross_attn = Attention(
            *sizes, query="query", key="token", pattern_axes=("query", "token")
        )
        self.hook_cross_attn_out = HookPoint(stream)
        self.hook_resid_mid_cross = HookPoint(stream)
        if config.pre_norm:
            self.ln3 = LayerNorm(config.d_model, "query")
        else:
            self.ln2 = LayerNorm(config.d_model, "query")
        self.hook_normalized_resid_mid_cross = HookPoint(stream)
        self.hook_action_vector = self.hook_normalized_resid_mid_cross
        self.mlp = MLP(config, "query")
        self.hook_mlp_out = HookPoint(stream)
        self.hook_resid_post = HookPoint(stream)
        if not config.pre_norm:
            self.ln3 = LayerNorm(config.d_model, "query")
            self.hook_normalized_resid_post = HookPoint(stream)

    def forward(
        self,
        x: Queries,
        memory: Float[Tensor, "batch token d_model"],
        query_pos: Float[Tensor, "query d_model"],
        pos: Float[Tensor, "token d_model"],
    ) -> Queries:
        """The stream after this block."""
        # Under pre-norm, ln1/ln2/ln3 precede their sublayer; under post-norm they follow it.
        norms = (self.ln2, self.ln3) if self.pre_norm else (self.ln1, self.ln2)
        x = self.hook_resid_pre(x)
        read = self.hook_normalized_resid_pre(self.ln1(x)) if self.pre_norm else x
        q = read + query_pos
        x = self.hook_resid_mid(x + self.hook_attn_out(self._drop(self.attn(q, q, read))))
        read = self.hook_normalized_resid_mid(norms[0](x))
        skip = x if self.pre_norm else read
        cross = self.cross_attn(read + query_pos, memory + pos, memory)
        x = self.hook_resid_mid_cross(skip + self.hook_cross_attn_out(self._drop(cross)))
        read = self.hook_normalized_resid_mid_cross(norms[1](x))
        skip = x if self.pre_norm else read
        x = self.hook_resid_post(skip + self.hook_mlp_out(self._drop(self.mlp(read))))
        return x if self.pre_norm else self.hook_normalized_resid_post(self.ln3(x))

    def _drop(self, x: Queries) -> Queries:
        return F.dropout(x, self.dropout, self.training)


class Decoder(nn.Module):
    """Blocks by number (`decoder.0`, …) over learned query positions; starts from zeros."""

    def __init__(self, config: ACTConfig):
        super().__init__()
        self.n_layers = config.n_decoder_layers
        self.query_pos = nn.Embedding(config.chunk, config.d_model)
        for layer in range(config.n_decoder_layers):
            self.add_module(str(layer), DecoderBlock(config))

    def __getitem__(self, layer: int) -> DecoderBlock:
        block = self.get_submodule(str(range(self.n_layers)[layer]))
        assert isinstance(block, DecoderBlock)
        return block

    def forward(
        self,
        memory: Float[Tensor, "batch token d_model"],
        pos: Float[Tensor, "token d_model"],
    ) -> Queries:
        """The stream after the last block, before the final norm."""
        query_pos = self.query_pos.weight
        x = memory.new_zeros(len(query_pos), memory.shape[0], memory.shape[2]).transpose(0, 1)
        for layer in range(self.n_layers):
            x = self[layer](x, memory, query_pos, pos)
        return x
