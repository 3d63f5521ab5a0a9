"""How well monitors' scores tell failed rollouts from successful ones: areas, rates, rivals."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from actlens.retrieval import Undefined, detection
from actlens.sim.kept_rollouts import KeptRollout
from actlens.sim.monitored_rollouts import ORACLE_DISTANCE, Score
from actlens.statistics import wilson

ALL, WITHIN = "all", "within regions"
_DRAWS = 2000


def monitor_table(
    made: Sequence[Score], rollouts: Sequence[KeptRollout], *, seed: int = 0
) -> pd.DataFrame:
    """One row per region (and two summaries), site and time of looking.

    `auc`: probability that a failure scores higher than a success, with Newcombe's interval (a
    bootstrap over starts `within regions`, where only pairs of one region are compared), and
    `over_oracle`, its difference from that of `ORACLE_DISTANCE` with a bootstrap over starts, drawn
    within regions. `hits_at_5`: largest share of failures flagged by any threshold that flags at
    most 5 % of the successes. At the demonstrations' own threshold: `flagged_failures` of
    `failures` and `flagged_successes` of `successes`, each rate with Wilson's interval.
    """
    failed = np.array([not one.success for one in rollouts])
    region = np.array([one.region for one in rollouts])
    names = list(dict.fromkeys(region.tolist()))
    oracle = next(score for score in made if score.site == ORACLE_DISTANCE)
    parts = {name: (region == name, np.zeros(len(region), int)) for name in names}
    if len(names) > 1:
        everyone = np.ones(len(region), dtype=bool)
        number = np.array([names.index(name) for name in region])
        parts |= {ALL: (everyone, 0 * number), WITHIN: (everyone, number)}
    rows = []
    for name, (at, strata) in parts.items():
        times = _draws(region[at], seed)
        theirs = areas(oracle.values[at], failed[at], strata[at], times)
        for score in made:
            values, bad = score.values[at], failed[at]
            drawn = areas(values, bad, strata[at], times)
            row = {"region": name, "site": score.site, "when": score.when.value}
            row |= {"rollouts": int(at.sum()), "failures": int(bad.sum())}
            row |= _area_columns(values, bad, drawn, stratified=name == WITHIN)
            row |= _interval("over_oracle", drawn - theirs)
            rows.append(row | _flags(score, values, bad))
    return pd.DataFrame(rows)


def _draws(region: np.ndarray, seed: int) -> Int[np.ndarray, "draw rollout"]:
    """How often each start is in each draw; the first row is the sample itself."""
    rng = np.random.default_rng(seed)
    times = np.zeros((1 + _DRAWS, len(region)), dtype=int)
    times[0] = 1
    for name in np.unique(region):
        own = np.flatnonzero(region == name)
        times[1:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=_DRAWS)
    return times


def areas(
    values: Float[np.ndarray, " rollout"],
    failed: Bool[np.ndarray, " rollout"],
    strata: Int[np.ndarray, " rollout"],
    times: Int[np.ndarray, "draw rollout"],
) -> Float[np.ndarray, " draw"]:
    """Share of pairs of a failure and a success of one stratum in which the failure is higher.

    The area under the ROC curve if there is one stratum; NaN where a draw has no such pair.

    Args:
        times: how often each rollout counts in each draw.
    """
    pairs = (failed[:, None] & ~failed & (strata[:, None] == strata)).astype(float)
    higher = (values[:, None] > values) + 0.5 * (values[:, None] == values)
    n = ((times @ pairs) * times).sum(1)
    won = ((times @ (pairs * higher)) * times).sum(1)
    return np.divide(won, n, out=np.full(len(n), np.nan), where=n > 0)


def _interval(name: str, drawn: Float[np.ndarray, " draw"]) -> Mapping[str, float]:
    known = drawn[1:][np.isfinite(drawn[1:])]
    # Draws without both outcomes have no area; where they are many, an interval would pretend.
    enough = np.isfinite(drawn[0]) and len(known) > 0.9 * (len(drawn) - 1)
    low, high = np.quantile(known, [0.025, 0.975]) if enough else (np.nan, np.nan)
    return {name: float(drawn[0]), f"{name}_low": float(low), f"{name}_high": float(high)}


def _area_columns(
    values: Float[np.ndarray, " rollout"],
    failed: Bool[np.ndarray, " rollout"],
    drawn: Float[np.ndarray, " draw"],
    *,
    stratified: bool,
) -> dict:
    found = detection(values, failed)
    quiet = found.false_alarms <= 0.05
    hits = np.nan if isinstance(found.auc, Undefined) or stratified else found.hits[quiet].max()
    if stratified or isinstance(found.auc, Undefined):
        return {**_interval("auc", drawn), "hits_at_5": hits}
    bounds = (found.auc.estimate, found.auc.low, found.auc.high)
    columns = zip(("auc", "auc_low", "auc_high"), map(float, bounds), strict=True)
    return {**dict(columns), "hits_at_5": float(hits)}


def _flags(
    score: Score, values: Float[np.ndarray, " rollout"], failed: Bool[np.ndarray, " rollout"]
) -> dict:
    row: dict[str, float] = {"threshold": score.threshold}
    for name, who in (("failures", failed), ("successes", ~failed)):
        n, flagged = int(who.sum()), int((values[who] > score.threshold).sum())
        low, high = wilson(flagged, n) if n else (np.nan, np.nan)
        row |= {name: n, f"flagged_{name}": flagged}
        row |= {f"flagged_{name}_low": low, f"flagged_{name}_high": high}
    return row
