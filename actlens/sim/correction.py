"""How much of what an intervention does in open loop does the control loop undo?

The intervention acts at one inference, at control step s; before it nothing differs. What it does
is measured at the gripper, in millimetres, k control steps after s, as the distance between two
rollouts, one with the intervened inference and one without. This is done in three ways:

- open: the chunk predicted at s is carried out whole; the policy does not look again;
- blind: the policy goes on, but its later inferences give what they gave in the undisturbed
  rollout: the loop throws the rest of the chunk away, and does not see where the arm is;
- closed: the policy goes on as usual, and sees where the arm is.

The corrected share is 1 - closed / open, of sums over starts. It has two parts: what fresh chunks
undo, 1 - blind / open, and what looking undoes, (blind - closed) / open. The second is negative
where the policy, seeing the arm displaced, stays with the displacement. Chunks are absolute joint
targets, so the first alone brings a stiff arm back.

For k up to `n_action_steps` the three agree by construction. Under temporal ensembling the loop
also blends the intervened chunk with its neighbours; that belongs to the first part.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from actlens.config import ACTConfig
from actlens.errors import InterventionError
from actlens.interventions import Schedule
from actlens.model.act import HookedACT
from actlens.model.action_queue import new_queue
from actlens.notebook import DrawnAsTable
from actlens.scene import Observation
from actlens.sim.closed_loop import distinct
from actlens.sim.conditions import REPEATED, UNDISTURBED, Condition, Start
from actlens.sim.controlled import Episode, roll_out
from actlens.sim.environment import PickCube
from actlens.statistics import pooled_ratio

SMALLEST_MM = 0.1
"""Mean open-loop displacement below which there is nothing to correct, and no share."""


@dataclass(frozen=True, eq=False)
class Displacement:
    """How far one intervened inference moved the gripper, by start and control step after it."""

    open_mm: Float[np.ndarray, "start step"]
    blind_mm: Float[np.ndarray, "start step"]
    closed_mm: Float[np.ndarray, "start step"]


@dataclass(frozen=True, eq=False)
class Correction(DrawnAsTable):
    """The displacements under every condition; `summary()` is the table people read."""

    starts: tuple[Start, ...]
    at: int
    """The control step of the intervened inference."""
    displacements: Mapping[str, Displacement]
    """By condition; the first is the floor, an undisturbed rollout repeated."""
    seed: int = 0
    """Of the bootstrap."""

    @property
    def after(self) -> int:
        """Control steps that were followed after it."""
        return self.displacements[REPEATED.name].open_mm.shape[1] - 1

    def frame(self) -> pd.DataFrame:
        """One row per condition, start and control step `after` the inference: three distances."""
        names = ("open_mm", "blind_mm", "closed_mm")
        tables = []
        for condition, found in self.displacements.items():
            start, after = np.indices(found.open_mm.shape)
            table = pd.DataFrame({"condition": condition, "start": start.ravel()})
            table["after"] = after.ravel()
            tables.append(table.assign(**{name: getattr(found, name).ravel() for name in names}))
        return pd.concat(tables, ignore_index=True)

    def summary(self, after: int | None = None) -> pd.DataFrame:
        """One row per condition, so many control steps `after` the inference (all, if not given).

        Means over starts of `open_mm`, `blind_mm` and `closed_mm`; `corrected` and its two parts
        `by_fresh_chunks` and `by_looking`, each with a bootstrap over starts (`_low`, `_high`; none
        below five starts). Shares are missing where there was less than 0.1 mm to correct.

        Raises:
            InterventionError: if so many steps were not followed.
        """
        k = self.after if after is None else after
        if not 0 <= k <= self.after:
            raise InterventionError(f"{self.after} control steps were followed, not {after}.")
        rows = []
        for condition, found in self.displacements.items():
            whole, blind, closed = (
                x[:, k] for x in (found.open_mm, found.blind_mm, found.closed_mm)
            )
            row = {
                "condition": condition,
                "rollouts": len(whole),
                "at": self.at,
                "after": k,
                "open_mm": float(whole.mean()),
                "blind_mm": float(blind.mean()),
                "closed_mm": float(closed.mean()),
            }
            undone = {
                "corrected": whole - closed,
                "by_fresh_chunks": whole - blind,
                "by_looking": blind - closed,
            }
            for name, part in undone.items():
                row |= self._share(name, part, whole)
            rows.append(row)
        return pd.DataFrame(rows)

    def _share(
        self, name: str, part: Float[np.ndarray, " start"], whole: Float[np.ndarray, " start"]
    ) -> dict[str, float]:
        if whole.mean() < SMALLEST_MM:
            return dict.fromkeys((name, f"{name}_low", f"{name}_high"), np.nan)
        share = pooled_ratio(part, whole, seed=self.seed)
        bounds = (share.estimate, share.low, share.high)
        return {
            f"{name}{end}": float(x) for end, x in zip(("", "_low", "_high"), bounds, strict=True)
        }


def correction(
    model: HookedACT,
    env: PickCube,
    starts: Sequence[Start],
    conditions: Sequence[Condition],
    *,
    at: int = 0,
    after: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Correction:
    """What each condition does if it acts at one inference, in open and in closed loop.

    Schedules of the conditions are replaced: all act at control step `at` alone.

    Args:
        env: with pictures if the policy looks at them (`simulator_for`).
        at: an inference step of the policy.
        after: control steps to follow after it, at most a chunk (the default).
        seed: of the bootstrap.
        progress: called with (rollouts done, rollouts in all).

    Raises:
        InterventionError: if `at` is no inference step, `after` is longer than a chunk, two
            conditions share a name, one changes weights, or there is no start.
    """
    config = model.config
    after = config.chunk if after is None else after
    if at < 0 or at % config.n_action_steps or not 1 <= after <= config.chunk:
        raise InterventionError(
            f"The policy infers a chunk of {config.chunk} every {config.n_action_steps} control "
            f"steps: at={at} must be a multiple of {config.n_action_steps}, and after={after} lie "
            f"in 1..{config.chunk}."
        )
    every = [once(condition, at) for condition in distinct(starts, (REPEATED, *conditions))]
    physics = PickCube(render=False)
    found: dict[str, list[tuple[np.ndarray, ...]]] = {condition.name: [] for condition in every}
    total = len(starts) * (len(every) + 1)
    for number, start in enumerate(starts):
        done = number * (len(every) + 1)
        plain = roll_out(model, env, start, UNDISTURBED, steps=at + after)
        progress(done + 1, total)
        for place, condition in enumerate(every):
            episode = roll_out(model, env, start, condition, steps=at + after)
            found[condition.name].append(displacement(config, physics, plain, episode, at=at))
            progress(done + place + 2, total)
    stacked = {
        name: Displacement(*(np.stack(kind) for kind in zip(*each, strict=True)))
        for name, each in found.items()
    }
    return Correction(tuple(starts), at, stacked, seed)


def displacement(
    config: ACTConfig, physics: PickCube, plain: Episode, episode: Episode, *, at: int
) -> tuple[Float[np.ndarray, " step"], ...]:
    """Open, blind and closed distances in millimetres, from control step `at` on."""
    steps = len(plain.result.actions)
    before = plain.result.actions[:at]
    chunks, intervened = (
        {one.control_step: one.chunk for one in each.inferences} for each in (plain, episode)
    )
    path = lambda actions: tip_path(physics, plain.start, actions)
    whole = [path([*before, *mine[at]][:steps]) for mine in (chunks, intervened)]
    blind = path(executed(config, chunks | {at: intervened[at]}, steps))
    apart = lambda a, b: 1000 * np.linalg.norm(a - b, axis=-1)[at:]
    return (
        apart(*whole),
        apart(blind, plain.result.tip),
        apart(episode.result.tip, plain.result.tip),
    )


def once(condition: Condition, at: int) -> Condition:
    """The same condition, acting at control step `at` alone.

    Raises:
        InterventionError: if it changes weights.
    """
    if condition.within is not None:
        raise InterventionError(
            f"{condition.name!r} is in force for a whole rollout and cannot act at one inference."
        )
    intervention, perturb = condition.intervention, condition.perturb
    if intervention is not None:
        intervention = replace(intervention, schedule=Schedule(at, at + 1))
    if perturb is None:
        return replace(condition, intervention=intervention)

    def perturbed(observation: Observation, step: int) -> Observation:
        # Asked at every step, for what it remembers; its answer counts at one.
        shown = perturb({key: value.clone() for key, value in observation.items()}, step)
        return shown if step == at else observation

    return replace(condition, intervention=intervention, perturb=perturbed)


def executed(
    config: ACTConfig, chunks: Mapping[int, Float[np.ndarray, "chunk joint"]], steps: int
) -> list[Float[np.ndarray, " joint"]]:
    """The actions that a policy's queue makes of the chunks of its inferences, by control step."""
    queue, actions = new_queue(config), []
    for step in range(steps):
        if queue.needs_chunk:
            queue.push(torch.from_numpy(chunks[step])[None])
        actions.append(queue.pop()[0].numpy())
    return actions


def tip_path(
    physics: PickCube, start: Start, actions: Sequence[Float[np.ndarray, " joint"]]
) -> Float[np.ndarray, "step 3"]:
    """Where the gripper goes, in metres, if actions are carried out from a start, by simulation."""
    _, facts = physics.reset(seed=start.seed, options={"cube_xy": np.asarray(start.cube_xy)})
    tip = [facts["tip"]]
    for action in actions:
        *_, facts = physics.step(np.asarray(action, dtype=np.float32))
        tip.append(facts["tip"])
    return np.stack(tip)
