"""A small world, its policy and what it stores; shared, so leave them as they are."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def world():
    from actlens.planted import World

    return World(seed=2)


@pytest.fixture(scope="session")
def train_scenes(world):
    from actlens.planted import Region

    return world.scenes(world.positions(Region.TRAIN, 30))


@pytest.fixture(scope="session")
def new_scenes(world):
    from actlens.planted import Region

    return world.scenes(world.positions(Region.NEW, 30), first_episode=1000)


@pytest.fixture(scope="session")
def gap_scenes(world):
    from actlens.planted import Region

    return world.scenes(world.positions(Region.GAP, 30), first_episode=2000)


@pytest.fixture(scope="session")
def policy(world):
    """In float64."""
    import torch

    return world.policy(dtype=torch.float64)


@pytest.fixture(scope="session")
def stored(policy, train_scenes):
    from actlens.planted import Stored

    return Stored.of(policy, train_scenes)


def slopes_and_secants(answer, inputs, step=1e-5):
    """Between each scene and its nearest: |J(x_j - x_i)| and |F(x_j) - F(x_i)|, whole chunks."""
    apart = (inputs[:, None] - inputs[None]).flatten(2).norm(dim=2).fill_diagonal_(np.inf)
    other = inputs[apart.argmin(1)]
    at = answer(inputs)
    slope = (answer(inputs + step * (other - inputs)) - at) / step
    size = lambda x: x.flatten(1).norm(dim=1)
    return size(slope), size(answer(other) - at)
