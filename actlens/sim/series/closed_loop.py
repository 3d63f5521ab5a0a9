"""Closed-loop success by where the cube stands: the same starts for every policy."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing

import numpy as np
import pandas as pd
from jaxtyping import Float

from actlens.model.act import HookedACT
from actlens.sim.conditions import Start, draw_starts
from actlens.sim.environment import PickCube
from actlens.sim.rollout import rollout
from actlens.sim.series.offline import REGIONS
from actlens.sim.series.pictures import HEIGHT, WIDTH, acting
from actlens.statistics import wilson

SHOWN = "demonstrated places"
"""What tables call the places where the cube was demonstrated."""


def starts_by_region(n: int, *, seed: int = 1000) -> dict[str, tuple[Start, ...]]:
    """`n` starts in each region of the table; the first are the same however many are drawn."""
    return {
        name: draw_starts(n, region=region, seed=seed + number)
        for number, (region, name) in enumerate(REGIONS.items())
    }


def starts_where_shown(
    shown: Float[np.ndarray, "episode 2"], n: int, *, seed: int = 1000
) -> tuple[Start, ...]:
    """`n` starts with the cube where it was demonstrated, the arm and the heading drawn anew.

    Args:
        shown: x and y of the demonstrations' starts, metres; spread over them, or each in turn
            where they are fewer.
    """
    m = len(shown)
    places = [shown[i * m // n if m > n else i % m].tolist() for i in range(n)]
    rng = np.random.default_rng([seed, m])
    return tuple(Start((x, y), int(rng.integers(2**31))) for x, y in places)


def success_by_region(
    model: HookedACT,
    starts: Mapping[str, Sequence[Start]],
    *,
    steps: int = 90,
    progress: Callable[[int], None] = lambda n_rollouts: None,
) -> pd.DataFrame:
    """Roll a policy out from every start: one row each, with `success` and `tip_error_mm`."""
    rows = []
    with closing(PickCube(render=False, height=HEIGHT, width=WIDTH)) as env:
        select_action, reset = acting(model, env)
        for region, some in starts.items():
            for start in some:
                result = rollout(
                    env,
                    select_action,
                    reset,
                    cube_xy=start.cube_xy,
                    seed=start.seed,
                    steps=steps,
                )
                x, y = start.cube_xy
                rows.append(
                    {
                        "region": region,
                        "x": x,
                        "y": y,
                        "success": result.success,
                        "tip_error_mm": result.tip_error_mm,
                    }
                )
                progress(1)
    model.reset()
    return pd.DataFrame(rows)


def success_summary(rollouts: pd.DataFrame) -> pd.DataFrame:
    """Success by region with Wilson's interval, and the median distance at closing."""
    rows = []
    for region in dict.fromkeys([SHOWN, *REGIONS.values(), *rollouts.region]):
        some = rollouts[rollouts.region == region]
        if not len(some):
            continue
        n, successes = len(some), int(some.success.sum())
        low, high = wilson(successes, n)
        rows.append(
            {
                "region": region,
                "rollouts": n,
                "successes": successes,
                "success": successes / n,
                "success_low": low,
                "success_high": high,
                "tip_error_mm": float(some.tip_error_mm.median()),
            }
        )
    return pd.DataFrame(rows)
