"""What adapting a policy to new places gave: errors before and after, by part and by place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from actlens.finetuning.locality import Locality
from actlens.finetuning.scoring import Errors
from actlens.finetuning.tuned import TunedPart
from actlens.finetuning.ways import Budget, Way
from actlens.notebook import DrawnAsTable
from actlens.statistics import Interval, false_discovery

if TYPE_CHECKING:
    import pandas as pd

    from actlens.finetuning.study import Options

NEW = "new places"
"""The name of the scenes that a policy adapts to."""


@dataclass(frozen=True)
class Outcome:
    """One way, over both halves."""

    way: Way
    after: Mapping[str, Errors]
    """By the name of the scenes; at the new places each episode by the training without it."""
    tuned: tuple[TunedPart, TunedPart]
    """Of the first seed, by the half that was trained on."""
    rates: tuple[float, ...]
    """The step sizes that were chosen, by half and seed."""
    seed_spread: Float[np.ndarray, " measure"]
    """Standard deviation over seeds of the error at the new places; NaN for one seed."""

    @property
    def n_free(self) -> int:
        """Numbers that were trained."""
        return self.tuned[0].n_free

    @property
    def relative_norm(self) -> float:
        """|W' - W| / |W| of the part, mean of the halves."""
        return sum(one.relative_norm for one in self.tuned) / 2


@dataclass(frozen=True)
class Finetuning(DrawnAsTable):
    """All ways; `frame()` is the table, `claims_of` in `actlens.finetuning.claims` the verdicts."""

    before: Mapping[str, Errors]
    outcomes: tuple[Outcome, ...]
    options: "Options"
    n_trained: int
    """Episodes in a half."""
    locality: Locality | None

    @property
    def measures(self) -> tuple[str, ...]:
        """What errors are measured in; the last is the main one."""
        return self.before[NEW].measures

    def outcome(self, part: str, budget: str) -> Outcome | None:
        """The outcome of a part and a budget, if it was tried."""
        for one in self.outcomes:
            if (one.way.part.name, one.way.budget) == (part, budget):
                return one
        return None

    def untrained(self, places: str) -> Errors:
        """The errors before training, in the order of `Outcome.after`."""
        before = self.before[places]
        order = self.outcomes[0].after[places].episodes if self.outcomes else before.episodes
        return in_order(before, order)

    def frame(self) -> "pd.DataFrame":
        """One row for each way, place and measure, with 95 % intervals by episode.

        `before`, `after`, `change` (after - before) and `cut` (1 - after / before); `against_mlp`
        is how much larger the error is than that of the decoder MLP trained as a whole, `p` by
        flipping signs of episodes, `q` after Benjamini-Hochberg over all rows.
        """
        import pandas as pd

        mlp = self.outcome("decoder MLP", Budget.WHOLE)
        rows = []
        for one in self.outcomes:
            for places, after in one.after.items():
                before = self.untrained(places)
                against = None if mlp is None else mlp.after[places]
                for i, measure in enumerate(after.measures):
                    row: dict[str, object] = {
                        "part": one.way.part.name,
                        "budget": one.way.budget.value,
                        "n_free": one.n_free,
                        "relative_norm": one.relative_norm,
                        "rates": " ".join(f"{rate:g}" for rate in one.rates),
                        "places": places,
                        "episodes": len(np.unique(after.episodes)),
                        "measure": measure,
                    }
                    row |= columns("before", before.mean(), i) | columns("after", after.mean(), i)
                    row |= columns("change", after.minus(before), i)
                    row |= columns("cut", after.cut(before), i)
                    row["seed_sd"] = float(one.seed_spread[i]) if places == NEW else np.nan
                    row["p"] = np.nan
                    if against is not None:
                        row |= columns("against_mlp", after.minus(against), i)
                    if against is not None and one is not mlp:
                        row["p"] = float(after.differs_p(against)[i])
                    rows.append(row)
        p = np.array([row["p"] for row in rows], dtype=np.float64)
        for row, q in zip(rows, false_discovery(p).tolist(), strict=True):
            row["q"] = q
        return pd.DataFrame(rows)


def columns(name: str, found: Interval, at: int) -> dict[str, float]:
    """One measure's estimate and bounds."""
    bounds = (found.estimate, found.low, found.high)
    ends = ("", "_low", "_high")
    return {f"{name}{end}": float(values[at]) for end, values in zip(ends, bounds, strict=True)}


def in_order(found: Errors, episodes: np.ndarray) -> Errors:
    """The same scenes with episodes in another order; scenes of one stay in theirs."""
    rows = np.concatenate(
        [np.flatnonzero(found.episodes == one) for one in dict.fromkeys(episodes.tolist())]
    )
    return Errors(found.measures, found.sums[:, rows], found.n[rows], found.episodes[rows])
