import pytest
import torch

from actlens.config import STATE_KEY
from actlens.scene import Scene
from actlens.store import sites, write_activations
from tests.interventions.conftest import CAMERAS, small_trunk

SITES = (
    "decoder.0.hook_action_vector[query=0]",
    "decoder.0.mlp.hook_post",
    "encoder.1.hook_resid_pre[{state, top[0,1]}]",
)


@pytest.fixture(scope="session")
def build_policy(new_model):
    """A small ACT on a cheap trunk in float32; the same every time."""

    def build(**changes):
        model = new_model(cameras=CAMERAS, **changes)
        torch.manual_seed(5)
        model.embed.backbone = small_trunk()
        return model

    return build


@pytest.fixture(scope="module")
def policy(build_policy):
    """One for reading from: leave it as it is."""
    return build_policy()


@pytest.fixture(scope="module")
def shapes_once():
    """Many stores of one policy: what they will hold is found out once."""
    original, known = sites.dry_run, {}

    def remembered(model, names):
        key = (id(model), model.config, tuple(names))
        if key not in known:
            known[key] = (model, original(model, names))  # holding the model keeps its id its own
        return known[key][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sites, "dry_run", remembered)
        yield


def scene(number, *, seed=0, per_episode=3, source="planted", chunk=5):
    """A scene of its own for every number and seed."""
    generator = torch.Generator().manual_seed(1000 * seed + number)
    observation = {
        camera.key: torch.randint(
            0, 256, (3, camera.height, camera.width), generator=generator, dtype=torch.uint8
        )
        for camera in CAMERAS
    }
    observation[STATE_KEY] = torch.randn(6, generator=generator)
    frame = number % per_episode
    return Scene(
        observation=observation,
        action=torch.randn(chunk, 3, generator=generator),
        action_is_pad=torch.arange(chunk) >= chunk - frame,
        episode=number // per_episode,
        frame=frame,
        labels={"cube_x": 0.1 * number, "cube_y": -0.3 / (1 + number)},
        source=source,
    )


def scenes(n, **options):
    """The first `n` scenes, made as they are asked for."""
    return (scene(number, **options) for number in range(n))


TWO_SCENES = 900_000
"""Bytes for the activations of two scenes of the planted policy, and not for four."""


def small_shards(model, n, folder, **options):
    """A store of `n` scenes in shards of four, in two batches of two."""
    options = {"scenes_per_shard": 4, "memory_budget": TWO_SCENES} | options
    given = options.pop("scenes", None)
    return write_activations(model, scenes(n) if given is None else given, SITES, folder, **options)


def contents(folder):
    """The files of a store by name, but for the lock and what an attempt left unfinished."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}
