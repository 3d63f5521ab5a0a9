"""What a twin stores: the vectors that the last decoder MLP reads, and the answers to them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from actlens.config import ACTION_KEY
from actlens.model.act import HookedACT
from actlens.planted.errors import PlantError
from actlens.scene import Scene, stack

_BATCH = 16


@dataclass(frozen=True)
class Stored:
    """Scenes as the last decoder MLP sees them, with an action for every chunk position; float64.

    One entry is one chunk position of one scene. Scenes of one episode belong together.
    """

    inputs: Float[Tensor, "scene position d_model"]
    """The action vectors after cross-attention and its norm."""
    actions: Float[Tensor, "scene position joint"]
    """Normalised, as the policy's head gives them."""
    valid: Bool[Tensor, "scene position"]
    """False where the episode had ended: no action was demonstrated."""
    episode: Int[np.ndarray, " scene"]
    frame: Int[np.ndarray, " scene"]

    def __post_init__(self) -> None:
        shapes = {self.inputs.shape[:2], self.actions.shape[:2], self.valid.shape}
        if len(shapes) > 1 or len(self.episode) != len(self.inputs) != len(self.frame):
            raise PlantError(
                f"Inputs {tuple(self.inputs.shape)}, actions {tuple(self.actions.shape)} and valid "
                f"{tuple(self.valid.shape)} must have one row for each of the {len(self.episode)} "
                "scenes, and as many chunk positions."
            )

    @classmethod
    def of(
        cls,
        model: HookedACT,
        scenes: Sequence[Scene],
        actions: Float[Tensor, "scene chunk joint"] | None = None,
    ) -> Self:
        """Run the scenes up to the last decoder MLP.

        Args:
            actions: what to answer, dataset units (degrees); the demonstrated chunks if None.
                `model(scene)` for all scenes makes twins that agree with the policy itself.

        Raises:
            PlantError: if no actions are given and a scene has none, or too short ones.
            SceneError: if a scene does not fit the policy.
        """
        chunk = model.config.chunk
        valid = torch.ones(len(scenes), chunk, dtype=torch.bool)
        if actions is None:
            chunks, pads = zip(*(_demonstrated(scene, chunk) for scene in scenes), strict=True)
            actions, valid = torch.stack(chunks), ~torch.stack(pads)
        return cls(
            action_vectors(model, scenes),
            model.normalizer.normalize(ACTION_KEY, actions.to(model.action_head.weight)).double(),
            valid,
            np.array([scene.episode for scene in scenes]),
            np.array([scene.frame for scene in scenes]),
        )

    def __len__(self) -> int:
        return len(self.inputs)

    def entries(self) -> tuple[Float[Tensor, "entry d_model"], Float[Tensor, "entry joint"]]:
        """Inputs and answers of all valid chunk positions."""
        return self.inputs[self.valid], self.actions[self.valid]

    def with_actions(self, actions: Float[Tensor, "scene position joint"]) -> "Stored":
        """The same scenes with other (normalised) answers."""
        return replace(self, actions=actions.double())

    def of_scenes(self, chosen: Sequence[int]) -> "Stored":
        """Some of the scenes."""
        at = np.asarray(chosen)
        parts = (self.inputs[at], self.actions[at], self.valid[at])
        return Stored(*parts, self.episode[at], self.frame[at])


@torch.no_grad()
def action_vectors(
    model: HookedACT, scenes: Sequence[Scene]
) -> Float[Tensor, "scene position d_model"]:
    """What the last decoder MLP reads, float64."""
    hook = f"decoder.{model.config.n_decoder_layers - 1}.hook_action_vector"
    parts = []
    for start in range(0, len(scenes), _BATCH):
        batch = stack(scenes[start : start + _BATCH])
        parts.append(model.run_with_cache(batch, names_filter=hook)[1][hook].double().cpu())
    return torch.cat(parts)


def _demonstrated(
    scene: Scene, chunk: int
) -> tuple[Float[Tensor, "chunk joint"], Bool[Tensor, " chunk"]]:
    if scene.action is None or len(scene.action) != chunk:
        found = "no action" if scene.action is None else f"{len(scene.action)} actions"
        raise PlantError(f"Scene {scene.address} has {found}; the policy answers {chunk}.")
    pad = torch.zeros(chunk, dtype=torch.bool)
    return scene.action, pad if scene.action_is_pad is None else scene.action_is_pad
