from dataclasses import replace

import pytest
import torch

from actlens.config import ENV_STATE_KEY, STATE_KEY
from actlens.rome import KeyMetric, Offset, Request, key_statistics
from actlens.scene import Scene
from tests.interventions.conftest import CAMERAS, small_trunk

CHUNK = 5
PAN = Offset({"pan": 0.3})


def scene(number, *, per_episode=3, source="planted", n_padded=0):
    """A scene of its own for every number."""
    generator = torch.Generator().manual_seed(number)
    pixels = lambda camera: torch.randint(
        0, 256, (3, camera.height, camera.width), generator=generator, dtype=torch.uint8
    )
    observation = {camera.key: pixels(camera) for camera in CAMERAS}
    observation[STATE_KEY] = torch.randn(6, generator=generator)
    observation[ENV_STATE_KEY] = torch.randn(4, generator=generator)
    return Scene(
        observation=observation,
        action=torch.randn(CHUNK, 3, generator=generator),
        action_is_pad=torch.arange(CHUNK) >= CHUNK - n_padded,
        episode=number // per_episode,
        frame=number % per_episode,
        source=source,
    )


def scenes(n, **options):
    return [scene(number, **options) for number in range(n)]


def chunk_of(model, one):
    """The whole forward: a scene's normalised actions."""
    with torch.no_grad():
        return model.predict(model.prepare(one))[0]


def asked(model, one, offset=PAN):
    """What a request for an offset means, in normalised actions, said independently."""
    moved = chunk_of(model, one).clone()
    for joint, amount in offset.by_joint.items():
        i = model.config.joints.index(joint)
        moved[:, i] += amount / model.normalizer._part("unscale", "action")[i]
    return moved


@pytest.fixture(scope="session")
def build(new_model):
    """A small ACT on a cheap trunk, in float64, of which three of five positions are executed."""

    def make(**changes):
        model = new_model(cameras=CAMERAS, **({"n_action_steps": 3} | changes))
        torch.manual_seed(5)
        model.embed.backbone = small_trunk()
        return model.double()

    return make


@pytest.fixture(scope="session")
def policy(build):
    """ACT as it is used: one for reading from."""
    return build()


@pytest.fixture(scope="session")
def statistics(policy):
    return key_statistics(policy, scenes(24), "decoder.0")


@pytest.fixture(scope="session")
def metric(statistics):
    return KeyMetric.of(statistics, 1e-2)


@pytest.fixture
def request_pan():
    return Request(scene(3), PAN)


@pytest.fixture
def unchanged(policy):
    """Holds a test to leaving the shared policy as it was."""
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    yield
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def same_keys(one, other):
    """A scene that the policy cannot tell from another, under a name of its own."""
    return replace(other, episode=one.episode, frame=one.frame)
