"""One episode with something done to the policy: inside its network, to what it sees, its weights.

Hooks live only at inference steps; control steps in between are answered from the action queue, and
so carry out what an intervened inference decided.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from actlens.config import STATE_KEY
from actlens.errors import InterventionError, SceneError
from actlens.hooks import HookFunction, Reader, Receipt
from actlens.interventions import as_hooks
from actlens.model.act import HookedACT
from actlens.scene import Observation
from actlens.sim.conditions import UNDISTURBED, Condition, History, Perturb, Start
from actlens.sim.environment import CAMERAS, PickCube
from actlens.sim.kinematics import JOINTS
from actlens.sim.rollout import RolloutResult, as_observation, rollout


@dataclass(frozen=True, eq=False)
class Inference:
    """One inference of a rollout."""

    control_step: int
    inference_step: int
    chunk: Float[np.ndarray, "chunk joint"]
    """The predicted joint targets, in dataset units, as the queue took them over."""
    receipts: tuple[Receipt, ...] = ()
    """What was done here: one for a changed observation, one for what the rollout happened within,
    one per edit; none if nothing was."""


@dataclass(frozen=True, eq=False)
class Episode:
    """A rollout under one condition."""

    condition: str
    start: Start
    result: RolloutResult
    inferences: tuple[Inference, ...]

    @property
    def acted(self) -> tuple[Inference, ...]:
        """Those inferences at which the condition did something."""
        return tuple(one for one in self.inferences if one.receipts)

    @property
    def changed(self) -> int:
        """Elements that differed afterwards, over all inferences and edits."""
        return sum(receipt.changed for one in self.inferences for receipt in one.receipts)

    @property
    def max_change(self) -> float:
        """The largest absolute change at an edited part; 0 if nothing changed."""
        changes = (receipt.max_change for one in self.inferences for receipt in one.receipts)
        return max(changes, default=0.0)


def simulator_for(model: HookedACT, *, render: bool = True) -> PickCube:
    """The simulator with pictures of the size that the policy sees.

    Raises:
        SceneError: if the policy looks at something that the simulator does not show, or does not
            move its six joints.
    """
    config = model.config
    shown = {f"observation.images.{camera}" for camera in CAMERAS}
    seen = {camera.key for camera in config.cameras}
    sizes = {(camera.height, camera.width) for camera in config.cameras} or {(240, 320)}
    foreign = [*sorted(seen - shown)] + [config.env_state_key] * (config.env_state_dim is not None)
    if foreign or len(sizes) > 1:
        raise SceneError(
            f"The simulator shows {sorted(shown)} at one size and {STATE_KEY}; the policy needs "
            f"{foreign or f'pictures of the sizes {sorted(sizes)}'}."
        )
    n = len(JOINTS)
    if config.action_dim != n or config.state_dim not in (n, None):
        raise SceneError(
            f"The simulator's arm has {n} joints; the policy moves {config.action_dim} and feels "
            f"{config.state_dim}."
        )
    ((height, width),) = sizes
    return PickCube(render=render and bool(seen), height=height, width=width)


def roll_out(
    model: HookedACT,
    env: PickCube,
    start: Start,
    condition: Condition = UNDISTURBED,
    *,
    steps: int = 90,
    keep_frames: bool = False,
) -> Episode:
    """One closed-loop episode under a condition; no hook or edit stays behind, whatever happens.

    Args:
        env: the simulator; with pictures if the policy looks at them (`simulator_for`).
        steps: actions to carry out, 40 ms each.
        keep_frames: whether to keep the pictures for a film.

    Raises:
        InterventionError: if the condition never acted, which is no result but a mistake.
        HookNameError: if a site does not exist.
    """
    within, before = condition.within, {}
    if within is not None:
        before = {name: value.clone() for name, value in model.state_dict().items()}
    with nullcontext() if within is None else within(model, start):
        lasting = () if within is None else (_weights_changed(model, before),)
        controller = _Controller(model, start, condition, lasting)
        try:
            result = rollout(
                env,
                controller.select_action,
                controller.reset,
                cube_xy=start.cube_xy,
                seed=start.seed,
                steps=steps,
                keep_frames=keep_frames,
            )
        finally:
            model.reset()  # schedules count control steps only while an episode lasts
    episode = Episode(condition.name, start, result, tuple(controller.inferences))
    acted = any(len(one.receipts) > len(lasting) for one in episode.inferences)
    if condition.acts_at_inferences and not acted:
        steps_of = [one.control_step for one in episode.inferences]
        raise InterventionError(
            f"{condition.name!r} never acted in {steps} control steps: the network ran at control "
            f"step {_listed(steps_of)}, and the schedule covers none of these."
        )
    return episode


class _Controller:
    """A policy under one condition, in the two calls that `rollout` makes."""

    def __init__(
        self, model: HookedACT, start: Start, condition: Condition, lasting: tuple[Receipt, ...]
    ):
        self.model, self.start, self.condition, self.lasting = model, start, condition, lasting
        self.reset()

    def reset(self) -> None:
        self.model.reset()
        self.first: Observation = {}
        self.actions: list[np.ndarray] = []
        self.inferences: list[Inference] = []

    def select_action(self, seen: dict[str, np.ndarray]) -> np.ndarray:
        observation = as_observation(seen)
        step = len(self.actions)
        if not step:
            self.first = observation
        shown, receipts = _perturbed(self.condition.perturb, observation, step)
        if step % self.model.config.n_action_steps:  # an ensemble has 1: it always infers
            action = self.model.select_action(shown)
        else:
            action = self._infer(shown, step, receipts)
        self.actions.append(_as_array(action[0]))
        return self.actions[-1]

    def _infer(self, shown: Observation, step: int, receipts: tuple[Receipt, ...]) -> Tensor:
        model, intervention = self.model, self.condition.intervention
        edits: list[tuple[str, HookFunction]] = []
        if intervention is not None and intervention.schedule.acts_at(step):
            # Before any hook is attached: making donors runs the network, too.
            history = History(self.start, self.first, tuple(self.actions))
            edits = as_hooks(model, intervention, self.condition.donors(model, history))
        chunks: list[np.ndarray] = []
        keep = Reader(lambda chunk, hook: chunks.append(_as_array(chunk[0]).copy()))
        with model.hooks(fwd_hooks=[*edits, ("hook_actions", keep)]):
            action = model.select_action(shown)
        receipts += self.lasting + model.receipts[: len(edits)]
        self.inferences.append(Inference(step, model.clock.inference_step, chunks[0], receipts))
        return action


def _perturbed(
    perturb: Perturb | None, observation: Observation, step: int
) -> tuple[Observation, tuple[Receipt, ...]]:
    """What the policy is shown, and what was changed of it."""
    if perturb is None:
        return observation, ()
    given = {key: value.clone() for key, value in observation.items()}
    shown = perturb(given, step)
    changed, largest = 0, 0.0
    for key, value in shown.items():
        before = observation.get(key)
        change = value.double() if before is None else value.double() - before.double()
        changed += int((change != 0).sum())
        largest = max(largest, float(change.abs().max()))
    if shown is given and not changed:
        return observation, ()
    return shown, (Receipt("observation", 1, changed, largest),)


def _weights_changed(model: HookedACT, before: Mapping[str, Tensor]) -> Receipt:
    """How the policy's weights differ from those of before."""
    changed, largest = 0, 0.0
    for name, value in model.state_dict().items():
        if not torch.equal(value, before[name]):
            change = value.double() - before[name].double()
            changed += int((change != 0).sum())
            largest = max(largest, float(change.abs().max()))
    return Receipt("weights", 1, changed, largest)


def _as_array(values: Tensor) -> np.ndarray:
    """On the CPU; numpy knows no bfloat16."""
    return (values.float() if values.dtype.itemsize < 4 else values).numpy(force=True)


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:4])) + (" …" if len(steps) > 4 else "")
