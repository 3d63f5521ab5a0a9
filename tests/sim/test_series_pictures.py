"""Policies of small pictures: what they see of datasets and of the simulator."""

import numpy as np
import pytest
import torch

from actlens.config import Camera
from actlens.errors import SceneError
from actlens.scene import Scene
from actlens.scenes.dataset import open_dataset
from actlens.sim.environment import PickCube
from actlens.sim.rollout import as_observation
from actlens.sim.series.pictures import acting, dataset_seen_by, seen_by
from actlens.training_data import shrink
from tests.sim.scripted_policies import random_policy

TOP = Camera("observation.images.top", 60, 80)


def small_policy(camera=TOP):
    return random_policy(cameras=(camera,), env_state_dim=None, n_action_steps=2)


def scene_of(height, width):
    pictures = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return Scene({"observation.images.top": pictures, "observation.state": torch.zeros(6)})


def test_pictures_are_shrunk_as_for_training_and_other_cameras_left_out():
    model = small_policy()
    dataset = open_dataset("so101-pick-cube")
    (seen,) = dataset_seen_by(model, dataset, [3], [10])
    assert set(seen.observation) == {"observation.images.top", "observation.state"}
    expected = shrink(dataset.frames(3, "top")[10:11], 4)[0]
    assert np.array_equal(seen.observation["observation.images.top"].numpy(), expected)


def test_a_picture_of_no_whole_multiple_is_refused():
    with pytest.raises(SceneError, match="no whole multiple"):
        list(seen_by(small_policy().config, [scene_of(90, 100)]))


def test_a_missing_camera_is_refused():
    other = Camera("observation.images.wrist", 60, 80)
    with pytest.raises(SceneError, match=r"observation\.images\.wrist"):
        list(seen_by(small_policy(other).config, [scene_of(60, 80)]))


def test_the_loop_shows_what_a_drawing_environment_would_show(renderer):
    """Pictures drawn on demand from a world without them, against observations that have them."""
    model = small_policy()
    drawing, bare = PickCube(height=240, width=320), PickCube(render=False, height=240, width=320)
    select_action, reset = acting(model, bare)
    reset()
    (seen, _), (observed, _) = (env.reset(seed=3) for env in (drawing, bare))
    for step in range(4):
        action = select_action(observed)
        if step % model.config.n_action_steps == 0:
            (shown,) = seen_by(model.config, [Scene(as_observation(seen))])
            chunk = model(shown)[0].numpy(force=True)
        assert action == pytest.approx(chunk[step % model.config.n_action_steps], abs=1e-5)
        seen, observed = drawing.step(action)[0], bare.step(action)[0]
    drawing.close()
    bare.close()
