import copy
from dataclasses import replace

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The number of threads decides how sums are split; small tensors gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_config():
    """A small ACT in which every axis has another length; keyword arguments replace fields."""
    from actlens.config import ACTConfig, Camera

    tiny = ACTConfig(
        cameras=(
            Camera("observation.images.top", 32, 64),
            Camera("observation.images.side", 96, 32),
        ),
        action_dim=3,
        state_dim=6,
        chunk=5,
        n_action_steps=5,
        d_model=32,
        n_heads=4,
        d_mlp=24,
        n_encoder_layers=2,
        latent_dim=9,
        n_vae_encoder_layers=2,
        joints=("pan", "lift", "gripper"),
    )
    return lambda **changes: replace(tiny, **changes)


def perturb(model, generator):
    """Move every parameter and buffer away from the zeros and ones that hide bugs."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.mul_(1 + 0.2 * noise.abs())
            elif tensor.ndim == 1:
                tensor.add_(0.2 * noise)


def statistics(config, generator):
    """A normaliser whose every number matters, for all features of the policy."""
    from actlens.config import ACTION_KEY, STATE_KEY
    from actlens.normalization import Affine, NormalizationMode, Normalizer

    sizes = {camera.key: (3, 1, 1) for camera in config.cameras} | {
        ACTION_KEY: (config.action_dim,)
    }
    if config.state_dim is not None:
        sizes[STATE_KEY] = (config.state_dim,)
    return Normalizer(
        {
            key: Affine.from_stats(
                NormalizationMode.MEAN_STD,
                {
                    "mean": torch.rand(size, generator=generator),
                    "std": 0.3 + torch.rand(size, generator=generator),
                },
                eps=1e-8,
                what=key,
            )
            for key, size in sizes.items()
        }
    )


@pytest.fixture(scope="session")
def shared_models():
    return {}


@pytest.fixture(scope="session")
def new_model(make_config):
    """A HookedACT of its own of the tiny config (with changes), in eval mode."""
    from actlens.model.act import HookedACT

    def make(**changes):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        config = make_config(**changes)
        model = HookedACT(config, statistics(config, generator)).eval()
        perturb(model, generator)
        return model

    return make


@pytest.fixture
def make_model(new_model, shared_models):
    """HookedACT of the tiny config (with changes), in eval mode; shared, so leave it as it was."""

    def make(**changes):
        key = repr(sorted(changes.items()))
        if key not in shared_models:
            shared_models[key] = new_model(**changes)
        return shared_models[key]

    yield make
    left = {key: shared.list_hooks() for key, shared in shared_models.items()}
    for shared in shared_models.values():
        shared.reset_hooks(including_permanent=True)
    assert not any(left.values()), "the test left hooks on a shared model"


@pytest.fixture
def model(make_model):
    """Two encoder layers, one decoder layer, post-norm, two cameras, CVAE: ACT as it is used."""
    return make_model()


@pytest.fixture
def own_model(model):
    """A copy of the model that a test may change."""
    return copy.deepcopy(model)


@pytest.fixture(scope="session")
def observe():
    """Random observations for a model: `observe(model, rows=3, seed=0)`; bytes, dataset units."""
    from actlens.config import STATE_KEY

    def make(model, rows=3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        config = model.config
        batch = {
            camera.key: torch.randint(
                0, 256, (rows, 3, camera.height, camera.width), generator=generator
            ).to(torch.uint8)
            for camera in config.cameras
        }
        if config.state_dim is not None:
            batch[STATE_KEY] = torch.randn(rows, config.state_dim, generator=generator)
        if config.env_state_dim is not None:
            batch[config.env_state_key] = torch.randn(
                rows, config.env_state_dim, generator=generator
            )
        return batch

    return make


@pytest.fixture
def demonstration():
    """Random action chunks for a model, in dataset units."""

    def make(model, rows=3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(rows, model.config.chunk, model.config.action_dim, generator=generator)

    return make
