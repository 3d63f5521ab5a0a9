"""Errors along long trainings, and whether those elsewhere fall late."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from actlens.claims import Support, at_least
from actlens.notebook import DrawnAsTable
from actlens.statistics import Interval, pooled_ratio

if TYPE_CHECKING:
    import pandas as pd

TRAINED = "trained"
"""The episodes that a run is trained on."""
LATE = 0.2
"""A fall of the error elsewhere by more than this share, after the error in what was trained has
settled, is late generalisation."""
WATCHED = 10
"""There is none only if training went on for this many times the steps that settling took."""


class Settled(Enum):
    """When the error in what was trained has settled."""

    LAST = "within 10 % of its last value"
    """Strict: where the error falls by a tenth in the last steps, it has not settled at all."""
    WAY = "95 % of its way"
    """From the first to the last value."""

    def at(self, trained: Float[np.ndarray, " evaluation"]) -> int:
        """The evaluation at which it first is so."""
        first, last = trained[0], trained[-1]
        limit = 1.1 * last if self is Settled.LAST else last + 0.05 * max(first - last, 0.0)
        return int(np.argmax(trained <= limit))


class Start(Enum):
    """What training begins from."""

    POLICY = "the policy's"
    ANEW = "new"


@dataclass(frozen=True)
class Curve:
    """One training: errors by step."""

    start: Start
    n_episodes: int
    weight_decay: float
    seed: int
    steps: tuple[int, ...]
    errors: Mapping[str, Float[np.ndarray, "evaluation episode"]]
    """By the set of scenes, mean absolute errors in dataset units; the first set is `TRAINED`."""

    def mean(self, scenes: str) -> Float[np.ndarray, " evaluation"]:
        """Over episodes."""
        return self.errors[scenes].mean(1)


@dataclass(frozen=True)
class LateFall:
    """What the error elsewhere did after the trained error had settled, over seeds."""

    start: Start
    n_episodes: int
    weight_decay: float
    scenes: str
    settled_if: Settled
    settled: tuple[int, ...]
    """The step, by seed."""
    steps: int
    """Of the whole training."""
    trained_fall: float
    """The same of the error in what was trained: where it falls as much, nothing had settled."""
    fall: Interval
    """1 - error at the end / error when settled; by episode, all seeds of an episode together.
    Below 0 it has risen."""
    best_step: tuple[int, ...]
    """Where the error is least, by seed."""
    risen: Interval
    """Error at the end / least error along the way - 1: what stopping early would have saved."""

    @property
    def is_late(self) -> Support:
        """Whether the error elsewhere surely falls by more than `LATE` after settling, and by more
        than the trained error does. Refuted if it surely does not, and was watched for long."""
        found = at_least(self.fall, LATE)
        if found is Support.SUPPORTED and self.fall.estimate <= self.trained_fall:
            return Support.UNDECIDED
        watched = self.steps >= WATCHED * max(self.settled)
        return found if watched or found is Support.SUPPORTED else Support.UNDECIDED


@dataclass(frozen=True)
class LateGeneralisation(DrawnAsTable):
    """All trainings."""

    curves: tuple[Curve, ...]
    policy: Mapping[str, Interval]
    """The policy's own errors, by the set of scenes; all demonstrations under `TRAINED`."""

    @property
    def falls(self) -> tuple[LateFall, ...]:
        """For each kind of training and each set of scenes that was not trained on."""
        return tuple(
            _fall(curves, scenes, settled)
            for curves in self._kinds()
            for scenes in curves[0].errors
            if scenes != TRAINED
            for settled in Settled
        )

    def _kinds(self) -> Iterator[list[Curve]]:
        kinds: dict[tuple, list[Curve]] = {}
        for curve in self.curves:
            key = (curve.start, curve.n_episodes, curve.weight_decay)
            kinds.setdefault(key, []).append(curve)
        yield from kinds.values()

    def frame(self) -> "pd.DataFrame":
        """One row for each training, set of scenes and step."""
        import pandas as pd

        rows = []
        for curve in self.curves:
            for scenes, errors in curve.errors.items():
                bounds = pooled_ratio(errors, np.ones_like(errors))
                for i, step in enumerate(curve.steps):
                    rows.append(
                        {
                            "start": curve.start.value,
                            "n_episodes": curve.n_episodes,
                            "weight_decay": curve.weight_decay,
                            "seed": curve.seed,
                            "scenes": scenes,
                            "step": step,
                            "error": float(bounds.estimate[i]),
                            "low": float(bounds.low[i]),
                            "high": float(bounds.high[i]),
                        }
                    )
        return pd.DataFrame(rows)

    def falls_frame(self) -> "pd.DataFrame":
        """One row for each kind of training and set of scenes."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "start": one.start.value,
                    "n_episodes": one.n_episodes,
                    "weight_decay": one.weight_decay,
                    "scenes": one.scenes,
                    "settled_if": one.settled_if.value,
                    "settled": ", ".join(map(str, one.settled)),
                    "trained_fall": one.trained_fall,
                    "fall": float(one.fall.estimate),
                    "fall_low": float(one.fall.low),
                    "fall_high": float(one.fall.high),
                    "late": one.is_late.value,
                    "best_step": ", ".join(map(str, one.best_step)),
                    "risen": float(one.risen.estimate),
                    "risen_low": float(one.risen.low),
                    "risen_high": float(one.risen.high),
                }
                for one in self.falls
            ]
        )


def _fall(curves: Sequence[Curve], scenes: str, settled_if: Settled) -> LateFall:
    first = curves[0]
    of = [curve.errors[scenes] for curve in curves]
    end = np.stack([errors[-1] for errors in of])
    known = [curve.mean(TRAINED) for curve in curves]
    settled = [settled_if.at(trained) for trained in known]
    then = np.stack([errors[i] for i, errors in zip(settled, of, strict=True)])
    best = [int(curve.mean(scenes).argmin()) for curve in curves]
    least = np.stack([errors[i] for i, errors in zip(best, of, strict=True)])
    left = pooled_ratio(end.sum(0), then.sum(0))
    over = pooled_ratio(end.sum(0), least.sum(0))
    return LateFall(
        first.start,
        first.n_episodes,
        first.weight_decay,
        scenes,
        settled_if,
        tuple(curve.steps[i] for curve, i in zip(curves, settled, strict=True)),
        first.steps[-1],
        1
        - sum(trained[-1] for trained in known)
        / sum(trained[i] for trained, i in zip(known, settled, strict=True)),
        Interval(1 - left.estimate, 1 - left.high, 1 - left.low),
        tuple(curve.steps[i] for curve, i in zip(curves, best, strict=True)),
        Interval(over.estimate - 1, over.low - 1, over.high - 1),
    )
