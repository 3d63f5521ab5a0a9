"""An original ACT's `policy_best.ckpt`, loaded here, against a network with the original's names.

The network below is built of torch's own modules as the original code puts them together:
seven decoder layers of which the first one's output is used, camera maps side by side in one grid,
ImageNet's statistics for images, clipped deviations without an epsilon for everything else.
"""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from reference_act import DecoderLayer, EncoderLayer, Stack, grid_positions
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from actlens.model.act import HookedACT

D, HEADS, CHUNK, JOINTS, LATENT = 32, 4, 6, 5, 8
CAMERAS, SIZE = ("left_wrist", "top"), (64, 96)
MEAN, STD = (torch.tensor(x).view(3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


class OriginalACT(nn.Module):
    """The original's `DETRVAE` at inference, attribute by attribute as its state dict names it."""

    def __init__(self, *, pre_norm):
        super().__init__()
        sizes = SimpleNamespace(d_model=D, n_heads=HEADS, d_mlp=48, pre_norm=pre_norm)
        encoder = lambda n: Stack(
            [EncoderLayer(sizes) for _ in range(n)],
            nn.LayerNorm(D) if pre_norm else nn.Identity(),
        )
        self.transformer = nn.Module()
        self.transformer.encoder = encoder(2)
        self.transformer.decoder = Stack([DecoderLayer(sizes) for _ in range(7)], nn.LayerNorm(D))
        self.encoder = encoder(1)
        self.action_head = nn.Linear(D, JOINTS)
        self.is_pad_head = nn.Linear(D, 1)
        self.query_embed = nn.Embedding(CHUNK, D)
        self.input_proj = nn.Conv2d(512, D, 1)
        resnet = torchvision.models.resnet18(weights=None, norm_layer=FrozenBatchNorm2d)
        self.backbones = nn.ModuleList([nn.ModuleList([nn.Module()])])
        self.backbones[0][0].body = IntermediateLayerGetter(resnet, {"layer4": "map"})
        self.input_proj_robot_state = nn.Linear(JOINTS, D)
        self.cls_embed = nn.Embedding(1, D)
        self.encoder_action_proj = nn.Linear(JOINTS, D)
        self.encoder_joint_proj = nn.Linear(JOINTS, D)
        self.latent_proj = nn.Linear(D, 2 * LATENT)
        self.register_buffer("pos_table", torch.randn(1, 2 + CHUNK, D))
        self.latent_out_proj = nn.Linear(LATENT, D)
        self.additional_pos_embed = nn.Embedding(2, D)

    def forward(self, qpos, images):
        """Normalised joints `batch joint` and images `batch camera 3 h w` -> normalised actions."""
        maps = [self.input_proj(self.backbones[0][0].body(x)["map"]) for x in images.unbind(1)]
        rows, cols = maps[0].shape[2:]
        grid = grid_positions(rows, cols, D).view(rows, cols, D)
        pixels = torch.cat(maps, 3).flatten(2).permute(2, 0, 1)
        pixel_pos = torch.cat([grid] * len(maps), 1).view(-1, 1, D)
        latent = self.latent_out_proj(torch.zeros(len(qpos), LATENT))
        tokens = torch.cat([torch.stack([latent, self.input_proj_robot_state(qpos)]), pixels])
        pos = torch.cat([self.additional_pos_embed.weight[:, None], pixel_pos])
        memory = self.transformer.encoder(tokens, pos)
        decoder = self.transformer.decoder
        queries = torch.zeros(CHUNK, len(qpos), D)
        first = decoder.layers[0](queries, memory, self.query_embed.weight[:, None], pos)
        return self.action_head(decoder.norm(first).transpose(0, 1))


def trained(*, pre_norm):
    """Weights as a training leaves them: all moved but those of the six dead decoder layers."""
    torch.manual_seed(0)
    policy = OriginalACT(pre_norm=pre_norm).eval()
    with torch.no_grad():
        for name, tensor in policy.state_dict().items():
            dead = ".decoder.layers." in name and ".layers.0." not in name
            if tensor.ndim == 1 and not dead:
                noise = 0.2 * torch.randn(tensor.shape)
                tensor.copy_(tensor + (noise.abs() if "running_var" in name else noise))
    return policy


@pytest.fixture
def statistics():
    rng = np.random.default_rng(0)
    spread = lambda: np.clip(rng.uniform(size=JOINTS), 1e-2, np.inf).astype(np.float32)
    centre = lambda: rng.normal(size=JOINTS).astype(np.float32)
    return {
        "qpos_mean": centre(), "qpos_std": spread(), "action_mean": centre(),
        "action_std": spread(), "example_qpos": rng.normal(size=(9, JOINTS)),
    }  # fmt: skip


@pytest.mark.parametrize("pre_norm", [False, True])
def test_actions_in_dataset_units_are_the_originals(statistics, pre_norm, tmp_path):
    policy = trained(pre_norm=pre_norm)
    state = {f"model.{name}": tensor for name, tensor in policy.state_dict().items()}
    torch.save(state, tmp_path / "policy_best.ckpt")
    (tmp_path / "dataset_stats.pkl").write_bytes(pickle.dumps(statistics))
    model = HookedACT.from_pretrained(
        tmp_path, cameras=CAMERAS, image_size=SIZE, n_heads=HEADS, dtype=torch.float32
    )
    images = torch.randint(0, 256, (3, 2, 3, *SIZE), dtype=torch.uint8)
    qpos = torch.randn(3, JOINTS)
    stats = {name: torch.from_numpy(array) for name, array in statistics.items()}
    with torch.no_grad():
        normalised = policy(
            (qpos - stats["qpos_mean"]) / stats["qpos_std"], (images / 255 - MEAN) / STD
        )
        expected = normalised * stats["action_std"] + stats["action_mean"]
        observation = {f"observation.images.{n}": images[:, i] for i, n in enumerate(CAMERAS)}
        ours = model(observation | {"observation.state": qpos})
        swapped = model(
            {k: v.flip(0) for k, v in observation.items()} | {"observation.state": qpos}
        )
    assert model.config.n_decoder_layers == 1
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert (swapped - expected).abs().max() > 1e-3
