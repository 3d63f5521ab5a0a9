import pytest
import torch
from torch import nn

from actlens.config import ENV_STATE_KEY, STATE_KEY, Camera
from actlens.interventions import run_scene
from actlens.scene import Scene

CAMERAS = (Camera("observation.images.top", 64, 96), Camera("observation.images.side", 96, 32))
ARCHITECTURES = {
    "act": {},
    "pre_norm_three_decoder_layers": {"pre_norm": True, "n_decoder_layers": 3},
    "environment_state": {"env_state_dim": 4},
    "no_state": {"state_dim": None},
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


def small(new_model, **changes):
    model = new_model(cameras=CAMERAS, **changes)
    model.embed.backbone = small_trunk()
    return model.double()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def policy(request, new_model):
    """One float64 policy of every architecture that changes who attends to whom."""
    return small(new_model, **ARCHITECTURES[request.param])


@pytest.fixture(scope="module")
def scenes(policy, observe):
    """Two single observations."""
    return [observe(policy, rows=1, seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def runs(policy, scenes):
    """Their forwards."""
    return [run_scene(policy, scene) for scene in scenes]


@pytest.fixture(scope="module")
def act(new_model):
    """ACT as it is used, small, in float64, on a cheap trunk."""
    return small(new_model)


@pytest.fixture(scope="session")
def episodes_of(observe):
    """Episodes of random scenes: `episodes_of(model, n=6, moments=2)`."""

    def make(model, n=6, moments=2):
        numbered = (
            [
                {key: value[0] for key, value in observe(model, 1, seed=97 * e + m).items()}
                for m in range(moments)
            ]
            for e in range(n)
        )
        return [
            [Scene(one, episode=e, frame=10 * m, source="made") for m, one in enumerate(scenes)]
            for e, scenes in enumerate(numbered)
        ]

    return make


@pytest.fixture(scope="session")
def relay_scene():
    """A scene of the relay policy: its state, and an environment that may be shared."""

    def make(seed, *, env_seed=0, episode=0, frame=0):
        draw = lambda s: torch.randn(6, generator=torch.Generator().manual_seed(s))
        observation = {STATE_KEY: draw(100 + seed), ENV_STATE_KEY: draw(env_seed)}
        return Scene(observation, episode=episode, frame=frame, source="planted")

    return make
