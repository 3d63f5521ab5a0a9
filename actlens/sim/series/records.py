"""The records of a series as tables, and along the doses; the finished series is bundled."""

import gzip
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from actlens.mechanism import JUMP
from actlens.sim.series.closed_loop import SHOWN, success_summary
from actlens.statistics import wilson

_BUNDLED = "generalization.json.gz"
FEWEST_SEEDS = 3
"""With fewer there is no interval over seeds."""


def bundled_series() -> tuple[dict, ...]:
    """The records that are shipped."""
    path = files("actlens").joinpath("bundled", "results", _BUNDLED)
    return tuple(json.loads(gzip.decompress(path.read_bytes())))


def pack(records: Sequence[dict], path: Path) -> None:
    """Write records as one compressed file; the same records give the same bytes."""
    content = json.dumps(list(records), separators=(",", ":"), ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content.encode(), mtime=0))


def table(records: Sequence[dict], name: str) -> pd.DataFrame:
    """One table of all records, with the columns `arm`, `demonstrations`, `positions`, `seed`.

    Args:
        name: `indices`, `snaps`, `rest`, `episodes`, `rollouts`, `mechanism` or `verdict`.
    """
    parts = []
    for record in records:
        stored, arm = record["tables"][name], record["arm"]
        part = pd.DataFrame(stored["data"], columns=stored["columns"])
        places = np.nan if arm["positions"] is None else arm["positions"]
        parts.append(
            part.assign(
                arm=record["run"].rpartition("-seed-")[0],
                demonstrations=arm["demonstrations"],
                positions=places,
                seed=record["training_seed"],
            )
        )
    return pd.concat(parts, ignore_index=True)


def over_seeds(values: pd.DataFrame, by: Sequence[str], column: str) -> pd.DataFrame:
    """Mean over training seeds, smallest and largest, and Student's interval.

    Args:
        values: one row for each seed of a group.
        by: the columns that make a group.
        column: what is averaged; seeds without a value are left out and counted in `undefined`.

    Returns:
        Columns `by`, `mean`, `smallest`, `largest`, `low`, `high`, `seeds`, `undefined`; no
        interval where there are fewer than three seeds.
    """
    rows = []
    for key, group in values.groupby(list(by), sort=False, dropna=False):
        known = group[column].dropna().to_numpy(dtype=float)
        n = len(known)
        row = dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
        row |= {"seeds": n, "undefined": len(group) - n}
        row |= dict.fromkeys(("mean", "smallest", "largest", "low", "high"), np.nan)
        if n:
            row |= {"mean": known.mean(), "smallest": known.min(), "largest": known.max()}
        if n >= FEWEST_SEEDS:
            half = stats.t.ppf(0.975, n - 1) * known.std(ddof=1) / np.sqrt(n)
            row |= {"low": known.mean() - half, "high": known.mean() + half}
        rows.append(row)
    return pd.DataFrame(rows)


_ARM = ("arm", "demonstrations", "positions")


def success_along(records: Sequence[dict]) -> pd.DataFrame:
    """Closed-loop success by arm and region, over seeds; `rollouts` is of all seeds together."""
    rollouts = table(records, "rollouts")
    each = [
        success_summary(some).assign(**dict(zip((*_ARM, "seed"), key, strict=True)))
        for key, some in rollouts.groupby([*_ARM, "seed"], sort=False, dropna=False)
    ]
    shown = pd.concat(each, ignore_index=True)
    found = over_seeds(shown, (*_ARM, "region"), "success")
    sums = shown.groupby([*_ARM, "region"], sort=False, dropna=False)[["rollouts", "successes"]]
    return found.merge(sums.sum().reset_index(), on=[*_ARM, "region"])


def error_along(records: Sequence[dict], measure: str, frames: str) -> pd.DataFrame:
    """Errors by arm and region, over seeds; those in demonstrations as `SHOWN`."""
    some = _part(records, measure, frames)
    known = some.drop_duplicates(["arm", "seed"])
    known = known.assign(region=SHOWN, policy_unseen=known.policy_trained)
    return over_seeds(pd.concat([known, some]), (*_ARM, "region"), "policy_unseen")


def index_along(records: Sequence[dict], measure: str, frames: str) -> pd.DataFrame:
    """The generalisation index by arm and region, over seeds."""
    return over_seeds(_part(records, measure, frames), (*_ARM, "region"), "index")


def mechanism_along(records: Sequence[dict]) -> pd.DataFrame:
    """Every statistic of the mechanism axis, 0 like a rule and 1 like a table, over seeds.

    Jumps are shares themselves and count as they are, also where no table could be planted.
    """
    every = table(records, "mechanism")
    own = every.lookup.where(every.statistic != JUMP, every.value)
    return over_seeds(every.assign(lookup=own), (*_ARM, "statistic"), "lookup")


def verdicts_along(records: Sequence[dict], frames: str) -> pd.DataFrame:
    """Columns `arm`, `seed`, `answer`, `candidates`, `missing`: one row a policy.

    Policies without a mechanism axis have none.
    """
    judged = [record for record in records if "verdict" in record["tables"]]
    if not judged:
        return pd.DataFrame(columns=["arm", "seed", "answer", "candidates", "missing"])
    every = table(judged, "verdict")
    some = every[every.frames == frames].drop_duplicates(["arm", "seed"])
    return some[["arm", "seed", "answer", "candidates", "missing"]].reset_index(drop=True)


def success_by_distance(records: Sequence[dict], edges: Sequence[float]) -> pd.DataFrame:
    """Success of all policies by the distance (mm) from the start to the nearest demonstration.

    Wilson's intervals; rollouts of one policy share its training, so they are too narrow.

    Args:
        edges: of the bins, ascending.
    """
    rollouts = table(records, "rollouts")
    which = np.searchsorted(np.asarray(edges), rollouts.distance_mm, side="right")
    rows = []
    for i in np.unique(which):
        some = rollouts[which == i]
        n, successes = len(some), int(some.success.sum())
        low, high = wilson(successes, n)
        rows.append(
            {
                "from_mm": edges[i - 1] if i else 0.0,
                "to_mm": edges[i] if i < len(edges) else np.inf,
                "rollouts": n,
                "success": successes / n,
                "low": low,
                "high": high,
            }
        )
    return pd.DataFrame(rows)


def _part(records: Sequence[dict], measure: str, frames: str) -> pd.DataFrame:
    every = table(records, "indices")
    return every[(every.measure == measure) & (every.frames == frames)]


def along_demonstrations(found: pd.DataFrame) -> pd.DataFrame:
    """The rows of the arms whose demonstrations have places of their own."""
    return found[found.positions.isna()].reset_index(drop=True)


def along_positions(found: pd.DataFrame) -> pd.DataFrame:
    """The rows of the arms of fifty demonstrations; where each has its own place, there are
    fifty."""
    fifty = found[found.positions.notna() | (found.demonstrations == 50)]
    return fifty.assign(positions=fifty.positions.fillna(50.0)).reset_index(drop=True)
