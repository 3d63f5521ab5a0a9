"""The mechanism axis: is the decoder like a table or like a smooth map, on its own activations?

A statistic by itself means little, because it depends on the data. So a policy stands between twins
that are planted on its own activations and agree with it in the scenes it was trained on: one that
looks every action up, and one that is a linear rule. Beside them stands a decoder that was trained
on the same activations to answer as other episodes do, which nothing but memory can: it looks like
a smooth map none the less, so that a smooth map is no evidence against memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int

from actlens.mechanism.between import between
from actlens.mechanism.locality import locality
from actlens.mechanism.pairs import Neighbours, neighbours_of
from actlens.mechanism.surrogates import contest
from actlens.mechanism.tail import Tail, Vectored
from actlens.metrics import executed_positions
from actlens.model.act import HookedACT
from actlens.notebook import DrawnAsTable
from actlens.planted import (
    BY_HEART,
    LinearRule,
    PlantError,
    Stored,
    Table,
    plant,
    shuffled,
    trained,
)
from actlens.scene import Scene, episode_numbers
from actlens.statistics import MIN_CLUSTERS, Interval

if TYPE_CHECKING:
    import pandas as pd

JUMP = "jump between neighbours"
"""The statistic that the verdict rests on (`Between.jump`): a table's share, 0 to 1."""
_DRAWS = 1000


@dataclass(frozen=True)
class Placed:
    """One statistic of a policy, between those of its twins."""

    statistic: str
    value: float
    low: float
    high: float
    """95 %, bootstrap over episodes; NaN where a statistic is of all scenes at once, or there are
    too few episodes."""
    rule: float
    table: float
    """NaN where no table could be planted."""
    memoriser: float
    """Of the decoder trained on exchanged actions; NaN if it was not asked for."""

    @property
    def lookup(self) -> float:
        """(value - rule) / (table - rule): 0 like the rule, 1 like the table; NaN where the twins
        do not differ."""
        apart = self.table - self.rule
        return (self.value - self.rule) / apart if apart else np.nan

    @property
    def interval(self) -> Interval:
        """The value and its bounds."""
        return Interval(*(np.asarray(x) for x in (self.value, self.low, self.high)))


@dataclass(frozen=True)
class MechanismAxis(DrawnAsTable):
    """All statistics of one policy."""

    placed: tuple[Placed, ...]
    rule_error: float
    """Mean error of the rule twin in the trained scenes, in spreads of the actions: a rule that
    does not fit is no reference."""
    memoriser_error: float
    """Of the decoder trained on exchanged actions, on those actions; NaN if not asked for."""
    no_table: str
    """Why no table could be planted on the policy's activations; empty where one was."""
    n_trained: int
    n_held_out: int

    def of(self, statistic: str) -> Placed:
        """One of them.

        Raises:
            KeyError: if it was not taken.
        """
        found = {one.statistic: one for one in self.placed}
        return found[statistic]

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
    trained_on: Sequence[Scene],
    held_out: Sequence[Scene] = (),
    *,
    positions: Sequence[int] | None = None,
    memoriser: bool = False,
    seed: int = 0,
    vectors: Callable[[Sequence[Scene]], Vectored] | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> MechanismAxis:
    """Every statistic of a policy, of its table twin and of its rule twin.

    Neighbours are scenes of different episodes whose action vectors are near: there a table's cells
    lie side by side, whatever else the vectors hold besides where the object is.

    Args:
        trained_on: scenes that the policy was trained on.
        held_out: scenes that it was not trained on, at the same frames; without them there is no
            contest between surrogates.
        positions: of the chunk; about five of those that are carried out if not given.
        memoriser: train the third reference too, which takes some seconds and needs the same frames
            of every episode.
        seed: of draws and bootstraps.
        vectors: gives the vectors of scenes at these positions, where the policy was run before.
        progress: told whose statistics are being taken.

    Raises:
        PlantError: if no rule can be planted in this architecture, or actions cannot be exchanged
            because episodes have different frames.
        SceneError: if scenes do not fit the policy, or none are neighbours.
    """
    positions = some_executed(model) if positions is None else positions
    run = vectors or (lambda scenes: Vectored.of(model, scenes, positions))
    progress("policy")
    own = run(trained_on)
    data = _data(own, trained_on)
    new = run(held_out) if held_out else None
    frames = np.array([scene.frame for scene in held_out], dtype=np.int64)
    results, errors, no_table = {"policy": _taken(own, new, data, frames, seed)}, {}, ""
    for name, (answers, twin) in _references(model, own, data, memoriser=memoriser).items():
        progress(name)
        try:
            made = twin()
        except PlantError as error:
            if name != "table":
                raise
            no_table = str(error)  # some vectors lie between others: no cell is theirs alone
            continue
        seen = _as_seen_by(made, own)
        results[name] = _taken(seen, new and _as_seen_by(made, new), data, frames, seed)
        errors[name] = float((seen.actions.cpu() - answers).abs().mean())
    of = lambda name, who: results[who][name][0] if who in results else np.nan
    placed = [
        Placed(name, *found, *(of(name, who) for who in ("rule", "table", "memoriser")))
        for name, found in results["policy"].items()
    ]
    return MechanismAxis(
        tuple(placed),
        errors["rule"],
        errors.get("memoriser", np.nan),
        no_table,
        len(trained_on),
        len(held_out),
    )


