"""ACT's inference pass as torch ships its parts: `nn.MultiheadAttention`, token first, no hooks.

Parameter names are LeRobot's: its state dict loads here and, renamed, into HookedACT. There is no
CVAE encoder: at inference z = 0.
"""

import math

import torch
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d


class EncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.self_attn = nn.MultiheadAttention(config.d_model, config.n_heads)
        self.linear1 = nn.Linear(config.d_model, config.d_mlp)
        self.linear2 = nn.Linear(config.d_mlp, config.d_model)
        self.norm1 = nn.LayerNorm(config.d_model)
        self.norm2 = nn.LayerNorm(config.d_model)

    def forward(self, x, pos):
        read = self.norm1(x) if self.pre_norm else x
        x = x + self.self_attn(read + pos, read + pos, value=read)[0]
        x = x if self.pre_norm else self.norm1(x)
        read = self.norm2(x) if self.pre_norm else x
        x = x + self.linear2(torch.relu(self.linear1(read)))
        return x if self.pre_norm else self.norm2(x)


class DecoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.self_attn = nn.MultiheadAttention(config.d_model, config.n_heads)
        self.multihead_attn = nn.MultiheadAttention(config.d_model, config.n_heads)
        self.linear1 = nn.Linear(config.d_model, config.d_mlp)
        self.linear2 = nn.Linear(config.d_mlp, config.d_model)
        self.norm1 = nn.LayerNorm(config.d_model)
        self.norm2 = nn.LayerNorm(config.d_model)
        self.norm3 = nn.LayerNorm(config.d_model)

    def forward(self, x, memory, query_pos, pos):
        if self.pre_norm:
            read = self.norm1(x)
            x = x + self.self_attn(read + query_pos, read + query_pos, value=read)[0]
            read = self.norm2(x)
            x = x + self.multihead_attn(read + query_pos, memory + pos, value=memory)[0]
            return x + self.linear2(torch.relu(self.linear1(self.norm3(x))))
        x = self.norm1(x + self.self_attn(x + query_pos, x + query_pos, value=x)[0])
        x = self.norm2(x + self.multihead_attn(x + query_pos, memory + pos, value=memory)[0])
        return self.norm3(x + self.linear2(torch.relu(self.linear1(x))))


class Stack(nn.Module):
    """Layers and the norm after them (`Identity` where ACT has none)."""

    def __init__(self, layers, norm):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, x, *rest):
        for layer in self.layers:
            x = layer(x, *rest)
        return self.norm(x)


def grid_positions(rows, cols, d_model):
    """Sine positions, y half before x half, counted from 1 and stretched to 2 pi: `cell 1 d`."""
    half = d_model // 2
    frequency = 10000 ** (2 * (torch.arange(half, dtype=torch.float32) // 2) / half)
    ones = torch.ones(1, rows, cols)
    codes = []
    for axis in (1, 2):
        count = ones.cumsum(axis, dtype=torch.float32)
        last = count[:, -1:] if axis == 1 else count[:, :, -1:]
        angle = (count / (last + 1e-6) * (2 * math.pi)).unsqueeze(-1) / frequency
        codes.append(torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1).flatten(3))
    return torch.cat(codes, 3).reshape(rows * cols, 1, d_model)


class ReferenceACT(nn.Module):
    """From an `actlens.config.ACTConfig`; takes normalised images (one per camera) and state."""

    def __init__(self, config):
        super().__init__()
        d_model = config.d_model
        self.config = config
        resnet = getattr(torchvision.models, config.backbone.value)(
            weights=None, norm_layer=FrozenBatchNorm2d
        )
        self.backbone = IntermediateLayerGetter(resnet, {"layer4": "features"})
        encoder_norm = nn.LayerNorm(d_model) if config.pre_norm else nn.Identity()
        self.encoder = Stack(
            [EncoderLayer(config) for _ in range(config.n_encoder_layers)], encoder_norm
        )
        self.decoder = Stack(
            [DecoderLayer(config) for _ in range(config.n_decoder_layers)], nn.LayerNorm(d_model)
        )
        self.encoder_robot_state_input_proj = nn.Linear(config.state_dim, d_model)
        self.encoder_latent_input_proj = nn.Linear(config.latent_dim, d_model)
        self.encoder_img_feat_input_proj = nn.Conv2d(config.backbone.channels, d_model, 1)
        self.encoder_1d_feature_pos_embed = nn.Embedding(2, d_model)
        self.decoder_pos_embed = nn.Embedding(config.chunk, d_model)
        self.action_head = nn.Linear(d_model, config.action_dim)

    def forward(self, images, state):
        batch = len(state)
        latent = torch.zeros(batch, self.config.latent_dim)
        tokens = [
            self.encoder_latent_input_proj(latent)[None],
            self.encoder_robot_state_input_proj(state)[None],
        ]
        pos = [self.encoder_1d_feature_pos_embed.weight[:, None]]
        for image in images:
            features = self.encoder_img_feat_input_proj(self.backbone(image)["features"])
            tokens.append(features.flatten(2).permute(2, 0, 1))
            pos.append(grid_positions(*features.shape[2:], self.config.d_model))
        tokens, pos = torch.cat(tokens), torch.cat(pos)
        memory = self.encoder(tokens, pos)
        queries = torch.zeros(self.config.chunk, batch, self.config.d_model)
        query_pos = self.decoder_pos_embed.weight[:, None]
        return self.action_head(self.decoder(queries, memory, query_pos, pos).transpose(0, 1))
