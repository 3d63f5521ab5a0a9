"""Another episode's moment to hold a scene against, where nobody has named one."""

import numpy as np
from jaxtyping import Int
from scipy.spatial.distance import cdist

from actlens.config import STATE_KEY
from actlens.errors import SceneError
from actlens.scenes.dataset import Dataset


def other_episode(dataset: Dataset, episode: int) -> int:
    """The episode that does something else from a like start.

    Of the half of all others whose actions begin nearest to this one's, the one whose actions then
    differ the most on average (root mean square over joints in units of their standard deviation).

    Raises:
        SceneError: if there is no other episode.
    """
    own = dataset.actions(dataset.episode(episode).index)
    others = {e.index: dataset.actions(e.index) for e in dataset.episodes if e.index != episode}
    if not others:
        raise SceneError(f"{dataset.name} has no episode but {episode} to compare it with.")
    spread = np.concatenate([own, *others.values()]).std(0)
    spread = np.where(spread > 0, spread, 1)
    apart = {}
    for index, actions in others.items():
        length = min(len(own), len(actions))
        difference = (own[:length] - actions[:length]) / spread
        apart[index] = np.sqrt((difference**2).mean(1))
    near = sorted(apart, key=lambda index: apart[index][0])[: max(1, (len(apart) + 1) // 2)]
    return max(near, key=lambda index: apart[index].mean())


def matched_frames(dataset: Dataset, episode: int, other: int) -> Int[np.ndarray, " frame"]:
    """For every frame of an episode the frame of another one with the nearest arm state.

    The joints count in units of their standard deviation over the two episodes. Where a dataset
    has no arm states, the same share of the other episode's length.

    Raises:
        SceneError: if one of the episodes does not exist.
    """
    length, other_length = (dataset.episode(index).length for index in (episode, other))
    if STATE_KEY not in dataset.track(episode).observations:
        return np.arange(length) * other_length // length
    own, theirs = dataset.states(episode), dataset.states(other)
    spread = np.concatenate([own, theirs]).std(0)
    spread = np.where(spread > 0, spread, 1)
    return cdist(own / spread, theirs / spread).argmin(1)
