"""Probes fitted on some scenes and asked about others: positions that nobody was shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from actlens.errors import SceneError
from actlens.kernel_ridge import Fold
from actlens.probing.features import Feature
from actlens.probing.ridge import baselines, predictions
from actlens.probing.targets import Target
from actlens.statistics import pooled_ratio

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class HeldOut:
    """One target of one site in one set of scenes that were not fitted on."""

    site: str
    target: str
    unit: str
    scenes: str
    """Name of the set."""
    r2: float
    """Against the mean of the scenes that were fitted on: negative where that would do better."""
    low: float
    high: float
    error: float
    """Median, in the unit."""


def probe_held_out(
    features: Sequence[Feature],
    targets: Sequence[Target],
    groups: Int[np.ndarray, " scene"],
    parts: Mapping[str, Int[np.ndarray, " part"]],
    *,
    fitted: str,
    seed: int = 0,
) -> tuple[HeldOut, ...]:
    """Fit on one part of the scenes, predict the others.

    Args:
        groups: the episode of every scene.
        parts: name -> its scenes' numbers; no episode in two of them.
        fitted: the part that is fitted on.

    Raises:
        SceneError: if there is no such part, or an episode lies in two.
    """
    if fitted not in parts:
        raise SceneError(f"There is no part {fitted!r} to fit on; there are {', '.join(parts)}.")
    train = parts[fitted]
    found = []
    for name, test in parts.items():
        if name == fitted:
            continue
        if shared := set(groups[train]) & set(groups[test]):
            raise SceneError(f"Episode {min(shared)} lies in {fitted!r} and in {name!r}.")
        for feature in features:
            for target in targets:
                fold = [Fold(train, test)]
                predicted = predictions(feature.values, target.values, groups, fold)
                centre = baselines(target.values, fold)
                sse = ((predicted - target.values)[test] ** 2).sum(1)
                sst = ((centre - target.values)[test] ** 2).sum(1)
                ratio = pooled_ratio(sse[None], sst[None], clusters=groups[test], seed=seed)
                off = target.error(predicted)[test]
                found.append(
                    HeldOut(
                        feature.name, target.name, target.unit, name,
                        float(1 - ratio.estimate[0]), float(1 - ratio.high[0]),
                        float(1 - ratio.low[0]), float(np.median(off)),
                    )
                )  # fmt: skip
    return tuple(found)


def held_out_frame(found: Sequence[HeldOut]) -> "pd.DataFrame":
    """One row per site, target and set of scenes."""
    import pandas as pd

    return pd.DataFrame([vars(one) for one in found])
