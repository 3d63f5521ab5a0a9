"""Conditions under which something simpler answers for a policy, or for part of it.

    stand_in = mlp_stand_in(run, NEAREST, episodes)        # of actlens.mechanism
    roll_out(model, env, start, mlp_substituted(model, stand_in))
    recall = TaskRecall.of(demonstrations, task)
    roll_out(model, env, start, retrieved_by_task(env, recall))

The last is no policy any more: it carries out what was demonstrated in the situation that is
nearest, by what the simulator itself knows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from actlens.interventions import Call, Edit, FromScene, Intervention
from actlens.interventions.sources import Donors
from actlens.mechanism import StandIn, Tail
from actlens.metrics import executed_positions
from actlens.model.act import HookedACT
from actlens.retrieval import Demonstrations, Metric, NearestNeighbours, RetrievalError, TaskState
from actlens.retrieval.metric import KeyMap
from actlens.retrieval.oracle import FRAME
from actlens.retrieval.sites import PerPosition
from actlens.sim.conditions import Condition, History
from actlens.sim.environment import PickCube
from actlens.sites import Site

LABELS = ("cube_x", "cube_y", "cube_z", "cube_yaw")
"""What demonstrations say of the cube, in the order of `PickCube.cube`."""


def vector_site(model: HookedACT) -> PerPosition:
    """Where all that the rest of the decoder knows of a scene is: what `Tail` is a function of.

    Post-norm it is the action vector, under the name that `sites_of` gives it.
    """
    name = "stream after cross-attention" if model.config.pre_norm else "action vector"
    return PerPosition(name, Tail(model).hook)


def mlp_substituted(model: HookedACT, stand_in: StandIn) -> Condition:
    """A surrogate writes for the last decoder MLP, at its positions."""
    tail = Tail(model)
    site = Site(tail.site.output, {"query": stand_in.positions})
    name = f"MLP: {stand_in.surrogate.name}"
    return answered(name, tail, stand_in.positions, site, lambda x, part: stand_in(x))


def tail_substituted(model: HookedACT, stand_in: StandIn) -> Condition:
    """A surrogate answers for the whole decoder behind the action vector, at its positions."""
    site = Site("hook_actions_normalized", {"chunk": stand_in.positions})
    name = f"decoder: {stand_in.surrogate.name}"
    return answered(name, Tail(model), stand_in.positions, site, lambda x, part: stand_in(x))


def answered(
    name: str,
    tail: Tail,
    positions: tuple[int, ...],
    site: Site,
    answer: Callable[[Tensor, Tensor], Tensor],
) -> Condition:
    """At every inference, a function of the action vectors takes a part's place.

    Args:
        positions: of the chunk, at which action vectors are read.
        site: the part; behind the action vectors.
        answer: (action vectors `batch position d_model`, the part) -> what takes its place.
    """
    read: list[Tensor] = []

    def remember(x: Tensor) -> Tensor:
        read[:] = [x]
        return x

    vectors = Edit(Site(tail.hook, {"query": positions}), Call(remember))
    replaced = Edit(site, Call(lambda part: answer(read[0], part)))
    return Condition(name, Intervention((vectors, replaced)))


# ── the nearest demonstration in place of the policy ─────────────────────────────────────────────


@dataclass(frozen=True)
class Recall:
    """Demonstrated chunks, to be found again by a key."""

    metric: KeyMap
    index: NearestNeighbours
    chunks: Float[np.ndarray, "scene chunk joint"]
    """Dataset units."""

    @classmethod
    def of(
        cls,
        keys: Float[np.ndarray, "scene d"],
        chunks: Float[np.ndarray, "scene chunk joint"],
        metric: Metric = Metric.STANDARDISED,
    ) -> Self:
        """Keys and chunks of the same scenes."""
        same = KeyMap.of(metric, keys)
        return cls(same, NearestNeighbours.of(same(keys)), chunks)

    def __call__(self, key: Float[np.ndarray, " d"]) -> Float[np.ndarray, "chunk joint"]:
        """What was demonstrated in the nearest scene, to the bit."""
        found = self.index.search(self.metric(key[None]))
        return self.chunks[found.indices[0, 0]]


@dataclass(frozen=True)
class TaskRecall:
    """Demonstrated chunks, to be found again by where the cube is and how late it is."""

    task: TaskState
    recall: Recall

    @classmethod
    def of(cls, demonstrations: Demonstrations, task: TaskState) -> Self:
        """Of all scenes.

        Raises:
            RetrievalError: if the task has labels that a simulated cube has not.
        """
        if unknown := set(task.names) - {*LABELS, FRAME}:
            raise RetrievalError(
                f"The simulator knows {', '.join(LABELS)} of the cube, not "
                f"{', '.join(sorted(unknown))}: name the labels, TaskState.of(…, labels=[…])."
            )
        keys = task.keys(demonstrations)
        return cls(task, Recall.of(keys, demonstrations.actions, Metric.PLAIN))

    def __call__(
        self, cube: Float[np.ndarray, " 4"], frame: int
    ) -> Float[np.ndarray, "chunk joint"]:
        """What was demonstrated in the nearest situation."""
        known = dict(zip(LABELS, map(float, cube), strict=True)) | {FRAME: float(frame)}
        world = np.array([known[name] for name in self.task.names])
        return self.recall((world - self.task.mean) * self.task.factor)


def retrieved_by_task(env: PickCube, recall: TaskRecall) -> Condition:
    """At every inference the nearest demonstration's chunk, by what the simulator knows.

    Args:
        env: the very one that the rollouts happen in.
    """

    def donors(model: HookedACT, history: History) -> Donors:
        chunk = torch.from_numpy(recall(env.cube, len(history.actions)))
        return {"demonstration": {"hook_actions": chunk[None]}}

    whole = Intervention.at(Site("hook_actions"), FromScene("demonstration"))
    return Condition("nearest demonstration: task", whole, donors)


def retrieved_at_vectors(model: HookedACT, demonstrations: Demonstrations) -> Condition:
    """At every inference the chunk of the demonstration with the nearest action vectors.

    All vectors that are carried out count together, standardised.

    Args:
        demonstrations: with keys of `vector_site(model)`.

    Raises:
        RetrievalError: if these are missing.
    """
    positions = executed_positions(model.config)
    keys = flat_keys(demonstrations, vector_site(model).name, positions)
    recall = Recall.of(keys, demonstrations.actions)

    def nearest(x: Tensor, part: Tensor) -> Tensor:
        keys = x.float().flatten(1).cpu().numpy()
        return torch.from_numpy(np.stack([recall(key) for key in keys])).to(part)

    name = "nearest demonstration: vector"
    return answered(name, Tail(model), positions, Site("hook_actions"), nearest)


def flat_keys(
    demonstrations: Demonstrations, site: str, positions: tuple[int, ...]
) -> Float[np.ndarray, "scene d"]:
    """One key a scene: where a site has one for every position, those at some, one after another.

    Raises:
        RetrievalError: if there is no such site.
    """
    if site not in demonstrations.keys:
        raise RetrievalError(
            f"There are no keys of {site!r}; there is {', '.join(demonstrations.keys)}."
        )
    keys = demonstrations.keys[site]
    return keys[:, list(positions)].reshape(len(keys), -1) if keys.ndim == 3 else keys
