"""Which other episode, and which of its frames, against a search by hand."""

from pathlib import Path

import numpy as np
import pytest

from actlens.errors import SceneError
from actlens.scenes.counterparts import matched_frames, other_episode
from actlens.scenes.dataset import Dataset
from actlens.scenes.episode import Episode, Track


class Recorded:
    """A reader of tracks that lie in memory."""

    def __init__(self, actions, states):
        self.actions, self.states = actions, states

    def track(self, episode):
        seen = {} if self.states is None else {"observation.state": self.states[episode.index]}
        return Track(self.actions[episode.index], seen)

    def images(self, episode, camera, frames):
        return iter(())


def dataset_of(actions, states=None):
    episodes = tuple(Episode(index, len(given)) for index, given in actions.items())
    return Dataset(
        "planted", Path(), "memory", 10.0, (), (), (), (), episodes, Recorded(actions, states)
    )


def walk(to, length=20, begin=0.0):
    return np.linspace([begin, 0], [to, 1], length).astype(np.float32)


def test_the_other_episode_begins_alike_and_then_does_something_else():
    far_from_the_start = {7: walk(-90, begin=50), 8: walk(90, begin=-50), 9: walk(80, begin=-60)}
    actions = {3: walk(10), 4: walk(11), 5: walk(-30), 6: walk(12, length=15), **far_from_the_start}
    assert other_episode(dataset_of(actions), 3) == 5


def test_joints_count_in_units_of_their_spread():
    """A joint in small units is not drowned by one in large ones."""
    rest = np.zeros((20, 2), np.float32)
    small, large = rest.copy(), rest.copy()
    small[10:, 1] = 0.02  # many times what others do with that joint
    large[10:, 0] = 20.0
    common = {i: rest + np.array([30.0 * (-1) ** i, 0]) for i in range(10, 20)}
    actions = {0: rest, 1: small, 2: large, **{i: a.astype(np.float32) for i, a in common.items()}}
    assert other_episode(dataset_of(actions), 0) == 1


def test_an_only_episode_has_no_other():
    with pytest.raises(SceneError, match="no episode but 3"):
        other_episode(dataset_of({3: walk(1)}), 3)


def test_matched_frames_have_the_nearest_arm_state():
    generator = np.random.default_rng(0)
    states = {
        1: (generator.normal(size=(9, 2)) * [1, 100]).astype(np.float32),
        2: (generator.normal(size=(14, 2)) * [1, 100]).astype(np.float32),
    }
    dataset = dataset_of(states, states)
    spread = np.concatenate(list(states.values())).std(0)
    expected = [
        min(range(14), key=lambda j, own=own: (((own - states[2][j]) / spread) ** 2).sum())
        for own in states[1]
    ]
    assert matched_frames(dataset, 1, 2).tolist() == expected


def test_without_arm_states_frames_are_at_the_same_share():
    dataset = dataset_of({1: walk(1, 10), 2: walk(1, 20)})
    assert matched_frames(dataset, 1, 2).tolist() == list(range(0, 20, 2))
    with pytest.raises(SceneError, match="no episode 4"):
        matched_frames(dataset, 1, 4)
