"""The mechanism axis: is the decoder like a table or like a smooth map, on its own activations?

A statistic by itself means little, because it depends on the data. So a policy stands between twins
that are planted on its own activations and agree with it in the scenes it was trained on: one that
looks every action up, and one that is a linear rule.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int

from actlens.mechanism.between import between
from actlens.mechanism.locality import locality
from actlens.mechanism.pairs import Neighbours, neighbours
from actlens.mechanism.surrogates import contest
from actlens.mechanism.tail import Tail, Vectored
from actlens.model.act import HookedACT
from actlens.planted import LinearRule, Stored, Table, plant
from actlens.scene import Scene, episode_numbers

if TYPE_CHECKING:
    import pandas as pd

_DRAWS = 1000


@dataclass(frozen=True)
class Placed:
    """One statistic of a policy, between those of its twins."""

    statistic: str
    value: float
    low: float
    high: float
    """95 %, bootstrap over episodes; NaN where a statistic is of all scenes at once."""
    rule: float
    table: float

    @property
    def lookup(self) -> float:
        """(value - rule) / (table - rule): 0 like the rule, 1 like the table; NaN where the twins
        do not differ."""
        apart = self.table - self.rule
        return (self.value - self.rule) / apart if apart else np.nan


@dataclass(frozen=True)
class MechanismAxis:
    """All statistics of one policy."""

    placed: tuple[Placed, ...]
    rule_error: float
    """Mean error of the rule twin in the trained scenes, in spreads of the actions: a rule that
    does not fit is no reference."""
    n_trained: int
    n_held_out: int

    def frame(self) -> "pd.DataFrame":
        """One row per statistic."""
        import pandas as pd

        return pd.DataFrame([asdict(one) | {"lookup": one.lookup} for one in self.placed])


@dataclass(frozen=True)
class _Data:
    frames: Int[np.ndarray, " scene"]
    groups: Int[np.ndarray, " scene"]
    pairs: Neighbours


def mechanism_axis(
    model: HookedACT,
    trained: Sequence[Scene],
    held_out: Sequence[Scene],
    *,
    positions: Sequence[int] | None = None,
    places: Float[np.ndarray, "trained dim"] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda what: None,
) -> MechanismAxis:
    """Every statistic of a policy, of its table twin and of its rule twin.

    Args:
        trained: scenes that the policy was trained on.
        held_out: scenes that it was not trained on, at the same frames.
        positions: of the chunk; about five of those that are carried out if not given.
        places: where the trained scenes are, in task coordinates, to find neighbours by; their
            action vectors if not given.
        seed: of draws and bootstraps.
        progress: told whose statistics are being taken.

    Raises:
        PlantError: if no twin can be planted in this architecture.
        SceneError: if scenes do not fit the policy, or none are neighbours.
    """
    config = model.config
    if positions is None:
        positions = range(0, config.n_action_steps, max(1, config.n_action_steps // 5))
    progress("policy")
    own = Vectored.of(model, trained, positions)
    frames = np.array([scene.frame for scene in trained])
    groups = episode_numbers(trained)
    points = own.x.flatten(1).double().cpu().numpy() if places is None else places
    data = _Data(frames, groups, neighbours(points, groups, frames))
    new = Vectored.of(model, held_out, positions)
    new_frames = np.array([scene.frame for scene in held_out])
    # Entries at the chosen positions alone: others would only cost neurons.
    valid = torch.ones(own.x.shape[:2], dtype=torch.bool)
    answers = own.actions.double().cpu()
    stored = Stored(own.x.double().cpu(), answers, valid, groups, frames)
    rule_error = np.nan
    results = {"policy": _taken(own, new, data, new_frames, seed)}
    for name, mechanism in (("rule", LinearRule()), ("table", Table())):
        progress(name)
        twin = plant(model, stored, mechanism)
        tails = [_as_seen_by(twin.model, run) for run in (own, new)]
        results[name] = _taken(tails[0], tails[1], data, new_frames, seed)
        if name == "rule":
            rule_error = float((tails[0].actions - own.actions).abs().mean())
    placed = [
        Placed(name, value, low, high, results["rule"][name][0], results["table"][name][0])
        for name, (value, low, high) in results["policy"].items()
    ]
    return MechanismAxis(tuple(placed), rule_error, len(trained), len(held_out))


@torch.no_grad()
def _as_seen_by(model: HookedACT, run: Vectored) -> Vectored:
    """The same vectors under another decoder."""
    tail = Tail(model)
    return replace(run, tail=tail, actions=tail(run.x))


def _taken(
    run: Vectored,
    held_out: Vectored,
    data: _Data,
    held_frames: Int[np.ndarray, " held_out"],
    seed: int,
) -> dict[str, tuple[float, float, float]]:
    """Every statistic, with its interval."""
    way, local = between(run, data.pairs), locality(run, seed=seed)
    rivals = contest(run, data.frames, data.groups, held_out, held_frames)
    of_pair = data.groups[data.pairs.first]
    log = np.abs(np.log10(np.clip(way.slope, 1e-6, 1e6)))
    balance = lambda at: _balance(rivals.table[at], rivals.smooth[at])
    scenes = np.arange(len(rivals.table))
    alone = lambda value: (value, np.nan, np.nan)
    return {
        "|log10 slope / secant|": _interval(log, of_pair, np.nanmedian, seed),
        "deviation between neighbours": _interval(way.deviation, of_pair, np.nanmedian, seed),
        "smooth against table surrogate": _interval(scenes, scenes, balance, seed),
        "participation of neurons": alone(local.participation),
        "specificity of ablations": alone(float(np.median(local.specificity))),
    }


def _balance(table: Float[np.ndarray, " s"], smooth: Float[np.ndarray, " s"]) -> float:
    a, b = np.nansum(table), np.nansum(smooth)
    return float((a - b) / (a + b)) if a + b else np.nan


def _interval(
    values: np.ndarray,
    groups: Int[np.ndarray, " unit"],
    statistic: Callable[[np.ndarray], float],
    seed: int,
) -> tuple[float, float, float]:
    """The statistic, and a percentile bootstrap over groups."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    drawn = []
    for _ in range(_DRAWS):
        chosen = rng.integers(len(members), size=len(members))
        drawn.append(statistic(values[np.concatenate([members[i] for i in chosen])]))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(statistic(values)), float(low), float(high)
