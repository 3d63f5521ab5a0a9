"""Evaluated edits as tables with intervals, and as one score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from actlens.notebook import DrawnAsTable
from actlens.rome.cases import Case
from actlens.rome.evaluation import MEASURES, Evaluated, Measure
from actlens.rome.probes import Group, Role
from actlens.statistics import MIN_CLUSTERS, Interval, pooled_ratio, wilson

if TYPE_CHECKING:
    import pandas as pd

_DRAWS = 2000


@dataclass(frozen=True)
class Anchor:
    """A published score of CounterFact, in percent: what the same words meant for facts."""

    name: str
    score: float
    efficacy: float
    generalisation: float
    specificity: float


ANCHORS = (
    Anchor("ROME, GPT-2 XL", 89.2, 100.0, 96.4, 75.4),
    Anchor("fine-tuning, GPT-2 XL", 65.1, 100.0, 87.9, 40.4),
    Anchor("ROME, GPT-J", 91.5, 99.9, 99.1, 78.9),
)
"""Meng et al. 2022, table 4."""


@dataclass(frozen=True)
class Score:
    """Efficacy, generalisation and specificity of one way to edit, with 95 % intervals by episode.

    `efficacy` is the share of requests granted within the tolerance (Wilson), `near` the mean share
    carried over to near scenes, `far` the mean drift in scenes of the same phase far away, `other`
    in other phases. `total` is the harmonic mean of efficacy, near and 1 - far, each within 0 and
    1 (Meng et al. 2022, section 3.4).
    """

    efficacy: Interval
    near: Interval
    far: Interval
    other: Interval
    total: Interval
    n_cases: int


@dataclass(frozen=True)
class RomeEvaluation(DrawnAsTable):
    """Ways to grant the same requests, each tried on all of them."""

    asked: str
    """The kind of request in words."""
    cases: tuple[Case, ...]
    """One an episode, the sampling unit."""
    groups: tuple[Group, ...]
    evaluated: tuple[Evaluated, ...]
    noise: Float[np.ndarray, " case"]
    """Drift of the unedited policy under sensor noise, as a share of what is asked for."""
    seed: int = 0

    def frame(self) -> "pd.DataFrame":
        """One row per way, case and group; columns as `Measure`."""
        import pandas as pd

        rows = []
        for one in self.evaluated:
            for c, case in enumerate(self.cases):
                for g, group in enumerate(self.groups):
                    if members := case.target.probes[g]:
                        rows.append(
                            {
                                "asked": self.asked,
                                "way": one.name,
                                "episode": case.target.scene.episode,
                                "frame": case.target.scene.frame,
                                "group": group.name,
                                "role": group.role.name.lower(),
                                "scenes": len(members),
                                **dict(zip(map(str, MEASURES), one.values[c, g], strict=True)),
                                "relative_norm": one.relative_norm[c],
                                "failure": one.failures[c],
                            }
                        )
        return pd.DataFrame(rows)

    def by_group(self) -> "pd.DataFrame":
        """One row per way and group: means over cases, and bounds as `_low` and `_high`."""
        import pandas as pd

        tables = []
        for one in self.evaluated:
            found = _mean(one.values, self.seed)
            table: dict[str, object] = {
                "asked": self.asked,
                "way": one.name,
                "group": [group.name for group in self.groups],
                "role": [group.role.name.lower() for group in self.groups],
                "cases": np.isfinite(one.values[:, :, 0]).sum(0),
            }
            for m, name in enumerate(MEASURES):
                table[str(name)] = found.estimate[:, m]
                table |= {f"{name}_low": found.low[:, m], f"{name}_high": found.high[:, m]}
            tables.append(pd.DataFrame(table))
        return pd.concat(tables, ignore_index=True)

    def score(self, one: Evaluated) -> Score:
        """Of one of the ways."""
        return score(one, self.groups, self.seed)

    def scores(self) -> "pd.DataFrame":
        """One row per way, columns as `Score` with bounds, and the change's mean relative norm."""
        import pandas as pd

        rows = []
        for one in self.evaluated:
            found = self.score(one)
            row: dict[str, object] = {"asked": self.asked, "way": one.name, "cases": found.n_cases}
            for name in ("efficacy", "near", "far", "other", "total"):
                row |= columns(name, getattr(found, name))
            known = one.relative_norm[np.isfinite(one.relative_norm)]
            row["relative_norm"] = float(known.mean()) if len(known) else np.nan
            row["failed"] = sum(map(bool, one.failures))
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def null(self) -> Interval:
        """Drift of the unedited policy under sensor noise."""
        return _mean(self.noise, self.seed)


def score(one: Evaluated, groups: Sequence[Group], seed: int = 0) -> Score:
    """The score of one way, whole cases drawn for the bootstrap."""
    granted = one.values[:, 0, MEASURES.index(Measure.GRANTED)]
    near = _over(one.values, groups, Role.NEAR, Measure.CARRIED)
    far = _over(one.values, groups, Role.FAR, Measure.DRIFT)
    other = _over(one.values, groups, Role.OTHER, Measure.DRIFT)
    n = len(granted)
    low, high = wilson(int(granted.sum()), n)
    return Score(
        Interval(np.asarray(granted.mean()), np.asarray(low), np.asarray(high)),
        _mean(near, seed),
        _mean(far, seed),
        _mean(other, seed),
        _total(granted, near, far, seed),
        n,
    )


def columns(name: str, found: Interval) -> dict[str, float]:
    """An interval as three columns of a table."""
    bounds = ("", found.estimate), ("_low", found.low), ("_high", found.high)
    return {f"{name}{suffix}": float(value) for suffix, value in bounds}


def _over(
    values: Float[np.ndarray, "case group measure"],
    groups: Sequence[Group],
    role: Role,
    measure: Measure,
) -> Float[np.ndarray, " case"]:
    """The mean over the groups of a role that a case has."""
    of_role = [g for g, group in enumerate(groups) if group.role is role]
    table = values[:, of_role, MEASURES.index(measure)]
    known = np.isfinite(table)
    total, n = np.where(known, table, 0.0).sum(1), known.sum(1)
    return np.divide(total, n, out=np.full(len(table), np.nan), where=n > 0)


def _mean(values: Float[np.ndarray, " *case"], seed: int) -> Interval:
    """The mean over cases, which are of different episodes, with a bootstrap over them."""
    rows = np.moveaxis(values, 0, -1)
    return pooled_ratio(rows, np.where(np.isfinite(rows), 1.0, np.nan), seed=seed, draws=_DRAWS)


def _total(
    granted: Float[np.ndarray, " case"],
    near: Float[np.ndarray, " case"],
    far: Float[np.ndarray, " case"],
    seed: int,
) -> Interval:
    """The harmonic mean, and its bootstrap over cases."""
    parts = np.stack([granted, near, 1 - far])
    if len(granted) < MIN_CLUSTERS:
        return Interval(np.asarray(_harmonic(parts)), np.asarray(np.nan), np.asarray(np.nan))
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(granted), (_DRAWS, len(granted)))
    tried = [_harmonic(parts[:, rows]) for rows in drawn]
    low, high = np.quantile(tried, (0.025, 0.975))
    return Interval(np.asarray(_harmonic(parts)), np.asarray(low), np.asarray(high))


def _harmonic(parts: Float[np.ndarray, "part case"]) -> float:
    known = np.isfinite(parts)
    n = known.sum(1)
    if not n.all():
        return float("nan")
    means = (np.where(known, parts, 0).sum(1) / n).clip(0, 1)
    return float(len(means) / (1 / means).sum()) if means.all() else 0.0
