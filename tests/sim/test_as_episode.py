"""A rollout that is read as an episode is what was seen and done in it."""

import numpy as np
import pytest

from actlens.config import Camera
from actlens.errors import SceneError
from actlens.scenes.counterparts import matched_frames
from actlens.scenes.dataset import open_dataset
from actlens.sim.as_episode import with_rollout
from actlens.sim.environment import PickCube
from actlens.sim.rollout import as_observation, rollout


@pytest.fixture(scope="module")
def dataset():
    return open_dataset("so101-pick-cube")


def play(env, seen, steps=6, **options):
    """A slow wave of the arm, and everything that was observed."""

    def select_action(observation):
        seen.append(observation)
        return observation["observation.state"] + np.float32(1.5)

    return rollout(
        env, select_action, lambda: None, cube_xy=(0.2, 0.0), seed=3, steps=steps, **options
    )


@pytest.mark.usefixtures("renderer")
def test_its_scenes_are_the_observations_that_were_acted_on(dataset):
    env, seen = PickCube(), []
    result = play(env, seen, keep_frames=True)
    env.close()
    longer, index = with_rollout(dataset, result)
    assert index == 100
    assert longer.episode(index).length == 6
    scenes = list(longer.scenes(chunk=4, episodes=[index]))
    for frame, (scene, observed) in enumerate(zip(scenes, seen, strict=True)):
        expected = as_observation(observed)
        assert scene.observation.keys() == expected.keys()
        for key, value in expected.items():
            assert np.array_equal(scene.observation[key], value), key
        assert np.array_equal(scene.action[0], result.actions[frame])
        assert scene.labels["cube_x"] == pytest.approx(0.2)
    assert scenes[4].action_is_pad.tolist() == [False, False, True, True]
    # The others are what they were, and both can be compared.
    recorded, same = (one.scene(7, 30, chunk=4) for one in (dataset, longer))
    for key, value in recorded.observation.items():
        assert np.array_equal(value, same.observation[key])
    assert len(matched_frames(longer, index, 7)) == 6


def test_a_rollout_without_pictures_or_of_other_cameras_is_refused(physics, dataset):
    result = play(physics, [])
    with pytest.raises(SceneError, match="kept no pictures"):
        with_rollout(dataset, result)


@pytest.mark.usefixtures("renderer")
def test_pictures_of_another_size_are_no_episode_of_the_dataset(dataset):
    env = PickCube(height=48, width=64)
    result = play(env, [], keep_frames=True)
    env.close()
    with pytest.raises(SceneError, match="no episode of one dataset"):
        with_rollout(dataset, result)
    assert dataset.cameras[0] == Camera("observation.images.top", 240, 320)
