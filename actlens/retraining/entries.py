"""Chunk positions of scenes as rows: what the decoder's end reads, and what was demonstrated."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from actlens.config import ACTION_KEY
from actlens.errors import SceneError
from actlens.model.act import HookedACT
from actlens.model.units import spread_of
from actlens.planted import Stored
from actlens.scene import Scene, stack
from actlens.tails import input_hook

_BATCH = 8


@dataclass(frozen=True)
class Entries:
    """Rows that a decoder's end can be trained on; of the policy's dtype, on its device."""

    x: Float[Tensor, "entry d_model"]
    """At `tails.input_hook`."""
    actions: Float[Tensor, "entry joint"]
    """Normalised."""
    episode: Int[np.ndarray, " entry"]
    """Numbers from 0."""
    unit: Float[Tensor, " joint"]
    """What one normalised unit of an action is in dataset units (degrees, say)."""
    indices: tuple[int, ...]
    """By episode, its number in the dataset."""

    @classmethod
    def of(cls, model: HookedACT, stored: Stored, positions: Sequence[int] | None = None) -> Self:
        """The valid entries of stored scenes.

        Args:
            positions: of the chunk; all if not given.
        """
        like = model.action_head.weight
        at = slice(None) if positions is None else list(positions)
        valid = stored.valid[:, at]
        numbers, number = np.unique(stored.episode, return_inverse=True)
        actions = stored.actions[:, at][valid].to(like)
        return cls(
            stored.inputs[:, at][valid].to(like),
            actions,
            np.broadcast_to(number[:, None], tuple(valid.shape))[valid.cpu().numpy()],
            spread_of(model, ACTION_KEY, actions[:1]),
            tuple(int(index) for index in numbers),
        )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def n_episodes(self) -> int:
        """The number of independent units."""
        return len(self.indices)

    def every(self, step: int) -> "Entries":
        """Every so many of the entries; all episodes keep some if they are long enough."""
        return replace(
            self, x=self.x[::step], actions=self.actions[::step], episode=self.episode[::step]
        )

    def errors(self, answers: Float[Tensor, "run entry joint"]) -> Float[np.ndarray, "run episode"]:
        """Mean absolute error by episode, in dataset units, over its entries and all joints."""
        off = ((answers - self.actions).abs() * self.unit).mean(-1).double().cpu().numpy()
        counts = np.bincount(self.episode, minlength=self.n_episodes)
        sums = np.stack([np.bincount(self.episode, row, self.n_episodes) for row in off])
        return sums / counts

    def members(self, chosen: Bool[np.ndarray, "run episode"]) -> Bool[Tensor, "run entry"]:
        """The entries of each run's episodes."""
        return torch.from_numpy(chosen[:, self.episode])


@torch.no_grad()
def cached(
    model: HookedACT,
    scenes: Iterable[Scene],
    *,
    progress: Callable[[int], None] = lambda n_scenes: None,
) -> Stored:
    """Run scenes up to the decoder's end, and keep what it reads beside what was demonstrated.

    As `Stored.of`, for any architecture and for scenes that come one by one. All that lies in front
    is computed once, without dropout and without noise: its training is over.

    Args:
        progress: told how many scenes were run, batch by batch.

    Raises:
        SceneError: if there is no scene, one does not fit the policy, or has no demonstrated chunk.
    """
    hook, chunk = input_hook(model.config), model.config.chunk
    inputs, actions, valid, episode, frame = [], [], [], [], []
    stream = iter(scenes)
    while batch := list(islice(stream, _BATCH)):
        inputs.append(model.run_with_cache(stack(batch), names_filter=hook)[1][hook].cpu())
        for scene in batch:
            if scene.action is None or len(scene.action) < chunk:
                raise SceneError(
                    f"Scene {scene.address} has no {chunk} demonstrated actions to train on: take "
                    f"scenes with chunk={chunk}."
                )
            pad = scene.action_is_pad
            actions.append(scene.action[:chunk])
            valid.append(torch.ones(chunk, dtype=torch.bool) if pad is None else ~pad[:chunk])
            episode.append(scene.episode)
            frame.append(scene.frame)
        progress(len(batch))
    if not inputs:
        raise SceneError("There is no scene to train on.")
    like = model.action_head.weight
    normalised = model.normalizer.normalize(ACTION_KEY, torch.stack(actions).to(like))
    return Stored(
        torch.cat(inputs).double(),
        normalised.cpu().double(),
        torch.stack(valid),
        np.array(episode),
        np.array(frame),
    )
