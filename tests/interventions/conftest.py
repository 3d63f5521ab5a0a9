import pytest
from torch import nn

from actlens.config import Activation, Camera
from actlens.interventions import run_scene

ARCHITECTURES = {
    "act": {},
    "pre_norm": {"pre_norm": True},
    "two_decoder_layers": {"n_decoder_layers": 2},
    "pre_norm_three_decoder_layers": {"pre_norm": True, "n_decoder_layers": 3},
    "gelu_and_environment_state": {"activation": Activation.GELU, "env_state_dim": 4},
    "no_state_no_vae": {"state_dim": None, "use_vae": False},
    "one_encoder_layer": {"n_encoder_layers": 1},
}

CAMERAS = (Camera("observation.images.top", 64, 256), Camera("observation.images.side", 96, 32))


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


@pytest.fixture(scope="module", params=ARCHITECTURES)
def policy(request, new_model):
    """One float64 policy of every architecture that changes the network's structure."""
    model = new_model(cameras=CAMERAS, **ARCHITECTURES[request.param])
    model.embed.backbone = small_trunk()
    return model.double()


@pytest.fixture(scope="module")
def scenes(policy, observe):
    """Two single observations: the run's own and the donor's."""
    return [observe(policy, rows=1, seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def runs(policy, scenes):
    """Their forwards."""
    return [run_scene(policy, scene) for scene in scenes]


@pytest.fixture(scope="module")
def act(new_model):
    """ACT as it is used, small, in float64, on a cheap trunk."""
    model = new_model(cameras=CAMERAS)
    model.embed.backbone = small_trunk()
    return model.double()
