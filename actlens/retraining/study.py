"""Counterfactual memorisation of a policy's decoder beside what it must be held against."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from scipy import stats

from actlens.model.act import HookedACT
from actlens.planted import Stored, shuffled
from actlens.retraining.counterfactual import MemorisationOptions, memorisation
from actlens.retraining.entries import Entries
from actlens.retraining.learners import Decoders, LinearReadout
from actlens.retraining.memorisation import Memorisation
from actlens.statistics import Interval, pooled_ratio
from actlens.tails import Shape, Tails

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class MemorisationStudy:
    """Of decoders on the demonstrations, on shuffled ones, and of a linear read-out."""

    own: Mapping[int, Memorisation]
    """By steps of training."""
    shuffled: Mapping[int, Memorisation]
    """Where every episode answers as another one does in the same frames: nothing else than
    learning by heart helps."""
    linear: Memorisation
    """Ridge regression on the same vectors: a rule also fits what it has seen better."""
    policy: Mapping[str, Interval]
    """The policy's own errors, on its demonstrations (`""`) and elsewhere, by the set of scenes."""

    @property
    def matched(self) -> int:
        """Steps after which the decoders first know what they learnt as well as the policy knows
        its demonstrations; the last if they never do."""
        level = float(self.policy[""].estimate)
        fits = [step for step, one in self.own.items() if one.error_in.estimate <= level]
        return fits[0] if fits else max(self.own)

    @property
    def reaches_policy(self) -> bool:
        """Whether they do."""
        return bool(self.own[self.matched].error_in.estimate <= self.policy[""].estimate)

    def by_step(self) -> "pd.DataFrame":
        """One row for each kind of decoder and number of steps."""
        import pandas as pd

        kinds = [("demonstrations", step, one) for step, one in self.own.items()]
        kinds += [("shuffled", step, one) for step, one in self.shuffled.items()]
        kinds.append(("linear read-out", 0, self.linear))
        return pd.DataFrame([_row(*kind) for kind in kinds])

    def by_episode(self) -> "pd.DataFrame":
        """`Memorisation.frame` after the most steps, where episodes differ most."""
        return self.own[max(self.own)].frame()


def _row(kind: str, step: int, one: Memorisation) -> dict:
    row: dict = {"decoders": kind, "steps": step, "n_decoders": one.n_decoders}
    figures = {
        "error_in": one.error_in,
        "error_out": one.error_out,
        "mem": one.mean,
        "share": one.share,
        **{f"error, {name}": value for name, value in one.error_elsewhere.items()},
        **{f"encoder_gap, {name}": one.encoder_gap(name) for name in one.elsewhere},
    }
    for name, value in figures.items():
        row |= {
            name: float(value.estimate),
            f"{name}_low": float(value.low),
            f"{name}_high": float(value.high),
        }
    row["mem_se"], row["share_se"] = one.standard_errors
    row["reliability"] = one.reliability
    return row


def study_memorisation(
    model: HookedACT,
    stored: Stored,
    elsewhere: Mapping[str, Stored] | None = None,
    *,
    positions: tuple[int, ...] | None = None,
    decoders: Decoders | None = None,
    options: MemorisationOptions | None = None,
    progress: Callable[[int], None] = lambda n_decoders: None,
) -> MemorisationStudy:
    """Retrain decoders with and without each demonstration.

    Args:
        stored: the demonstrations (`cached`), the same frames of every episode.
        elsewhere: scenes that the policy was not trained on, by name.
        positions: of the chunk; all if not given.
        decoders: how each is trained.
        progress: told how many decoders were trained, round by round.

    Raises:
        PlantError: if episodes differ in their frames, so that they cannot be shuffled.
        SceneError: if there are too few episodes.
    """
    options, decoders = (
        options or MemorisationOptions(),
        decoders or Decoders(Shape.of(model.config)),
    )
    entries = Entries.of(model, stored, positions)
    others = {name: Entries.of(model, one, positions) for name, one in (elsewhere or {}).items()}
    mixed = Entries.of(model, shuffled(stored, options.seed), positions)
    own = memorisation(entries, decoders, options, elsewhere=others, progress=progress)
    once = replace(options, most=options.at_once)  # its share is large: one round tells
    control = memorisation(mixed, decoders, once, progress=progress)
    linear = memorisation(entries, LinearReadout(), options, elsewhere=others)[0]
    tails = Tails.of(model, 1)
    policy = {
        name: _mean(one.errors(tails.answers(one.x))[0])
        for name, one in ({"": entries} | others).items()
    }
    return MemorisationStudy(own, control, linear, policy)


def _mean(errors: Float[np.ndarray, " episode"]) -> Interval:
    return pooled_ratio(errors, np.ones_like(errors))


@dataclass(frozen=True)
class Isolation:
    """Whether it is the lonely demonstrations that are learnt by heart."""

    rank_correlation: Interval
    """Spearman, of mem_i with the distance to the nearest other demonstration; Fisher's interval
    with Bonett and Wright's (2000) standard error."""
    distance: Float[np.ndarray, " episode"]


def isolation(found: Memorisation, places: Float[np.ndarray, "episode dim"]) -> Isolation | None:
    """Compare what is learnt by heart with how far other demonstrations are.

    None if all are equally far: where every place was shown twice, no demonstration is lonely.

    Args:
        places: of the episodes, in the order of `found.indices`, in any unit.
    """
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(apart, np.inf)
    distance = apart.min(1)
    if np.ptp(distance) <= 1e-9 * max(float(distance.max()), 1.0):
        return None
    rho = float(stats.spearmanr(found.by_episode, distance).statistic)
    reach = stats.norm.ppf(0.975) * np.sqrt((1 + rho**2 / 2) / (len(distance) - 3))
    bounds = np.tanh(np.arctanh(np.clip(rho, -0.999999, 0.999999)) + np.array([-reach, reach]))
    interval = Interval(*(np.asarray(x) for x in (rho, *bounds)))
    return Isolation(interval, distance)
