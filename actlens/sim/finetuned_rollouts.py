"""Fine-tuned parts in closed loop: does the arm lift the cube at new places, and still at old ones?

    starts = finetuned_starts(10, {"new places": Region.STRIP, "old places": Region.TRAIN})
    rolled = finetuned_rollouts(model, found, starts)
    rolled.summary()

Starts are fresh, so both trainings of a part are tried: those of one half of the demonstrations
from every other start. The start is the sampling unit, shared by all parts.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass

import numpy as np
import pandas as pd

from actlens.errors import InterventionError
from actlens.finetuning import Finetuning, Outcome
from actlens.model.act import HookedACT
from actlens.notebook import DrawnAsTable
from actlens.sim.closed_loop import ClosedLoop, compare
from actlens.sim.conditions import Condition, Start
from actlens.sim.controlled import simulator_for
from actlens.sim.environment import PickCube
from actlens.sim.regions import FIVE_POSITIONS, Region, sample

Place = Callable[[np.random.Generator], np.ndarray]
"""Draws a cube position (x, y) in metres."""


def in_region(region: Region) -> Place:
    """Anywhere in a part of the table."""
    return lambda rng: sample(region, rng)


def at_five_places(rng: np.random.Generator) -> np.ndarray:
    """At one of the five places of the bundled policy that knows no others."""
    return np.array(FIVE_POSITIONS[rng.integers(len(FIVE_POSITIONS))])


def far_from_five(distance: float) -> Place:
    """In demonstrated cells, farther than some metres from all five places."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        while True:
            xy = sample(Region.TRAIN, rng)
            if np.linalg.norm(np.array(FIVE_POSITIONS) - xy, axis=1).min() > distance:
                return xy

    return draw


def finetuned_starts(
    n: int, places: Mapping[str, Place], *, seed: int = 0
) -> dict[str, tuple[Start, ...]]:
    """Independent starts by the name of the places; the first are the same however many there are.

    Raises:
        InterventionError: if none are asked for.
    """
    if n < 1 or not places:
        raise InterventionError(f"{n} starts at {len(places)} kinds of places: give at least one.")
    found = {}
    for kind, (name, place) in enumerate(places.items()):
        starts = []
        for number in range(n):
            rng = np.random.default_rng([seed, kind, number])
            x, y = place(rng).tolist()
            starts.append(Start((x, y), int(rng.integers(2**31))))
        found[name] = tuple(starts)
    return found


def finetuned_rollouts(
    model: HookedACT,
    found: Finetuning,
    starts: Mapping[str, Sequence[Start]],
    *,
    env: PickCube | None = None,
    steps: int = 90,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> "FinetunedRollouts":
    """Roll out from every start without training and with every part that was trained.

    The policy's weights are changed during a rollout alone; every bit is restored afterwards.

    Args:
        starts: by the name of the places.
        env: the simulator; made for the policy if not given.
        steps: control steps of a rollout, 40 ms each.
        seed: of the bootstrap.
        progress: called with (rollouts done, rollouts in all).

    Raises:
        SceneError: if the simulator does not fit the policy.
        InterventionError: if there is no start, or nothing was trained.
    """
    if not found.outcomes:
        raise InterventionError("Nothing was trained: there is nothing to roll out.")
    if env is None:
        with closing(simulator_for(model)) as own:
            return finetuned_rollouts(
                model, found, starts, env=own, steps=steps, seed=seed, progress=progress
            )
    total = (len(found.outcomes) + 1) * sum(map(len, starts.values()))
    loops, before = {}, 0
    for name, own_starts in starts.items():
        conditions = [_condition(one, own_starts) for one in found.outcomes]
        loops[name] = compare(
            model, env, own_starts, conditions, steps=steps, repeated=False, seed=seed,
            progress=lambda done, _, before=before: progress(before + done, total),
        )  # fmt: skip
        before += (len(conditions) + 1) * len(own_starts)
    return FinetunedRollouts(loops)


def _condition(one: Outcome, starts: Sequence[Start]) -> Condition:
    """Every other start has the weights of the other half."""
    half = {start: number % 2 for number, start in enumerate(starts)}

    def within(model: HookedACT, start: Start) -> AbstractContextManager[object]:
        return one.tuned[half[start]].applied(model)

    return Condition(one.way.name, within=within)


@dataclass(frozen=True, eq=False)
class FinetunedRollouts(DrawnAsTable):
    """The rollouts by the name of the places; `summary()` is the table."""

    closed_loops: Mapping[str, ClosedLoop]

    def frame(self) -> pd.DataFrame:
        """One row per rollout, with the columns of `ClosedLoop.frame` and `places`."""
        tables = [loop.frame().assign(places=name) for name, loop in self.closed_loops.items()]
        return pd.concat(tables, ignore_index=True)

    def summary(self) -> pd.DataFrame:
        """One row per place and part, with the columns of `ClosedLoop.summary`, over starts.

        `success` has Wilson's interval, `success_change` Tango's over the same starts, `p` is
        McNemar's exact one.
        """
        tables = [loop.summary().assign(places=name) for name, loop in self.closed_loops.items()]
        return pd.concat(tables, ignore_index=True)
