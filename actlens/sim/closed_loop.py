"""Interventions in closed loop: the same starts without and with them, and what that changed.

    env, simulator = simulator_for(model), simulator_for(model, render=False)
    patch = Intervention.at(model.site("encoder.hook_out[top]"), FromScene("twin"))
    condition = Condition("what the top camera saw", patch, cube_elsewhere(simulator))
    found = compare(model, env, draw_starts(10), [condition])
    found.summary()

The start is the sampling unit: every interval and test goes over starts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from jaxtyping import Float

from actlens.errors import InterventionError
from actlens.model.act import HookedACT
from actlens.notebook import DrawnAsTable
from actlens.sim.conditions import REPEATED, UNDISTURBED, Condition, Start
from actlens.sim.controlled import Episode, roll_out
from actlens.sim.environment import PickCube
from actlens.sim.paired_success import paired_success
from actlens.statistics import false_discovery, pooled_ratio, wilson


@dataclass(frozen=True, eq=False)
class ClosedLoop(DrawnAsTable):
    """Every start under every condition; `frame()` and `summary()` are the tables."""

    episodes: Mapping[str, tuple[Episode, ...]]
    """By condition, in the starts' order; the undisturbed ones are the first."""
    seed: int = 0
    """Of the bootstrap."""

    @property
    def starts(self) -> tuple[Start, ...]:
        """Where the episodes began."""
        return tuple(episode.start for episode in self.episodes[UNDISTURBED.name])

    def frame(self) -> pd.DataFrame:
        """One row per rollout: condition, start, outcome, displacement, and what was done.

        `tip_error_mm` is the horizontal distance from gripper to cube where the gripper closed, at
        `closed_x`, `closed_y` (metres; where it was lowest if it never `closed`). `path_mm` is the
        mean over control steps of the distance between the gripper and that of the undisturbed
        rollout at the same step; `end_mm` that at the last. `followed` is how far the closing place
        moved from the undisturbed one's towards the twin's cube, as a share of the way between the
        two cubes: 0 at the own cube, 1 at the twin's. `inferences` and `acted` count those of the
        rollout and those at which something was done, `changed` the elements that differed.
        """
        rows = []
        for name, episodes in self.episodes.items():
            undisturbed = self.episodes[UNDISTURBED.name]
            for number, (episode, plain) in enumerate(zip(episodes, undisturbed, strict=True)):
                start, result = episode.start, episode.result
                apart = 1000 * np.linalg.norm(result.tip - plain.result.tip, axis=-1)
                x, y = _closing_place(episode)
                along, way = _towards_twin(episode, plain)
                rows.append(
                    {
                        "condition": name,
                        "start": number,
                        "cube_x": start.cube_xy[0],
                        "cube_y": start.cube_xy[1],
                        "seed": start.seed,
                        "success": result.success,
                        "closed": result.closed,
                        "closing_step": result.closing_step,
                        "closed_x": x,
                        "closed_y": y,
                        "tip_error_mm": result.tip_error_mm,
                        "path_mm": float(apart[1:].mean()),
                        "end_mm": float(apart[-1]),
                        "followed": along / way,
                        "inferences": len(episode.inferences),
                        "acted": len(episode.acted),
                        "first_acted": _first_acted(episode),
                        "changed": episode.changed,
                        "max_change": episode.max_change,
                    }
                )
        return pd.DataFrame(rows).astype({"first_acted": "Int64"})

    def summary(self) -> pd.DataFrame:
        """One row per condition, with 95 % intervals over starts.

        `success` with Wilson's interval. Against the undisturbed rollouts of the same starts:
        `success_change` with Tango's interval, starts `lost` and `gained`, `p` (exact McNemar) and
        `q` (Benjamini-Hochberg over the conditions); means of the change of `tip_error_mm`, of
        `path_mm` and the pooled `followed`, each with a bootstrap over starts (no interval below
        five). `tip_error_mm` is the median, `acted` the mean number of inferences.
        """
        frame = self.frame()
        outcome = frame.pivot(index="start", columns="condition", values="success").astype(bool)
        error = frame.pivot(index="start", columns="condition", values="tip_error_mm")
        plain = UNDISTURBED.name
        rows = []
        for name, episodes in self.episodes.items():
            mine = frame[frame.condition == name]
            n, successes = len(mine), int(mine.success.sum())
            low, high = wilson(successes, n)
            row = {
                "condition": name,
                "rollouts": n,
                "successes": successes,
                "success": successes / n,
                "success_low": low,
                "success_high": high,
                "closed": int(mine.closed.sum()),
                "tip_error_mm": float(mine.tip_error_mm.median()),
                "acted": float(mine.acted.mean()),
                "changed": int(mine.changed.sum()),
                "max_change": float(mine.max_change.max()),
            }
            if name != plain:
                paired = paired_success(outcome[plain].to_numpy(), outcome[name].to_numpy())
                row |= {
                    "lost": paired.lost,
                    "gained": paired.gained,
                    "success_change": paired.change,
                    "success_change_low": paired.low,
                    "success_change_high": paired.high,
                    "p": paired.p,
                }
                every = zip(episodes, self.episodes[plain], strict=True)
                along, way = np.array([_towards_twin(*pair) for pair in every]).T
                worse = (error[name] - error[plain]).to_numpy()
                pooled = partial(pooled_columns, seed=self.seed)
                row |= pooled("tip_error_change_mm", worse, np.ones(n))
                row |= pooled("path_mm", mine.path_mm.to_numpy(), np.ones(n))
                row |= pooled("followed", along, way)
            rows.append(row)
        table = pd.DataFrame(rows)
        tested = ~table.condition.isin([plain, REPEATED.name])
        table["q"] = false_discovery(table.p.where(tested).to_numpy())
        return table