def some_executed(model: HookedACT) -> tuple[int, ...]:
    """About five positions of the chunk among those that are carried out, evenly apart."""
    positions = executed_positions(model.config)
    return positions[:: max(1, len(positions) // 5)]


def _data(own: Vectored, scenes: Sequence[Scene]) -> _Data:
    frames = np.array([scene.frame for scene in scenes])
    return _Data(frames, episode_numbers(scenes), neighbours_of(own.x, scenes))


def _references(
    model: HookedACT, own: Vectored, data: _Data, *, memoriser: bool
) -> dict[str, tuple[torch.Tensor, Callable[[], HookedACT]]]:
    """By name: the (normalised) answers that it was made to give, and how it is made."""
    # Entries at the chosen positions alone: others would only cost neurons.
    valid = torch.ones(own.x.shape[:2], dtype=torch.bool)
    answers = own.actions.double().cpu()
    stored = Stored(own.x.double().cpu(), answers, valid, data.groups, data.frames)
    made = {
        "rule": (answers, lambda: plant(model, stored, LinearRule()).model),
        "table": (answers, lambda: plant(model, stored, Table()).model),
    }
    if memoriser:
        exchanged = shuffled(stored)
        wide = replace(BY_HEART, d_mlp=max(BY_HEART.d_mlp or 0, model.config.d_mlp))
        made["memoriser"] = (exchanged.actions, lambda: trained(model, exchanged, wide).model)
    return made


@torch.no_grad()
def _as_seen_by(model: HookedACT, run: Vectored) -> Vectored:
    """The same vectors under another decoder."""
    tail = Tail(model)
    return replace(run, tail=tail, actions=tail(run.x))


def _taken(
    run: Vectored,
    held_out: Vectored | None,
    data: _Data,
    held_frames: Int[np.ndarray, " held_out"],
    seed: int,
) -> dict[str, tuple[float, float, float]]:
    """Every statistic, with its interval."""
    way, local = between(run, data.pairs), locality(run, seed=seed)
    of_pair = data.groups[data.pairs.first]
    log = np.abs(np.log10(np.clip(way.slope, 1e-6, 1e6)))
    alone = lambda value: (value, np.nan, np.nan)
    found = {
        JUMP: interval_by_group(way.jump, of_pair, np.nanmedian, seed),
        "|log10 slope / secant|": interval_by_group(log, of_pair, np.nanmedian, seed),
        "deviation between neighbours": interval_by_group(
            way.deviation, of_pair, np.nanmedian, seed
        ),
        "participation of neurons": alone(local.participation),
        "specificity of ablations": alone(float(np.median(local.specificity))),
    }
    if held_out is not None:
        rivals = contest(run, data.frames, data.groups, held_out, held_frames)
        balance = lambda at: _balance(rivals.table[at], rivals.smooth[at])
        scenes = np.arange(len(rivals.table))
        found["smooth against table surrogate"] = interval_by_group(scenes, scenes, balance, seed)
    return found


def _balance(table: Float[np.ndarray, " s"], smooth: Float[np.ndarray, " s"]) -> float:
    a, b = np.nansum(table), np.nansum(smooth)
    return float((a - b) / (a + b)) if a + b else np.nan


def interval_by_group(
    values: np.ndarray,
    groups: Int[np.ndarray, " unit"],
    statistic: Callable[[np.ndarray], float],
    seed: int,
) -> tuple[float, float, float]:
    """The statistic, and a percentile bootstrap over groups; no bounds from too few of them."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    if len(members) < MIN_CLUSTERS:
        return float(statistic(values)), np.nan, np.nan
    drawn = []
    for _ in range(_DRAWS):
        chosen = rng.integers(len(members), size=len(members))
        drawn.append(statistic(values[np.concatenate([members[i] for i in chosen])]))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(statistic(values)), float(low), float(high)
