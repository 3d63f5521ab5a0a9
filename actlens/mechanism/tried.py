"""What a policy does with a surrogate in the place of its decoder's MLP, or of all behind it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.model_selection import GroupKFold

from actlens.config import ACTION_KEY
from actlens.errors import SceneError
from actlens.mechanism.stand_in import (
    LINEAR,
    NEAREST,
    SMOOTH,
    SURROGATES,
    Surrogate,
    mlp_stand_in,
    tail_stand_in,
)
from actlens.mechanism.tail import Vectored
from actlens.statistics import pooled_ratio

if TYPE_CHECKING:
    import pandas as pd

MLP = "MLP"
DECODER = "all behind the action vector"
_DECODERS = (LINEAR, NEAREST, SMOOTH)


@dataclass(frozen=True)
class Tried:
    """The actions with one surrogate."""

    part: str
    """What it stands in for: `MLP`, `DECODER`, or nothing: the policy itself."""
    surrogate: str
    actions: Float[np.ndarray, "scene position joint"]
    """Dataset units."""


def tried(
    known: Vectored,
    episodes: Int[np.ndarray, " scene"],
    asked: Vectored | None = None,
    *,
    n_folds: int = 5,
) -> tuple[Tried, ...]:
    """The policy, then every surrogate.

    That a table stands in well is no evidence of one: where the MLP adds little, or data are dense,
    anything does. Compare it with what is smooth, at scenes that neither was fitted on.

    Args:
        known: the scenes that surrogates are fitted on.
        episodes: of these.
        asked: other scenes, at the same positions. If not given, the known ones are asked, each by
            a surrogate that was fitted on other episodes.

    Raises:
        SceneError: if there are not two episodes.
    """
    if len(np.unique(episodes)) < 2:
        raise SceneError(
            "Surrogates are fitted on other episodes than they are tried on: give two."
        )
    run = known if asked is None else asked
    found = [Tried("", "the policy itself", _units(run, run.actions))]
    for part, surrogates in ((MLP, SURROGATES), (DECODER, _DECODERS)):
        for surrogate in surrogates:
            if asked is not None:
                actions = _with(known, episodes, asked, part, surrogate)
            else:
                actions = torch.empty_like(known.actions)
                folds = GroupKFold(min(n_folds, len(np.unique(episodes))))
                rows = np.zeros((len(episodes), 1))
                for fit, test in folds.split(rows, groups=episodes):
                    others, here = _of(known, fit), _of(known, test)
                    actions[test] = _with(others, episodes[fit], here, part, surrogate)
            found.append(Tried(part, surrogate.name, _units(run, actions)))
    return tuple(found)


@torch.no_grad()
def _with(
    known: Vectored,
    episodes: Int[np.ndarray, " scene"],
    asked: Vectored,
    part: str,
    surrogate: Surrogate,
) -> Float[torch.Tensor, "scene position joint"]:
    """Normalised actions."""
    if part == DECODER:
        return tail_stand_in(known, surrogate, episodes)(asked.x)
    return asked.tail.with_output(asked.x, mlp_stand_in(known, surrogate, episodes)(asked.x))


def _of(run: Vectored, scenes: Int[np.ndarray, " chosen"]) -> Vectored:
    return replace(run, x=run.x[scenes], actions=run.actions[scenes])


def _units(
    run: Vectored, actions: Float[torch.Tensor, "scene position joint"]
) -> Float[np.ndarray, "scene position joint"]:
    return run.tail.model.normalizer.unnormalize(ACTION_KEY, actions).double().cpu().numpy()


def tried_frame(
    found: Sequence[Tried],
    expert: Float[np.ndarray, "scene position joint"],
    counted: Bool[np.ndarray, "scene position"],
    episodes: Int[np.ndarray, " scene"],
) -> "pd.DataFrame":
    """Mean absolute error over joints, dataset units, by episode: one row for each that was tried.

    Args:
        found: what `tried` gave: the policy first.
        counted: False where nothing was demonstrated.
    """
    import pandas as pd

    rows = []
    for one in found:
        row: dict[str, object] = {"part": one.part, "surrogate": one.surrogate}
        for name, other in (("to_expert", expert), ("to_policy", found[0].actions)):
            apart = np.where(counted, np.abs(one.actions - other).mean(-1), 0.0).sum(1)
            mean = pooled_ratio(apart, counted.sum(1).astype(float), clusters=episodes)
            bounds = (mean.estimate, mean.low, mean.high)
            names = (name, f"{name}_low", f"{name}_high")
            row |= zip(names, map(float, bounds), strict=True)
        rows.append(row)
    return pd.DataFrame(rows)
