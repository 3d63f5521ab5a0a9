"""The scenes of the battery: demonstrations, and scenes of episodes that were not demonstrated."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from actlens.errors import SceneError
from actlens.mechanism import Tail
from actlens.model.act import HookedACT
from actlens.retrieval import (
    Demonstrations,
    PerPosition,
    beyond_demonstrations,
    run_demonstrations,
    sites_of,
)
from actlens.scene import Scene
from actlens.scenes.dataset import Dataset, open_dataset
from experiments.scene_choice import BUNDLED_DATA, Data, Policy, open_demonstrations

UNSEEN = "so101-pick-cube-unseen"
STREAM = "decoder stream"
"""What the tail of a pre-norm decoder starts from; under post-norm it is the action vector."""
BETWEEN, BEYOND = "between", "beyond"
"""Unseen places, by where they lie from the demonstrated ones."""
REGION_NAMES = {"train": "new places", "held_out": "held-out cells", "strip": "strip"}
"""Of unseen scenes, by the region that their episode is labelled with."""
_BEYOND = "strip"


@dataclass(frozen=True)
class Sources:
    """Where scenes come from."""

    demonstrations: Dataset
    unseen: Dataset | None

    @classmethod
    def of(cls, policy: Policy, dataset: Data, unseen: Data) -> "Sources":
        """What the options name.

        Raises:
            SceneError: if they name no demonstrations for a policy that has none of its own, or
                the same episodes as demonstrations and as unseen.
        """
        known = open_demonstrations(dataset, policy.path)
        own = dataset.root is None and dataset.repo_id is None
        if unseen.root is not None or unseen.repo_id is not None:
            return cls(known, open_demonstrations(unseen, ""))
        if unseen.episodes:
            chosen = tuple(known.episode(index) for index in unseen.episodes)
            left = tuple(e for e in known.episodes if e.index not in unseen.episodes)
            if not left:
                raise SceneError("All episodes are unseen ones (--unseen.episodes): none is left.")
            split = lambda episodes: dataclasses.replace(known, episodes=episodes)
            return cls(split(left), split(chosen))
        if own and policy.path.startswith(BUNDLED_DATA):
            return cls(known, open_dataset(UNSEEN))
        return cls(known, None)

    def frames(self, moments: int) -> list[int]:
        """Frames at the same shares of the shortest episode; the first is 0, the last none.

        Raises:
            SceneError: if the shortest has fewer frames than that.
        """
        lengths = [e.length for d in (self.demonstrations, self.unseen) if d for e in d.episodes]
        if not 1 <= moments <= min(lengths):
            raise SceneError(
                f"Of episodes of {min(lengths)} frames, 1 to {min(lengths)} moments can be looked "
                f"at, not {moments} (--moments)."
            )
        return [min(lengths) * moment // moments for moment in range(moments)]

    def unseen_scenes(self, chunk: int, frames: list[int], *, quick: bool) -> Iterator[Scene]:
        """Scenes that were not demonstrated, if there are any; of every second episode if quick."""
        if self.unseen is not None:
            episodes = [e.index for e in self.unseen.episodes[:: 2 if quick else 1]]
            yield from self.unseen.scenes(chunk=chunk, episodes=episodes, frames=frames)


@dataclass(frozen=True)
class Known:
    """Scenes that were run."""

    scenes: list[Scene]
    ran: Demonstrations

    @classmethod
    def of(cls, model: HookedACT, scenes: list[Scene], progress: Callable[[int], None]) -> "Known":
        """Run every scene once."""
        sites = [*sites_of(model)]
        if model.config.pre_norm:
            sites.append(PerPosition(STREAM, Tail(model).hook))
        return cls(scenes, run_demonstrations(model, scenes, sites, progress=progress))

    def first(self, positions: int) -> "Known":
        """With chunks cut."""
        return Known(self.scenes, self.ran.first(positions))


def regions_of(
    dataset: Dataset, demonstrations: Demonstrations, unseen: Known, place: tuple[str, ...]
) -> tuple[dict[str, Bool[np.ndarray, " scene"]], Bool[np.ndarray, " scene"]]:
    """Sets of unseen scenes by name, and which scenes lie beyond the demonstrations.

    By the region that episodes are labelled with; else by where the object is, if that is known.
    """
    labels = {e.index: e.labels.get("region") for e in dataset.episodes}
    named = [labels[scene.episode] for scene in unseen.scenes]
    if all(name is not None for name in named):
        names = np.array([REGION_NAMES.get(str(name), str(name)) for name in named])
        beyond = names == _BEYOND
        return {str(name): names == name for name in dict.fromkeys(names.tolist())}, beyond
    known = set(unseen.ran.labels) & set(demonstrations.labels)
    if not set(place) <= known:
        every = np.ones(len(named), dtype=bool)
        return {"unseen": every}, ~every
    beyond = beyond_demonstrations(demonstrations, unseen.ran, place)
    parts = {BETWEEN: ~beyond, BEYOND: beyond}
    return {name: rows for name, rows in parts.items() if rows.any()}, beyond


def check_apart(demonstrations: list[Scene], unseen: list[Scene]) -> None:
    """No episode may be both.

    Raises:
        SceneError: if one is.
    """
    names = lambda scenes: {(scene.source, scene.episode) for scene in scenes}
    if both := sorted(names(demonstrations) & names(unseen)):
        raise SceneError(
            f"{len(both)} unseen episodes are among the demonstrations, as episode {both[0][1]} "
            "is: they would find themselves. Leave them out of --dataset.episodes."
        )
