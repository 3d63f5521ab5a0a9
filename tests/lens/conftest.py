import pytest
import torch
from torch import nn

from actlens.config import Camera
from actlens.scene import Scene

CAMERAS = (Camera("observation.images.top", 64, 96), Camera("observation.images.side", 96, 32))
ARCHITECTURES = {
    "act": {},
    "pre_norm_three_decoder_layers": {"pre_norm": True, "n_decoder_layers": 3},
    "two_decoder_layers": {"n_decoder_layers": 2, "n_encoder_layers": 1},
    "no_cameras": {"cameras": (), "env_state_dim": 4, "n_heads": 1},
}


def small_trunk():
    """A trunk with the ResNet's stages and strides, and hardly any work."""
    down = lambda out: nn.Conv2d(4, out, 2, stride=2)
    return nn.ModuleDict(
        {
            "conv1": nn.Conv2d(3, 4, 2, stride=2),
            "bn1": nn.Identity(),
            "relu": nn.ReLU(),
            "maxpool": nn.MaxPool2d(2),
            "layer1": nn.Conv2d(4, 4, 1),
            "layer2": down(4),
            "layer3": down(4),
            "layer4": down(512),
        }
    )


@pytest.fixture(scope="session")
def small(new_model):
    """A policy of an architecture, on a cheap trunk: `small("act")`."""
    made = {}

    def make(name="act", dtype=torch.float32):
        if (name, dtype) not in made:
            changes = {"cameras": CAMERAS, **ARCHITECTURES[name]}
            model = new_model(**changes)
            if changes["cameras"]:
                model.embed.backbone = small_trunk()
            made[name, dtype] = model.to(dtype)
        return made[name, dtype]

    return make


@pytest.fixture(params=ARCHITECTURES)
def policy(request, small):
    return small(request.param)


@pytest.fixture(scope="session")
def scenes_of(observe):
    """Random scenes with demonstrations: `scenes_of(model, episodes=3, moments=1)`."""

    def make(model, episodes=3, moments=1, seed=0):
        generator = torch.Generator().manual_seed(seed)
        shape = (model.config.chunk, model.config.action_dim)
        found = []
        for episode in range(episodes):
            for moment in range(moments):
                number = 1000 * seed + 10 * episode + moment
                one = observe(model, rows=1, seed=number)
                observation = {key: value[0] for key, value in one.items()}
                action = torch.randn(shape, generator=generator)
                where = {"episode": episode, "frame": 10 * moment}
                found.append(Scene(observation, action=action, source="made", **where))
        return found

    return make
