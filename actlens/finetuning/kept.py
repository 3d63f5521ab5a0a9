"""Scenes run once: what a part in training does not change, and the rest of the network behind it.

A step of the decoder's MLP then costs what lies behind the cross-attention, not a forward.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from actlens.config import ACTION_KEY
from actlens.finetuning.errors import FinetuningError
from actlens.finetuning.parts import Part
from actlens.interventions.evaluate import steps
from actlens.interventions.network import ACTIONS, QUERY_POS, TOKEN_POS, Op, network
from actlens.interventions.rest import actions_of, activations, read_by
from actlens.model.act import HookedACT
from actlens.scene import Scene, episode_numbers


@dataclass(frozen=True)
class KeptScenes:
    """Scenes with what was demonstrated, and the activations that trainings go on from."""

    activations: Mapping[str, Float[Tensor, "scene ..."]]
    """By hook point; those that are the same in all scenes have one row."""
    target: Float[Tensor, "scene chunk joint"]
    """Demonstrated, normalised."""
    counted: Bool[Tensor, "scene chunk"]
    """False where the episode had ended."""
    episodes: Int[np.ndarray, " scene"]
    """Numbers that tell (source, episode) apart."""
    scenes: tuple[Scene, ...]
    """Without their observations."""

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: HookedACT,
        scenes: Sequence[Scene],
        parts: Sequence[Part],
        *,
        progress: Callable[[int], None] = lambda n_scenes: None,
    ) -> Self:
        """Run scenes with the policy's present weights, for trainings of some parts.

        Args:
            progress: told how many scenes were run, batch by batch.

        Raises:
            FinetuningError: if there is no scene, one has too few demonstrated actions, or the
                policy is in training mode.
            SceneError: if a scene does not fit the policy.
        """
        if not scenes:
            raise FinetuningError("There is no scene to run.")
        if model.training:
            raise FinetuningError("The model is in training mode: call `eval()`.")
        target, counted = _demonstrated(scenes, model.config.chunk)
        names = dict.fromkeys(name for part in parts for name in Behind(model, part).reads)
        kept = activations(model, scenes, names, progress=progress)
        like = model.action_head.weight
        fine = target.to(like.device, torch.promote_types(like.dtype, torch.float32))
        return cls(
            kept,
            model.normalizer.normalize(ACTION_KEY, fine).to(like.dtype),
            counted.to(like.device),
            episode_numbers(scenes),
            tuple(replace(scene, observation={}) for scene in scenes),
        )

    def __len__(self) -> int:
        return len(self.target)

    @property
    def n_episodes(self) -> int:
        """The number of independent units."""
        return len(np.unique(self.episodes))

    def at(self, rows: Int[np.ndarray, " row"]) -> "KeptScenes":
        """Some of the scenes; their episodes keep their numbers."""
        index = torch.from_numpy(np.asarray(rows)).to(self.target.device)
        kept = {
            name: value if name == TOKEN_POS else value[index]
            for name, value in self.activations.items()
        }
        scenes = tuple(self.scenes[row] for row in rows)
        return KeptScenes(
            kept, self.target[index], self.counted[index], self.episodes[rows], scenes
        )

    def of_episodes(self, chosen: Sequence[int] | Int[np.ndarray, " episode"]) -> "KeptScenes":
        """The scenes of some episodes, by number."""
        return self.at(np.flatnonzero(np.isin(self.episodes, np.asarray(chosen))))

    def batches(self, size: int) -> Iterator["KeptScenes"]:
        """All scenes in their order, some at a time."""
        for start in range(0, len(self), size):
            yield self.at(np.arange(start, min(start + size, len(self))))


class Behind(nn.Module):
    """The network from what a part reads to the actions, as a function of its parameters.

    The operations are the intervention engine's with the model's own weights, so that nothing of
    the model is written down twice; gradients pass through them.
    """

    def __init__(self, model: HookedACT, part: Part):
        super().__init__()
        self.model = model
        self.first = tuple(dict.fromkeys(part.first))
        self.reads = tuple(name for name in read_by(self._ops()) if name != QUERY_POS)
        """The hook points whose activations it goes on from."""

    def forward(self, kept: Mapping[str, Tensor]) -> Float[Tensor, "scene chunk joint"]:
        """Normalised actions."""
        # Anew every time: weights that are swapped for a call must be the ones that are used.
        values = {name: kept[name] for name in self.reads}
        values[QUERY_POS] = self.model.decoder.query_pos.weight[None]
        return actions_of(self._ops(), values)

    def with_weights(
        self, weights: Mapping[str, Tensor], kept: Mapping[str, Tensor]
    ) -> Float[Tensor, "scene chunk joint"]:
        """Normalised actions with some parameters replaced, by the model's names for them.

        Gradients reach the given tensors; the model is as before afterwards.
        """
        swapped = {f"model.{name}": weight for name, weight in weights.items()}
        return functional_call(self, swapped, (kept,))

    def _ops(self) -> list[Op]:
        return steps(network(self.model, self.first), self.first, {ACTIONS})


def _demonstrated(
    scenes: Sequence[Scene], chunk: int
) -> tuple[Float[Tensor, "scene chunk joint"], Bool[Tensor, "scene chunk"]]:
    actions, counted = [], []
    for scene in scenes:
        if scene.action is None or len(scene.action) < chunk:
            n = 0 if scene.action is None else len(scene.action)
            raise FinetuningError(
                f"Scene {scene.address} has {n} demonstrated actions; the policy predicts {chunk}. "
                f"Take scenes with chunk={chunk}."
            )
        actions.append(scene.action[:chunk])
        padded = scene.action_is_pad
        known = torch.ones(chunk, dtype=torch.bool) if padded is None else ~padded[:chunk]
        counted.append(known)
    return torch.stack(actions), torch.stack(counted)
