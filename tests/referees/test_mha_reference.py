"""HookedACT against a network of torch's `nn.MultiheadAttention`: needs no second environment."""

import itertools
from dataclasses import replace

import pytest
import torch
from reference_act import ReferenceACT

from actlens.config import STATE_KEY, Camera
from actlens.model.act import HookedACT
from actlens.model.lerobot_names import from_lerobot


def both(config, seed=0):
    """The reference, every weight away from zeros and ones, and HookedACT with its weights."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    reference = ReferenceACT(config).eval()
    with torch.no_grad():
        for name, tensor in reference.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.mul_(1 + 0.2 * noise.abs())
            elif tensor.ndim == 1:
                tensor.add_(0.2 * noise)
    model = HookedACT(config).eval()
    model.load_state_dict(
        {from_lerobot(name): tensor for name, tensor in reference.state_dict().items()}
    )
    return reference, model


def compare(config, rows):
    reference, model = both(config)
    generator = torch.Generator().manual_seed(rows)
    images = [torch.rand(rows, 3, c.height, c.width, generator=generator) for c in config.cameras]
    state = torch.randn(rows, config.state_dim, generator=generator)
    keys = [camera.key for camera in config.cameras]
    observation = dict(zip(keys, images, strict=True)) | {STATE_KEY: state}
    with torch.no_grad():
        expected = reference(images, state)
        assert expected.std() > 0.01
        assert torch.equal(model(observation), expected)
        cached, _ = model.run_with_cache(observation)
        assert torch.equal(cached, expected)


@pytest.mark.parametrize(
    ("rows", "pre_norm", "n_decoder_layers"),
    list(itertools.product((1, 2, 3), (False, True), (1, 2))),
    ids=str,
)
def test_actions_are_bit_equal(make_config, rows, pre_norm, n_decoder_layers):
    config = make_config(pre_norm=pre_norm, n_decoder_layers=n_decoder_layers, use_vae=False)
    compare(config, rows)


def test_actions_are_bit_equal_at_other_sizes(make_config):
    cameras = tuple(
        Camera(f"observation.images.{name}", *size)
        for name, size in {"a": (64, 64), "b": (33, 50), "c": (96, 64)}.items()
    )
    config = replace(
        make_config(use_vae=False), cameras=cameras, d_model=64, n_heads=8, n_encoder_layers=4
    )
    compare(config, rows=2)
