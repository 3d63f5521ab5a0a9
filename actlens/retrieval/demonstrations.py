"""Scenes as a table: their keys at every site, what was demonstrated and what the policy does."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from actlens.errors import SceneError
from actlens.model.act import HookedACT
from actlens.retrieval.keys import RetrievalError
from actlens.retrieval.sites import Site, check_names, sites_of
from actlens.scene import Scene, stack


@dataclass(frozen=True)
class Demonstrations:
    """Scenes with expert actions, in rows; frames of an episode are not independent."""

    keys: Mapping[str, Float[np.ndarray, "scene d"] | Float[np.ndarray, "scene position d"]]
    """By the name of the site; float32."""
    actions: Float[np.ndarray, "scene chunk joint"]
    """The expert's, in dataset units."""
    predicted: Float[np.ndarray, "scene chunk joint"]
    """The policy's."""
    counted: Bool[np.ndarray, "scene chunk"]
    """False where the episode had ended: nothing was demonstrated there."""
    episodes: Int[np.ndarray, " scene"]
    """Numbers that tell (source, episode) apart."""
    frames: Int[np.ndarray, " scene"]
    labels: Mapping[str, Float[np.ndarray, " scene"]]
    """What is known of the world in every scene, by name."""

    def __len__(self) -> int:
        return len(self.actions)

    @cached_property
    def n_episodes(self) -> int:
        """The number of independent units."""
        return len(np.unique(self.episodes))

    def at(self, rows: Int[np.ndarray, " row"] | Bool[np.ndarray, " scene"]) -> "Demonstrations":
        """Some of the scenes."""
        return Demonstrations(
            {name: values[rows] for name, values in self.keys.items()},
            self.actions[rows],
            self.predicted[rows],
            self.counted[rows],
            self.episodes[rows],
            self.frames[rows],
            {name: values[rows] for name, values in self.labels.items()},
        )

    def first(self, positions: int) -> "Demonstrations":
        """The same scenes with chunks cut to their first positions: those that are executed."""
        return replace(
            self,
            keys={k: v[:, :positions] if v.ndim == 3 else v for k, v in self.keys.items()},
            actions=self.actions[:, :positions],
            predicted=self.predicted[:, :positions],
            counted=self.counted[:, :positions],
        )

    def at_positions(self, positions: Sequence[int]) -> "Demonstrations":
        """The same scenes with chunks of some positions: neighbouring ones hardly differ."""
        at = list(positions)
        return replace(
            self,
            keys={k: v[:, at] if v.ndim == 3 else v for k, v in self.keys.items()},
            actions=self.actions[:, at],
            predicted=self.predicted[:, at],
            counted=self.counted[:, at],
        )

    def with_keys(self, name: str, keys: Float[np.ndarray, "scene d"]) -> "Demonstrations":
        """The same scenes with one more site."""
        return replace(self, keys={**self.keys, name: keys})


@torch.no_grad()
def run_demonstrations(
    model: HookedACT,
    scenes: Iterable[Scene],
    sites: Sequence[Site] | None = None,
    *,
    batch_size: int = 8,
    progress: Callable[[int], None] = lambda n_scenes: None,
) -> Demonstrations:
    """Run the policy once on every scene and keep its keys at all sites.

    Args:
        scenes: with demonstrated actions, at least as many as the policy's chunk has.
        sites: all of `sites_of(model)` if not given.
        progress: told how many scenes were run, batch by batch.

    Raises:
        RetrievalError: if two sites share a name, or there is no scene.
        SceneError: if a scene does not fit the policy or has too few actions, or the model is in
            training mode.
    """
    sites = tuple(sites_of(model) if sites is None else sites)
    check_names(sites)
    if model.training:
        raise SceneError("The model is in training mode, where dropout is random: call `eval()`.")
    hooks = list(dict.fromkeys(hook for site in sites for hook in site.hooks))
    kept: list[Scene] = []
    keys: dict[str, list[np.ndarray]] = {site.name: [] for site in sites}
    predicted = []
    stream = iter(scenes)
    while batch := list(islice(stream, batch_size)):
        observed = stack(batch)
        if hooks:
            actions, cache = model.run_with_cache(observed, names_filter=hooks)
        else:
            actions, cache = model(observed), {}
        predicted.append(actions.cpu().numpy())
        for site in sites:
            keys[site.name].append(site.keys(cache, observed).cpu().numpy())
        # Pictures are large: what is kept of a scene is what is known of it.
        kept += [replace(scene, observation={}) for scene in batch]
        progress(len(batch))
    if not kept:
        raise RetrievalError("There is no scene to retrieve from.")
    rows = {name: np.concatenate(parts) for name, parts in keys.items()}
    return Demonstrations(rows, *_known(kept, np.concatenate(predicted)))


def _known(scenes: Sequence[Scene], predicted: np.ndarray) -> tuple:
    """All columns but the keys."""
    chunk = predicted.shape[1]
    for scene in scenes:
        if scene.action is None or len(scene.action) < chunk:
            n = 0 if scene.action is None else len(scene.action)
            raise SceneError(
                f"Scene {scene.address} has {n} demonstrated actions; the policy predicts {chunk}. "
                f"Take scenes with chunk={chunk}."
            )
    names = [(scene.source, scene.episode) for scene in scenes]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    shared = set.intersection(*(set(scene.labels) for scene in scenes))
    return (
        np.stack(
            [scene.action[:chunk].cpu().numpy() for scene in scenes if scene.action is not None]
        ),
        predicted,
        np.stack([_counted(scene, chunk) for scene in scenes]),
        np.array([numbers[name] for name in names]),
        np.array([scene.frame for scene in scenes]),
        {name: np.array([scene.labels[name] for scene in scenes]) for name in sorted(shared)},
    )


def _counted(scene: Scene, chunk: int) -> Bool[np.ndarray, " chunk"]:
    if scene.action_is_pad is None:
        return np.ones(chunk, dtype=bool)
    return ~scene.action_is_pad[:chunk].cpu().numpy()
