"""The function axis of the verdict: what a policy does at unseen scenes, beside retrieval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from actlens.retrieval.demonstrations import Demonstrations
from actlens.retrieval.errors import ALL_JOINTS, Errors, Yardstick
from actlens.retrieval.generalisation import GeneralisationIndex, generalisation
from actlens.retrieval.growth import POSITION, distance_to_demonstrations, growth_exponent
from actlens.retrieval.jackknife import Value
from actlens.retrieval.oracle import TaskState
from actlens.retrieval.search import NearestNeighbours
from actlens.retrieval.similarity import LookupSimilarity, lookup_similarity
from actlens.retrieval.snapping import Snap, snap

_RANKS = 5


@dataclass(frozen=True)
class FunctionAxis:
    """Everything that says whether the policy generalises or retrieves, on the same scenes."""

    indices: tuple[GeneralisationIndex, ...]
    """By measure."""
    snaps: tuple[Snap, ...]
    """Towards the nearest demonstration in task space, the second, … of different episodes."""
    similarity: LookupSimilarity
    growth_of_policy: Value
    growth_of_retrieval: Value
    distance: Float[np.ndarray, " scene"]
    """From the nearest demonstrated start, in label units."""
    nearest: Int[np.ndarray, "scene rank"]
    """The demonstrations (rows) that were nearest in task space."""
    policy: Errors
    retrieval: Errors


def function_axis(
    demonstrations: Demonstrations,
    unseen: Demonstrations,
    yardstick: Yardstick,
    task: TaskState,
    *,
    position: Sequence[str] = POSITION,
    measure: str = ALL_JOINTS,
) -> FunctionAxis:
    """Compare the policy at unseen scenes with the nearest demonstration in task space.

    Args:
        demonstrations: what the policy was trained on; its errors there are the floor.
        unseen: scenes with expert actions of no demonstrated episode, at about the same frames.
        position: labels of the object's place, for distances.
        measure: in which errors grow with distance.

    Raises:
        RetrievalError: if labels are missing, or fewer episodes were demonstrated than ranks.
    """
    nearest = nearest_of_episodes(
        task.keys(demonstrations), demonstrations.episodes, task.keys(unseen)
    )
    trained = yardstick.errors(
        demonstrations.predicted, demonstrations.actions, demonstrations.counted
    )
    policy = yardstick.errors(unseen.predicted, unseen.actions, unseen.counted)
    retrieved = demonstrations.actions[nearest]
    retrieval = yardstick.errors(retrieved[:, 0], unseen.actions, unseen.counted)
    flat = lambda x: (x / yardstick.unit).reshape(len(x), -1)
    distance = distance_to_demonstrations(demonstrations, unseen, position)
    growth = lambda errors: growth_exponent(distance, errors.of(measure), errors.n, unseen.episodes)
    return FunctionAxis(
        generalisation(
            trained,
            policy,
            retrieval,
            trained_episodes=demonstrations.episodes,
            unseen_episodes=unseen.episodes,
        ),
        snap(
            unseen.predicted / yardstick.unit,
            unseen.actions / yardstick.unit,
            retrieved / yardstick.unit,
            unseen.episodes,
            counted=unseen.counted[..., None],
        ),
        lookup_similarity(
            flat(unseen.predicted),
            flat(unseen.actions),
            flat(demonstrations.actions),
            episodes=unseen.episodes,
            demonstrated_episodes=demonstrations.episodes,
            counted=np.repeat(unseen.counted, unseen.actions.shape[-1], axis=1),
        ),
        growth(policy),
        growth(retrieval),
        distance,
        nearest,
        policy,
        retrieval,
    )


def nearest_of_episodes(
    keys: Float[np.ndarray, "scene d"],
    episodes: Int[np.ndarray, " scene"],
    queries: Float[np.ndarray, "query d"],
    ranks: int = _RANKS,
) -> Int[np.ndarray, "query rank"]:
    """The nearest demonstrations of different episodes: frames of one are near one another.

    Fewer ranks where fewer episodes were demonstrated.
    """
    ranks = min(ranks, len(np.unique(episodes)))
    index = NearestNeighbours.of(keys, episodes=episodes)
    longest = int(np.bincount(np.unique(episodes, return_inverse=True)[1]).max())
    found = index.search(queries, min(len(keys), (ranks - 1) * longest + 1)).indices
    chosen = np.empty((len(queries), ranks), dtype=np.int64)
    for query, rows in enumerate(found):
        _, first = np.unique(episodes[rows], return_index=True)
        chosen[query] = rows[np.sort(first)[:ranks]]
    return chosen
