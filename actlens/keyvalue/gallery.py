"""Some neurons to look at: the scenes that trigger them, where these look, and what follows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from actlens.interventions.mlp_runs import MLPRuns
from actlens.keyvalue.crops import Crop, crops
from actlens.keyvalue.directions import joint_spread, last_site
from actlens.keyvalue.downstream import SampledDirection, sampled_direction
from actlens.keyvalue.effects import Effects
from actlens.keyvalue.motion import Arrow, arrows, exaggeration, gripper_shift
from actlens.keyvalue.profiles import scene_weights
from actlens.keyvalue.reading import Reading
from actlens.metrics import Positions, position_weights
from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite
from actlens.scene import Scene

_LONGEST = 150.0
"""Millimetres that the longest arrow may stand for, exaggerated: a third of a picture's width."""
SceneAt = Callable[[str, int, int], Scene]
"""The scene of a source, episode and frame."""


@dataclass(frozen=True)
class ShownTrigger:
    """One trigger of a neuron."""

    scene: Scene
    position: int
    """Of the chunk, or the token."""
    coefficient: float
    adds: Float[Tensor, " joint"]
    """What the neuron adds to the action there: minus the effect of ablating it at this entry,
    exact, dataset units. In the last decoder block at that chunk position; elsewhere on average
    over what is carried out."""
    crops: tuple[Crop, ...]
    arrows: tuple[Arrow, ...]
    """That, as a motion of the gripper in every camera whose pose is known."""


@dataclass(frozen=True)
class ShownNeuron:
    """A neuron and its strongest triggers, at most one an episode."""

    neuron: int
    triggers: tuple[ShownTrigger, ...]
    direction: SampledDirection | None
    """Outside of the last decoder block: what its coefficient does, and how consistently."""


def show_neurons(
    model: HookedACT,
    block: str,
    reading: Reading,
    neurons: Sequence[int],
    scene_at: SceneAt,
    *,
    n_triggers: int = 4,
    progress: Callable[[int], None] = lambda n_neurons: None,
) -> tuple[ShownNeuron, ...]:
    """Run the strongest triggers of some neurons again, and look.

    Args:
        scene_at: loads a scene by source, episode and frame.
        n_triggers: of every neuron; one that fired in fewer episodes shows fewer, and one that
            never fired is left out.
        progress: told how many neurons were done.

    Raises:
        HookNameError: if the policy has no such block.
        SceneError: if a scene is not there.
    """
    site = MLPSite.of(model, block)
    found = []
    for neuron in neurons:
        if triggers := _strongest(reading, neuron, n_triggers):
            scenes = [scene_at(*reading.episodes[t.episode], t.frame) for t in triggers]
            runs = MLPRuns.of(model, site, scenes)
            found.append(_Asked(neuron, scenes, [t.position for t in triggers], runs))
        progress(1)
    motions = [one.motion(model) for one in found]
    shifts = [gripper_shift(model, motion.action, motion.adds) for motion in motions]
    known = [shift for shift in shifts if shift is not None]
    factor = exaggeration(torch.cat(known), longest=_LONGEST) if known else 1.0
    return tuple(
        ShownNeuron(
            one.neuron,
            tuple(one.trigger(model, block, motion, i, factor) for i in range(len(one.scenes))),
            motion.direction,
        )
        for one, motion in zip(found, motions, strict=True)
    )


class _Address(NamedTuple):
    episode: int
    frame: int
    position: int


def _strongest(reading: Reading, neuron: int, n: int) -> list[_Address]:
    """Where a neuron fires most, one entry an episode."""
    top = reading.by_episode
    at = np.flatnonzero(np.isfinite(top.coefficient[neuron]))[:n]
    parts = (top.episode, top.frame, top.position)
    return [_Address(*(int(part[neuron, i]) for part in parts)) for i in at]


@dataclass(frozen=True)
class _Motion:
    """What a neuron adds at its triggers, normalised: to which action, and what."""

    action: Float[Tensor, "trigger joint"]
    adds: Float[Tensor, "trigger joint"]
    direction: SampledDirection | None


@dataclass(frozen=True)
class _Asked:
    """A neuron with the forwards of its triggers."""

    neuron: int
    scenes: Sequence[Scene]
    positions: Sequence[int]
    runs: MLPRuns

    def motion(self, model: HookedACT) -> _Motion:
        if self.runs.site == last_site(model):
            effects = Effects.of(model, self.runs)
            each = list(enumerate(self.positions))
            adds = torch.stack([-effects.exact(i)[self.neuron, at] for i, at in each])
            action = torch.stack([self.runs.actions[i, at] for i, at in each])
            return _Motion(action.to(adds), adds, None)
        carried_out = position_weights(model.config, Positions.EXECUTED)
        carried_out = (carried_out / carried_out.sum()).to(self.runs.actions)
        mean = lambda chunk: torch.einsum("k,skj->sj", carried_out, chunk)
        rows, at = torch.arange(len(self.scenes)), torch.tensor(self.positions)
        lost = torch.zeros_like(self.runs.output)
        value = self.runs.site.layer(model).weight.detach()[:, self.neuron]
        lost[rows, at] = self.runs.keys[rows, at, self.neuron][:, None] * value
        adds = mean(self.runs.actions) - mean(self.runs.actions_with(-lost))
        direction = None
        if len(self.scenes) > 1:
            direction = sampled_direction(
                model,
                self.runs,
                self.neuron,
                rows.tolist(),
                self.positions,
                weights=scene_weights(model.config, self.scenes),
            )
        return _Motion(mean(self.runs.actions), adds, direction)

    def trigger(
        self, model: HookedACT, block: str, motion: _Motion, i: int, factor: float
    ) -> ShownTrigger:
        scene, position = self.scenes[i], self.positions[i]
        adds = motion.adds[i]
        return ShownTrigger(
            scene,
            position,
            float(self.runs.keys[i, position, self.neuron]),
            adds * joint_spread(model).to(adds),
            crops(model, block, scene, position),
            arrows(model, motion.action[i], adds, factor=factor) or (),
        )
