"""Rollouts that are kept as they come: an interrupted run goes on where it was left."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

import actlens.sim
from actlens.errors import InterventionError
from actlens.model.act import HookedACT
from actlens.patching.identity import code_version, model_hash
from actlens.shards import Plan, Progress, begin, encode, open_run, read_all, source_hash
from actlens.shards.folder import RUN_FILE
from actlens.sim.conditions import Start
from actlens.sim.regions import Region
from actlens.sim.rollout import RolloutResult


@dataclass(frozen=True)
class KeptRollout:
    """What is kept of one rollout."""

    region: str
    number: int
    """Of the start in its region."""
    condition: str
    cube_xy: tuple[float, float]
    seed: int
    success: bool
    closed: bool
    closing_step: int
    tip_error_mm: float
    tip: Float[np.ndarray, "time 3"]
    changed: int
    """Elements that were changed, over all inferences."""
    keys: Mapping[str, Float[np.ndarray, "inference d"]] = field(default_factory=dict)
    """By site, if the rollout was watched."""


@dataclass(frozen=True)
class Place:
    """A start, and which of its region's it is."""

    region: Region
    number: int
    start: Start


Roll = Callable[[Place, str], KeptRollout]
"""Carries out one rollout: (place, condition's name) -> what is kept."""


def kept(
    place: Place,
    condition: str,
    result: RolloutResult,
    *,
    changed: int = 0,
    keys: Mapping[str, Float[np.ndarray, "inference d"]] | None = None,
) -> KeptRollout:
    """What is kept of a rollout's result."""
    return KeptRollout(
        place.region.value,
        place.number,
        condition,
        place.start.cube_xy,
        place.start.seed,
        bool(result.success),
        result.closed,
        result.closing_step,
        result.tip_error_mm,
        result.tip.astype(np.float32),
        changed,
        keys or {},
    )


def identity(model: HookedACT, **facts: Any) -> dict[str, Any]:
    """What decides every number of a run: the policy, the code, and the facts given."""
    here = source_hash(Path(actlens.sim.__file__).parent)
    return {"policy": model_hash(model), **code_version(), "simulator": here, **facts}


def require_same_run(folder: Path, asked: Mapping[str, Any]) -> None:
    """Refuse a folder that holds rollouts of something else, before anything is computed.

    Raises:
        RunError: if it does, or what it holds is damaged.
    """
    if (folder / RUN_FILE).exists():
        theirs = open_run(folder).plan
        Plan.of(asked, ((unit.name, unit.what) for unit in theirs.units)).require_same(
            theirs, folder
        )


def complete_rollouts(
    folder: Path,
    asked: Mapping[str, Any],
    wanted: Sequence[tuple[Place, str]],
    roll: Roll,
    *,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[KeptRollout, ...]:
    """Carry out what the folder lacks, keep each at once, and give all in order.

    Args:
        asked: `identity(…)`.
        wanted: places and conditions, each once.

    Raises:
        InterventionError: if nothing is wanted, or something twice.
        RunError: if the folder holds rollouts of something else, or cannot be written.
    """
    items = [
        (
            f"{condition}, {place.region.value} {place.number}",
            {
                "condition": condition,
                "region": place.region.value,
                "number": place.number,
                "cube_xy": list(place.start.cube_xy),
                "seed": place.start.seed,
            },
        )
        for place, condition in wanted
    ]
    plan = Plan.of(asked, items)
    if not items or len({unit.key for unit in plan.units}) < len(items):
        raise InterventionError(f"{len(items)} rollouts are wanted: give some, and none twice.")
    run = begin(folder, plan)
    lacking = [i for i, unit in enumerate(plan.units) if run.read(unit) is None]
    found, began = len(items) - len(lacking), time.monotonic()
    for done, i in enumerate(lacking):
        progress(Progress(found + done, len(items), found, time.monotonic() - began))
        unit = plan.units[i]
        run.store(unit, encode(roll(*wanted[i]), key=unit.key))
    progress(Progress(len(items), len(items), found, time.monotonic() - began))
    return tuple(read_all([run], KeptRollout))
