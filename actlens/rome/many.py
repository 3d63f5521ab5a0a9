"""Many edits at once: how many requests one matrix takes, by rule, and at what price elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import dist
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from actlens.config import ACTION_KEY
from actlens.model.units import spread_of
from actlens.notebook import DrawnAsTable
from actlens.rome.cases import Case, opposite
from actlens.rome.errors import EditError
from actlens.rome.evaluation import MEASURES, Measure, Scale, measure, nothing
from actlens.rome.evaluation_result import columns
from actlens.rome.many_rules import Rule
from actlens.rome.probes import Role
from actlens.rome.rivals import Change
from actlens.rome.scope import Scope
from actlens.rome.situations import Places, Situation
from actlens.rome.targets import Standing, TargetSet
from actlens.statistics import Interval, pooled_ratio, wilson

if TYPE_CHECKING:
    import pandas as pd


def compatible(cases: Sequence[Case], places: Places, scope: Scope) -> tuple[Case, ...]:
    """The cases without those that ask for the opposite of an earlier one in an alike scene."""
    kept: list[Case] = []
    for case in cases:
        here = case.target.situation
        against = [
            other
            for other in kept
            if float((case.asked * other.asked).sum()) < 0
            and abs(here.phase - other.target.situation.phase) <= scope.alike_phase
            and dist(here.place, other.target.situation.place) <= places.alike
        ]
        if not against:
            kept.append(case)
    return tuple(kept)


def contradicting(
    cases: Sequence[Case], found: TargetSet, places: Places, n: int
) -> tuple[Case, ...]:
    """Some cases, each followed by the opposite request in a neighbouring scene.

    The neighbour is another episode's scene of the same phase with the cube near; where there is
    none, a frame around.
    """
    pairs: list[Case] = []
    for case in cases:
        near = [
            number
            for group, members in zip(found.groups, case.target.probes, strict=True)
            if group.role is Role.NEAR
            for number in members
        ]
        if near and len(pairs) < 2 * n:
            pairs += [case, opposite(case, found, near[-1], places)]
    return tuple(pairs)


@dataclass(frozen=True)
class ManyEdited:
    """Some requests granted together by one rule; empty where it could not."""

    rule: str
    contradictory: bool
    n: int
    granted: Bool[np.ndarray, " case"]
    """Whether a request's own scene gets its target, within the tolerance."""
    carried: Float[np.ndarray, " case"]
    near: Float[np.ndarray, " case"]
    """Share carried over to near scenes; NaN for a case without any."""
    drift: Float[np.ndarray, " episode"]
    """Mean |change| of the joints that any request moves, in dataset units, over an episode's
    scenes that are far from every request: in phase, or in place."""
    failure: str


@dataclass(frozen=True)
class ManyEdits(DrawnAsTable):
    """How many requests one matrix takes, by rule."""

    edited: tuple[ManyEdited, ...]
    seed: int = 0

    def frame(self) -> "pd.DataFrame":
        """One row per rule and number of requests, with 95 % intervals by episode.

        `efficacy` is the share granted within the tolerance (Wilson), `carried` and `near` are
        shares of what was asked for, `drift` is in dataset units.
        """
        import pandas as pd

        rows = []
        for one in self.edited:
            row: dict[str, object] = {
                "rule": one.rule, "requests": one.n, "contradictory": one.contradictory
            }  # fmt: skip
            low, high = wilson(int(one.granted.sum()), one.n)
            share = np.asarray(one.granted.mean())
            row |= columns("efficacy", Interval(share, np.asarray(low), np.asarray(high)))
            for name in ("carried", "near", "drift"):
                values = getattr(one, name)
                known = np.where(np.isfinite(values), 1.0, np.nan)
                row |= columns(name, pooled_ratio(values, known, seed=self.seed))
            rows.append(row | {"failure": one.failure})
        return pd.DataFrame(rows)


def edit_many(
    cases: Sequence[Case],
    found: TargetSet,
    tried: Mapping[str, Rule],
    sizes: Sequence[int],
    scale: Scale,
    places: Places,
    *,
    contradictory: bool = False,
    progress: Callable[[int], None] = lambda n_requests: None,
) -> tuple[ManyEdited, ...]:
    """Grant the first requests together, by every rule and as many as every size says.

    Args:
        progress: told how many requests were granted or refused.
    """
    done = []
    for n in sorted({min(size, len(cases)) for size in sizes}):
        for name, rule in tried.items():
            some = cases[:n]
            try:
                change, failure = rule(some, found), ""
            except EditError as error:
                change, failure = nothing, str(error)
            done.append(
                _measured(
                    name,
                    some,
                    change,
                    found,
                    scale,
                    places,
                    contradictory=contradictory,
                    failure=failure,
                )
            )
            progress(n)
    return tuple(done)


def _measured(
    name: str,
    cases: Sequence[Case],
    change: Change,
    found: TargetSet,
    scale: Scale,
    places: Places,
    *,
    contradictory: bool,
    failure: str,
) -> ManyEdited:
    tables = np.stack([measure(case, change, found, scale) for case in cases])
    at = {m: i for i, m in enumerate(MEASURES)}
    near = [g for g, group in enumerate(found.groups) if group.role is Role.NEAR]
    of_near = tables[:, near, at[Measure.CARRIED]]
    known = np.isfinite(of_near)
    share = np.divide(
        np.where(known, of_near, 0).sum(1),
        known.sum(1),
        out=np.full(len(cases), np.nan),
        where=known.any(1),
    )
    return ManyEdited(
        name,
        contradictory,
        len(cases),
        tables[:, 0, at[Measure.GRANTED]] > 0,
        tables[:, 0, at[Measure.CARRIED]],
        share,
        _drift(cases, change, found, places),
        failure,
    )


def _drift(
    cases: Sequence[Case], change: Change, found: TargetSet, places: Places
) -> Float[np.ndarray, " episode"]:
    """By episode that has a scene which is far from every request: in place, or in phase."""
    standing = [
        one
        for one in found.grid
        if all(_unrelated(one, case.target.situation, places) for case in cases)
    ]
    if not standing:
        return np.full(1, np.nan)
    runs = found.runs.of_scenes([one.number for one in standing])
    at = sorted({k for case in cases for k in case.positions})
    joints = sorted({j for case in cases for j in case.joints})
    unit = spread_of(cases[0].prepared.model, ACTION_KEY, runs.actions)
    moved = ((change(runs) - runs.actions) * unit)[:, at][:, :, joints].abs().mean((1, 2))
    episodes = np.array([one.episode for one in standing])
    by_scene = moved.double().numpy()
    return np.array([by_scene[episodes == e].mean() for e in dict.fromkeys(episodes.tolist())])


def _unrelated(one: Standing, situation: Situation, places: Places) -> bool:
    """Of another phase, or of a place far away."""
    if abs(one.phase - situation.phase) > _SAME_PHASE:
        return True
    return dist(places.at[one.episode], situation.place) > places.rings[-1]


_SAME_PHASE = 0.15
