"""The transformer encoder over the observation's tokens, and one block of it."""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from actlens.config import ACTConfig
from actlens.hooks import HookPoint
from actlens.model.attention import Attention
from actlens.model.mlp import MLP
from actlens.model.token_major import LayerNorm

Tokens = Float[Tensor, "batch token d_model"]


class EncoderBlock(nn.Module):
    """Self-attention and MLP over the tokens, post-norm (ACT's default) or pre-norm.

    Modules are defined in the order in which they run, so hook points are listed as they fire.
    `hook_resid_*` are the raw sums. Post-norm carries the normalised sums
    (`hook_normalized_resid_mid`, `hook_normalized_resid_post`) on; pre-norm feeds
    `hook_normalized_resid_pre` to attention and `hook_normalized_resid_mid` to the MLP, and carries
    the sums. Positions are added to queries and keys only.
    """

    def __init__(self, config: ACTConfig, position: str = "token"):
        super().__init__()
        stream = f"batch {position} d_model"
        self.pre_norm = config.pre_norm
        self.dropout = config.dropout
        self.hook_resid_pre = HookPoint(stream)
        if config.pre_norm:
            self.ln1 = LayerNorm(config.d_model, position)
            self.hook_normalized_resid_pre = HookPoint(stream)
        self.attn = Attention(
            config.d_model,
            config.n_heads,
            config.dropout,
            query=position,
            key=position,
            pattern_axes=(f"{position}_q", f"{position}_k"),
        )
        self.hook_attn_out = HookPoint(stream)
        self.hook_resid_mid = HookPoint(stream)
        if config.pre_norm:
            self.ln2 = LayerNorm(config.d_model, position)
        else:
            self.ln1 = LayerNorm(config.d_model, position)
        self.hook_normalized_resid_mid = HookPoint(stream)
        self.mlp = MLP(config, position)
        self.hook_mlp_out = HookPoint(stream)
        self.hook_resid_post = HookPoint(stream)
        if not config.pre_norm:
            self.ln2 = LayerNorm(config.d_model, position)
            self.hook_normalized_resid_post = HookPoint(stream)

    def forward(
        self,
        x: Tokens,
        pos: Float[Tensor, "token d_model"],
        key_padding_mask: Bool[Tensor, "batch token"] | None = None,
    ) -> Tokens:
        """The stream after this block."""
        x = self.hook_resid_pre(x)
        read = self.hook_normalized_resid_pre(self.ln1(x)) if self.pre_norm else x
        q = read + pos
        x = self.hook_resid_mid(x + self._attend(q, read, key_padding_mask))
        read = self.hook_normalized_resid_mid((self.ln2 if self.pre_norm else self.ln1)(x))
        skip = x if self.pre_norm else read
        mlp_out = F.dropout(self.mlp(read), self.dropout, self.training)
        x = self.hook_resid_post(skip + self.hook_mlp_out(mlp_out))
        return x if self.pre_norm else self.hook_normalized_resid_post(self.ln2(x))

    def _attend(self, q: Tokens, value: Tokens, mask: Tensor | None) -> Tokens:
        attn_out = F.dropout(self.attn(q, q, value, mask), self.dropout, self.training)
        return self.hook_attn_out(attn_out)


class Encoder(nn.Module):
    """Blocks by number (`encoder.0`, `encoder.1`, …), and the final norm under pre-norm."""

    def __init__(self, config: ACTConfig, n_layers: int, position: str = "token"):
        super().__init__()
        self.n_layers = n_layers
        for layer in range(n_layers):
            self.add_module(str(layer), EncoderBlock(config, position))
        if config.pre_norm:
            self.ln_final = LayerNorm(config.d_model, position)
        self.hook_out = HookPoint(f"batch {position} d_model")

    def __getitem__(self, layer: int) -> EncoderBlock:
        block = self.get_submodule(str(range(self.n_layers)[layer]))
        assert isinstance(block, EncoderBlock)
        return block

    def forward(
        self,
        x: Tokens,
        pos: Float[Tensor, "token d_model"],
        key_padding_mask: Bool[Tensor, "batch token"] | None = None,
        *,
        start: int = 0,
    ) -> Tokens:
        """What the decoder attends to. `start` resumes: `x` enters block `start`."""
        for layer in range(start, self.n_layers):
            x = self[layer](x, pos, key_padding_mask)
        if "ln_final" in self._modules:
            x = self.ln_final(x)
        return self.hook_out(x)
