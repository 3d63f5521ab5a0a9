"""Everything that is measured of one policy of the series, as one record."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.spatial.distance import cdist

from actlens.errors import SceneError
from actlens.mechanism import MechanismAxis, mechanism_axis
from actlens.model.act import HookedACT
from actlens.planted import PlantError
from actlens.provenance import provenance
from actlens.retrieval import FunctionAxis
from actlens.scene import Scene
from actlens.scenes.dataset import Dataset, open_dataset
from actlens.sim.regions import Region
from actlens.sim.series.arms import Run
from actlens.sim.series.closed_loop import (
    SHOWN,
    starts_by_region,
    starts_where_shown,
    success_by_region,
)
from actlens.sim.series.offline import ALL, BETWEEN, FIRST, REGIONS, offline, reference_of
from actlens.sim.series.pictures import dataset_seen_by
from actlens.train import CONFIG_FILE, LOG_FILE
from actlens.verdict import index_of, judge

_NOT_OF_THE_POLICY = ("dataset", "episodes", "output_dir", "cache", "save_every", "log_every")
"""Of a training configuration: stated already, or of this machine alone."""
FEWEST_TO_FIT = 10
"""Demonstrations below which rivals of a policy are not fitted to it."""
STRIP = REGIONS[Region.STRIP]
TABLE, UNSEEN = "so101-pick-cube", "so101-pick-cube-unseen"


@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured of every policy; the same for all."""

    frames: tuple[int, ...] = (0, 15, 30, 45, 60)
    """Of every episode, offline."""
    rollouts: int = 20
    """In each region, from the same starts for all policies; as many where the cube was shown."""
    steps: int = 90
    """Control steps of a rollout."""
    seed: int = 1000
    """Of the starts."""
    mechanism_scenes: int = 60
    """Of those trained on and of the others, at most, at each of `frames`."""


def evaluate_policy(
    model: HookedACT,
    demonstrations: Dataset,
    episodes: tuple[int, ...],
    options: EvaluationOptions,
    *,
    progress: Callable[[str], None] = lambda stage: None,
) -> dict[str, pd.DataFrame]:
    """Tables by name: those of `Offline.frames`, `episodes`, `rollouts`, `mechanism`, `verdict`."""
    unseen = open_dataset(UNSEEN)
    progress("offline")
    reference = reference_of(open_dataset(TABLE), model.config.chunk, options.frames)
    found = offline(model, demonstrations, episodes, unseen, reference, frames=options.frames)
    tables = found.frames() | {"episodes": found.episodes()}
    progress("closed loop")
    shown = demonstrated_starts(demonstrations, episodes)
    known = {SHOWN: starts_where_shown(shown, options.rollouts, seed=options.seed)}
    starts = known | starts_by_region(options.rollouts, seed=options.seed)
    rollouts = success_by_region(model, starts, steps=options.steps)
    places = np.stack([rollouts.x, rollouts.y], 1)
    rollouts["distance_mm"] = (1000 * cdist(places, shown).min(1)).tolist()
    tables["rollouts"] = rollouts
    progress("mechanism")
    try:
        axis = mechanism(model, demonstrations, episodes, unseen, options)
    except (PlantError, SceneError) as error:
        return tables | {"mechanism": _lacking(str(error))}
    tables["mechanism"] = axis.frame().assign(rule_error=axis.rule_error, undefined="")
    tables["verdict"] = verdicts(found.axes, axis)
    return tables


def mechanism(
    model: HookedACT,
    demonstrations: Dataset,
    episodes: tuple[int, ...],
    unseen: Dataset,
    options: EvaluationOptions,
) -> MechanismAxis:
    """The mechanism axis, on some of the demonstrations that the policy was shown.

    There is no contest of surrogates for a policy that was shown fewer than ten demonstrations.

    Raises:
        PlantError: if no rule can be planted on the policy's activations.
        SceneError: if no two scenes are neighbours.
    """

    def some(dataset: Dataset, known: list[int]) -> list[Scene]:
        n = min(len(known), options.mechanism_scenes)
        spread = [known[i * len(known) // n] for i in range(n)]
        return list(dataset_seen_by(model, dataset, spread, options.frames))

    trained = some(demonstrations, list(episodes))
    enough = len(episodes) >= FEWEST_TO_FIT
    held_out = some(unseen, [episode.index for episode in unseen.episodes]) if enough else []
    return mechanism_axis(model, trained, held_out)


def verdicts(
    axes: Mapping[tuple[str, str], FunctionAxis], mechanism: MechanismAxis
) -> pd.DataFrame:
    """The evidence of the verdict, at frame 0 and at all frames, with its answer in every row."""
    found = []
    for frames in (FIRST, ALL):
        inside, beyond = (index_of(axes[region, frames]) for region in (BETWEEN, STRIP))
        verdict = judge(inside, mechanism, beyond=beyond)
        found.append(
            verdict.frame().assign(
                frames=frames,
                answer=str(verdict.answer),
                candidates=", ".join(verdict.candidates),
                missing="; ".join(verdict.missing),
            )
        )
    return pd.concat(found, ignore_index=True)


def _lacking(reason: str) -> pd.DataFrame:
    """One row that says why there is no mechanism axis."""
    names = ("value", "low", "high", "rule", "table", "lookup", "rule_error")
    row = {"statistic": "none", **dict.fromkeys(names, np.nan), "undefined": reason}
    return pd.DataFrame([row])


def demonstrated_starts(
    demonstrations: Dataset, episodes: Sequence[int]
) -> Float[np.ndarray, "episode 2"]:
    """The cube's x and y in metres where some episodes start."""
    labels = [demonstrations.labels(episode) for episode in episodes]
    return np.array([[label["cube_x"][0], label["cube_y"][0]] for label in labels])


def record_of(
    run: Run,
    policy: Path,
    demonstrations: Dataset,
    options: EvaluationOptions,
    *,
    progress: Callable[[str], None] = lambda stage: None,
) -> dict:
    """The run's record: what it was shown, how it was trained, every table, provenance."""
    began = time.monotonic()
    model = HookedACT.from_pretrained(policy)
    episodes = run.episodes(demonstrations)
    tables = evaluate_policy(model, demonstrations, episodes, options, progress=progress)
    log = [json.loads(line) for line in (policy.parent / LOG_FILE).read_text().splitlines()]
    trained = json.loads((policy.parent / CONFIG_FILE).read_text())
    return {
        "run": run.name,
        "arm": asdict(run.arm),
        "training_seed": run.seed,
        "dataset": demonstrations.name,
        "episodes": list(episodes),
        "training": {"l1": log[-1]["l1"]}
        | {name: value for name, value in trained.items() if name not in _NOT_OF_THE_POLICY},
        "provenance": provenance(model, options, seconds=time.monotonic() - began, facts={}),
        "tables": {name: _columns(table) for name, table in tables.items()},
    }


def _columns(table: pd.DataFrame) -> dict[str, list]:
    """A table as JSON, four significant digits."""
    short = table.map(lambda v: float(f"{v:.4g}") if isinstance(v, float) else v)
    return json.loads(short.to_json(orient="split", index=False))