def compare(
    model: HookedACT,
    env: PickCube,
    starts: Sequence[Start],
    conditions: Sequence[Condition],
    *,
    steps: int = 90,
    repeated: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ClosedLoop:
    """Roll out every start undisturbed, undisturbed once more (the floor), and in each condition.

    Args:
        env: with pictures if the policy looks at them (`simulator_for`).
        steps: control steps of a rollout, 40 ms each; a demonstration has 75.
        repeated: whether to roll out the floor.
        seed: of the bootstrap.
        progress: called with (rollouts done, rollouts in all).

    Raises:
        InterventionError: if there is no start, two conditions share a name, or a condition never
            acted in a rollout.
    """
    every = distinct(starts, (UNDISTURBED, *(REPEATED,) * repeated, *conditions))
    found: dict[str, list[Episode]] = {condition.name: [] for condition in every}
    for number, start in enumerate(starts):
        for place, condition in enumerate(every):
            found[condition.name].append(roll_out(model, env, start, condition, steps=steps))
            progress(number * len(every) + place + 1, len(starts) * len(every))
    return ClosedLoop({name: tuple(episodes) for name, episodes in found.items()}, seed)


def pooled_columns(
    name: str,
    numerator: Float[np.ndarray, " start"],
    denominator: Float[np.ndarray, " start"],
    *,
    seed: int,
) -> dict[str, float]:
    """The pooled ratio over starts and its bootstrap, as `name`, `name_low` and `name_high`."""
    pooled = pooled_ratio(numerator, denominator, seed=seed)
    bounds = (pooled.estimate, pooled.low, pooled.high)
    return {
        f"{name}{end}": float(value)
        for end, value in zip(("", "_low", "_high"), bounds, strict=True)
    }


def distinct(starts: Sequence[Start], conditions: Sequence[Condition]) -> Sequence[Condition]:
    """The conditions, if a comparison can be made of them.

    Raises:
        InterventionError: if there is no start or two conditions share a name.
    """
    names = [condition.name for condition in conditions]
    if not starts or len(set(names)) < len(names):
        raise InterventionError(
            f"A comparison needs starts ({len(starts)} given) and conditions whose names differ "
            f"(given {', '.join(map(repr, names))})."
        )
    return conditions


def _closing_place(episode: Episode) -> Float[np.ndarray, " 2"]:
    """Where the gripper was when it closed: x and y in metres."""
    return episode.result.tip[episode.result.closing_step, :2]


def _towards_twin(episode: Episode, undisturbed: Episode) -> tuple[float, float]:
    """How far the closing place moved along the way to the twin's cube, times that way; its square.

    NaN where the start has no twin.
    """
    if episode.start.elsewhere_xy is None:
        return np.nan, np.nan
    way = np.subtract(episode.start.elsewhere_xy, episode.start.cube_xy)
    moved = _closing_place(episode) - _closing_place(undisturbed)
    return float(moved @ way), float(way @ way)


def _first_acted(episode: Episode) -> int | None:
    return episode.acted[0].control_step if episode.acted else None
