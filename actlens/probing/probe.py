"""Linear probes with what they must be held against: episodes, chance, memory, the input."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from sklearn.model_selection import KFold

from actlens.errors import SceneError
from actlens.kernel_ridge import Fold, grouped_folds
from actlens.notebook import DrawnAsTable
from actlens.probing.features import Feature
from actlens.probing.ridge import baselines, predictions
from actlens.probing.targets import Target
from actlens.statistics import false_discovery, pooled_ratio

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Probed:
    """One target read off one site."""

    site: str
    is_baseline: bool
    target: str
    unit: str
    r2: float
    """Of scenes of episodes that were not fitted on, against the mean of those that were."""
    low: float
    high: float
    error: float
    """Median over scenes, in the unit."""
    p: float
    """Share of control tasks, in which every episode has another one's values, read as well."""
    control: float
    """Mean R2 of control tasks, grouped by episode: there is nothing to find."""
    leaky: float
    """R2 if frames of one episode may lie on both sides of the split; NaN with one frame each."""
    leaky_control: float
    """The same for control tasks: what a probe gets by knowing the episode (Hewitt and Liang
    2019)."""

    @property
    def selectivity(self) -> float:
        """Leaky minus leaky control; NaN with one frame an episode."""
        return self.leaky - self.leaky_control


@dataclass(frozen=True)
class ProbeTable(DrawnAsTable):
    """Every target at every site."""

    probes: tuple[Probed, ...]
    n_scenes: int
    n_episodes: int

    def frame(self) -> "pd.DataFrame":
        """One row per site and target; `q` is Benjamini-Hochberg over all of them."""
        import pandas as pd

        rows = [asdict(one) | {"selectivity": one.selectivity} for one in self.probes]
        table = pd.DataFrame(rows)
        table["q"] = false_discovery(table.p.to_numpy())
        return table


def probe(
    features: Sequence[Feature],
    targets: Sequence[Target],
    groups: Int[np.ndarray, " scene"],
    *,
    n_folds: int = 5,
    n_controls: int = 39,
    seed: int = 0,
) -> ProbeTable:
    """Fit linear probes for every target on every site.

    Args:
        groups: the episode of every scene. Folds and intervals keep episodes whole, because frames
            of one are nearly the same.
        n_controls: control tasks for every probe; p cannot fall below 1 / (1 + n_controls).
        seed: of control tasks, leaky splits and bootstraps.

    Raises:
        SceneError: if there are fewer than two episodes, or features and targets are of other
            scenes.
    """
    groups = np.unique(groups, return_inverse=True)[1]
    n, n_episodes = len(groups), int(groups.max()) + 1
    if n_episodes < 2:
        raise SceneError("A probe needs scenes of two episodes at least.")
    for one in (*features, *targets):
        if len(one.values) != n:
            raise SceneError(f"{one.name} has {len(one.values)} scenes, the episodes have {n}.")
    rng = np.random.default_rng(seed)
    folds = list(grouped_folds(groups, n_folds))
    frames = list(KFold(n_folds, shuffle=True, random_state=seed).split(np.zeros(n)))
    leaky = [Fold(train, test) for train, test in frames] if n > n_episodes else []
    orders = [_other_episodes(groups, rng) for _ in range(n_controls)]
    # Controls of a target are further columns, so that all share a fit.
    columns = [np.concatenate([t.values, *(t.values[o] for o in orders)], 1) for t in targets]
    every = np.concatenate(columns, 1)
    edges = np.cumsum([0, *(part.shape[1] for part in columns)])
    probes = []
    for feature in features:
        found = predictions(feature.values, every, groups, folds)
        known = _scores(found, every, folds)
        open_to_leaks = _scores(predictions(feature.values, every, groups, leaky), every, leaky)
        for target, start, stop in zip(targets, edges, edges[1:], strict=False):
            here, width = slice(start, stop), target.values.shape[1]
            sse, sst = (part[:, here].reshape(n, -1, width).sum(2) for part in known)
            r2 = 1 - sse.sum(0) / sst.sum(0)
            bounds = pooled_ratio(sse[:, :1].T, sst[:, :1].T, clusters=groups, seed=seed)
            leaks = np.full(2, np.nan)
            if leaky:
                a, b = (part[:, here].reshape(n, -1, width).sum((0, 2)) for part in open_to_leaks)
                leaks = np.array([1 - a[0] / b[0], (1 - a[1:] / b[1:]).mean()])
            off = target.error(found[:, start : start + width])
            probes.append(
                Probed(
                    feature.name, feature.is_baseline, target.name, target.unit, float(r2[0]),
                    float(1 - bounds.high[0]), float(1 - bounds.low[0]), float(np.median(off)),
                    float((1 + (r2[1:] >= r2[0]).sum()) / (1 + n_controls)),
                    float(r2[1:].mean()), *map(float, leaks),
                )
            )  # fmt: skip
    return ProbeTable(tuple(probes), n, n_episodes)


def _scores(
    predicted: Float[np.ndarray, "scene target"],
    targets: Float[np.ndarray, "scene target"],
    folds: Sequence[Fold],
) -> tuple[Float[np.ndarray, "scene target"], Float[np.ndarray, "scene target"]]:
    """Squared errors of the probe, and of the training mean."""
    return (predicted - targets) ** 2, (baselines(targets, folds) - targets) ** 2


def _other_episodes(
    groups: Int[np.ndarray, " scene"], rng: np.random.Generator
) -> Int[np.ndarray, " scene"]:
    """For every scene one of the episode that its own is taken for, as far into that one."""
    members = [np.flatnonzero(groups == group) for group in range(int(groups.max()) + 1)]
    taken_for = rng.permutation(len(members))
    order = np.empty(len(groups), np.int64)
    for own, other in zip(members, taken_for, strict=True):
        there = members[other]
        order[own] = there[np.arange(len(own)) * len(there) // len(own)]
    return order
