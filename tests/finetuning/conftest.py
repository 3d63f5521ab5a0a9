"""A teacher with every part in use, scenes that it demonstrates, and what may be trained."""

import copy
from dataclasses import replace

import pytest
import torch

from actlens.scene import Scene

CHANGES = {"cameras": (), "env_state_dim": 4, "use_vae": False, "chunk": 3, "n_action_steps": 2}


def demonstrated(model, n, *, seed, first_episode=0, frames=2):
    """Random scenes, some frames an episode, with what a policy does in them."""
    generator = torch.Generator().manual_seed(seed)
    scenes = []
    for i in range(n):
        observation = {
            "observation.state": torch.randn(6, generator=generator),
            "observation.environment_state": torch.randn(4, generator=generator),
        }
        pad = torch.zeros(model.config.chunk, dtype=torch.bool)
        pad[-1] = i % 4 == 3
        scene = Scene(observation, episode=first_episode + i // frames, frame=i % frames)
        with torch.no_grad():
            action = model(scene)[0].float()
        scenes.append(replace(scene, action=action, action_is_pad=pad, source="teacher"))
    return scenes


@pytest.fixture(scope="session")
def teacher(new_model):
    return new_model(**CHANGES).double()


@pytest.fixture(scope="session")
def scenes(teacher):
    return demonstrated(teacher, 24, seed=0)


@pytest.fixture(scope="session")
def parts(teacher):
    from actlens.finetuning import (
        cross_attention,
        decoder_mlp,
        encoder,
        everything,
        head,
        output_weights,
    )

    return [
        decoder_mlp(teacher),
        cross_attention(teacher),
        head(teacher),
        encoder(teacher),
        encoder(teacher, 1),
        everything(teacher),
        output_weights(teacher),
    ]


@pytest.fixture
def own_teacher(teacher):
    """A copy that a test may change."""
    return copy.deepcopy(teacher)
