"""What tokens do: whether a few suffice, whether weights rank effects, who carries what."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from actlens.attention.absorption import Interchange
from actlens.attention.columns import named, put
from actlens.attention.groups import TokenGroup
from actlens.attention.masking import over_positions
from actlens.attention.reading import SceneAttention
from actlens.attention.survey import ALL, KINDS
from actlens.statistics import Interval, pooled_ratio

if TYPE_CHECKING:
    import pandas as pd

SAME, OTHER = "same moment", "other moment"
"""Between which scenes of two episodes tokens are swapped."""


@dataclass(frozen=True)
class SceneEffects:
    """One scene's exact interventions."""

    reading: SceneAttention
    pair: int
    """Number of the two episodes between which tokens are swapped; pairs share no episode."""
    importance: Float[np.ndarray, "token query"]
    """How far the action moves without each token (`leave_one_out`), dataset units."""
    error: dict[str, Float[np.ndarray, " top"]]
    """Of the action from k tokens alone, by who chose them (`sufficiency`), dataset units."""
    swaps: dict[str, Interchange]
    """By `SAME` and `OTHER` moment of the other episode."""

    @property
    def averaged(self) -> Float[np.ndarray, " token"]:
        """Importance over the chunk positions that count, root mean square."""
        return over_positions(self.importance, self.reading.counted)


@dataclass(frozen=True)
class AttentionEffects:
    """Interventions over scenes of many episodes, one a episode.

    Intervals are 95 %, by bootstrap over episodes, or over pairs of episodes where tokens are
    swapped; missing below five.
    """

    scenes: tuple[SceneEffects, ...]
    groups: tuple[TokenGroup, ...]
    tops: tuple[int, ...]
    seed: int = 0

    @cached_property
    def pairs(self) -> Int[np.ndarray, " scene"]:
        """Which scenes are swapped with one another."""
        return np.array([scene.pair for scene in self.scenes])

    # ── do a few suffice? ────────────────────────────────────────────────────────────────────

    def error(self, chosen_by: str, *, over: str | None = None, scaled: bool = False) -> Interval:
        """Mean error by k, dataset units; or its ratio to something else.

        Args:
            chosen_by: `attention`, `norm`, `effect`, `random`, `own`, `own_random`; see
                `actlens.attention.sufficiency`.
            over: a choice whose error divides.
            scaled: divide by how far actions of two episodes at different moments lie apart.
        """
        found = self._errors(chosen_by)
        below = np.ones_like(found) if over is None else self._errors(over)
        if not scaled:
            return pooled_ratio(found, below, seed=self.seed)
        below = below * [scene.swaps[OTHER].scenes_differ for scene in self.scenes]
        return pooled_ratio(found, below, clusters=self.pairs, seed=self.seed)

    def _errors(self, chosen_by: str) -> Float[np.ndarray, "top scene"]:
        return np.stack([scene.error[chosen_by] for scene in self.scenes], -1)

    def scenes_differ(self, moment: str) -> float:
        """How far the actions of two episodes lie apart (root mean square, dataset units).

        At the same moment or at another: the scales to hold errors and swaps against.
        """
        return float(np.mean([scene.swaps[moment].scenes_differ for scene in self.scenes]))

    def sufficiency(self) -> "pd.DataFrame":
        """One row per number of tokens and who chose them.

        Columns: `k`, `chosen_by` (`attention` and `norm`: the largest weights, averaged over heads
        and positions; `effect`: the largest exact effects of leaving one out; `random`; `own` and
        `own_random`: every head and position keeps its own), `error` (root mean square,
        dataset units) and `over_random` (its ratio to random tokens'), each with `_low` and
        `_high`; `same_moment` and `other_moment`: how far actions of two episodes lie apart.
        """
        import pandas as pd

        tables = []
        for name in self.scenes[0].error:
            table = pd.DataFrame({"k": self.tops, "chosen_by": name})
            put(table, "error", self.error(name))
            put(table, "over_random", self.error(name, over="random"))
            table["same_moment"] = self.scenes_differ(SAME)
            table["other_moment"] = self.scenes_differ(OTHER)
            tables.append(table)
        return pd.concat(tables, ignore_index=True).sort_values(["k", "chosen_by"])

    # ── do weights rank effects? ─────────────────────────────────────────────────────────────

    def rank_correlation(self, kind: str, position: int | None = None) -> Interval:
        """Spearman's correlation, over tokens, of a weight with the effect of leaving one out.

        The mean over scenes. NaN in scenes where all weights or all effects are equal.

        Args:
            kind: `attention`, `norm` or `rollout`.
            position: of the chunk; over those that count if not given.
        """
        found = np.array([_spearman(*_both(scene, kind, position)) for scene in self.scenes])
        return pooled_ratio(found, np.ones_like(found), seed=self.seed)

    def rank_correlations(self) -> "pd.DataFrame":
        """One row per kind of weight and chunk position (`all`: over those that count)."""
        import pandas as pd

        n_queries = self.scenes[0].importance.shape[1]
        rows = []
        for kind in KINDS:
            for position in (*range(n_queries), None):
                row = {"weight": kind, "position": ALL if position is None else str(position)}
                rows.append(row | named("spearman", self.rank_correlation(kind, position)))
        return pd.DataFrame(rows)

    def importance(self) -> Float[np.ndarray, " token"]:
        """Mean effect of leaving each token out, dataset units."""
        return np.mean([scene.averaged for scene in self.scenes], axis=0)

    # ── who carries what? ────────────────────────────────────────────────────────────────────

    def absorption(self, group: TokenGroup, moment: str = SAME) -> Interval:
        """1 - (effect of swapping the group at the encoder's output) / (at its input).

        Sums over scenes; NaN where a swap at the input does nothing.
        """
        at = self.groups.index(group)
        ratio = self._swapped(moment, lambda s: s.at_memory[at], lambda s: s.at_input[at])
        return Interval(1 - ratio.estimate, 1 - ratio.high, 1 - ratio.low)

    def carried(self, group: TokenGroup, carrier: TokenGroup, moment: str = SAME) -> Interval:
        """Which share of the effect of swapping a group's input arrives through the carrier."""
        row, column = self.groups.index(group), self.groups.index(carrier)
        return self._swapped(
            moment, lambda s: s.carried_along[row, column], lambda s: s.carried_total[row]
        )

    def moved(self, group: TokenGroup, *, at_memory: bool, moment: str = SAME) -> Interval:
        """How far a swap moves the action: mean over scenes, dataset units."""
        at = self.groups.index(group)
        return self._swapped(
            moment, lambda s: (s.at_memory if at_memory else s.at_input)[at], lambda s: 1.0
        )

    def _swapped(
        self,
        moment: str,
        above: Callable[[Interchange], float],
        below: Callable[[Interchange], float],
    ) -> Interval:
        swaps = [scene.swaps[moment] for scene in self.scenes]
        of: Callable[[Sequence[float]], np.ndarray] = lambda values: np.array(values, dtype=float)
        return pooled_ratio(
            of([above(s) for s in swaps]),
            of([below(s) for s in swaps]),
            clusters=self.pairs,
            seed=self.seed,
        )

    def absorptions(self) -> "pd.DataFrame":
        """One row per group and moment.

        Columns: `group`, `moment`, `at_input` and `at_memory` (how far the swap moves the action,
        root mean square, dataset units), `absorption`, each with `_low` and `_high`;
        `scenes_differ`.
        """
        import pandas as pd

        rows = []
        for moment in (SAME, OTHER):
            for group in self.groups:
                row: dict[str, object] = {"group": group.name, "moment": moment}
                for name, found in (
                    ("at_input", self.moved(group, at_memory=False, moment=moment)),
                    ("at_memory", self.moved(group, at_memory=True, moment=moment)),
                    ("absorption", self.absorption(group, moment)),
                ):
                    row |= named(name, found)
                rows.append(row | {"scenes_differ": self.scenes_differ(moment)})
        return pd.DataFrame(rows)

    def carriers(self) -> "pd.DataFrame":
        """One row per moment, group swapped at the input and group of outputs.

        Columns: `moment`, `group`, `carrier`, `share` with `_low` and `_high`: of the swap's
        effect, what arrives through the carrier's tokens alone. Shares need not sum to one, because
        attention and norms follow.
        """
        import pandas as pd

        rows = [
            {"moment": moment, "group": group.name, "carrier": carrier.name}
            | named("share", self.carried(group, carrier, moment))
            for moment in (SAME, OTHER)
            for group in self.groups
            for carrier in self.groups
        ]
        return pd.DataFrame(rows)


def _both(scene: SceneEffects, kind: str, position: int | None) -> tuple[np.ndarray, np.ndarray]:
    weights = getattr(scene.reading, kind)
    if position is not None:
        return weights[position], scene.importance[:, position]
    return scene.reading.averaged(weights), scene.averaged


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    ranks = np.stack([stats.rankdata(a), stats.rankdata(b)])
    if (ranks.std(1) == 0).any():
        return np.nan
    return float(np.corrcoef(ranks)[0, 1])
