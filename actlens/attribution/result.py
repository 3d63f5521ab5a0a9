"""Estimates with what they were held against: the table people read, and the audit's."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from actlens.attribution.agreement import Agreement, Figures, agreement, figures
from actlens.attribution.audit import Sample
from actlens.attribution.cuts import Cut
from actlens.attribution.labels import site_labels
from actlens.attribution.one_pair import PairEstimates
from actlens.attribution.options import AttributionOptions
from actlens.metrics import Direction
from actlens.notebook import DrawnAsTable
from actlens.scene import ScenePair
from actlens.statistics import MIN_CLUSTERS, pooled_ratio
from actlens.tokens import TokenMap

_DRAWS = 2000


@dataclass(frozen=True)
class AttributionResult(DrawnAsTable):
    """Estimates of all sites in both directions over all pairs that count, and their audit.

    `frame()` is the table people read, one row a site; `agreement()` says how far to trust it, one
    row a cut and direction; `per_pair()` and `agreement_per_pair()` have the same of single pairs.
    """

    cuts: tuple[Cut, ...]
    estimates: tuple[PairEstimates, ...]
    """Of every pair."""
    sample: Sample
    exact: tuple[dict[Direction, Float[np.ndarray, " audited"]], ...]
    """What patching the sample's sites does in every pair, in the unit of the estimates."""
    pairs: tuple[ScenePair, ...]
    """The pairs that were attributed, in the order of the estimates."""
    clusters: Int[np.ndarray, " pair"]
    """Which of them share an episode."""
    left_out: tuple[tuple[ScenePair, float], ...]
    """Pairs whose actions differ too little to be restored, with that difference."""
    tokens: TokenMap
    options: AttributionOptions
    cost: float
    """Of all estimates of one pair in one direction with one gradient, in forwards of the
    transformer."""
    seed: int = 0

    @property
    def n_sites(self) -> int:
        """Sites of all cuts."""
        return sum(map(len, self.cuts))

    def frame(self) -> pd.DataFrame:
        """One row per site: pooled estimates with 95 % intervals, error bar, exact effects.

        Columns `denoise` and `noise` (estimated restored shares, each with `_low` and `_high`),
        `error_bar` (how far the estimates with the gradients of the two runs are apart), and where
        audited `exact_denoise` and `exact_noise` (each with `_low` and `_high`); `audited` is `top`
        for sites chosen for their estimates and `random` for others. Intervals are missing below
        five independent pairs.
        """
        table = site_labels(self.cuts, self.tokens)
        for way in Direction:
            self._pooled(table, way.value, self._estimate(way))
        table["error_bar"] = np.abs(self._differences().sum(1)) / self._totals.sum()
        audited = np.full(len(table), "", dtype=object)
        audited[self.sample.sites] = np.where(self.sample.is_top, "top", "random")
        table["audited"] = audited
        for way in Direction:
            exact = np.full((len(table), len(self.pairs)), np.nan)
            exact[self.sample.sites] = self._exact(way)
            self._pooled(table, f"exact_{way.value}", exact)
        return table

    def per_pair(self) -> pd.DataFrame:
        """One row per audited site, pair and direction: estimate, error bar and exact effect."""
        order = np.argsort(self.sample.sites, kind="stable")
        sites = self.sample.sites[order]
        labels = site_labels(self.cuts, self.tokens, sites)
        bars = np.abs(self._differences()[sites])
        frames = []
        for number, pair in enumerate(self.pairs):
            one, exact = self.estimates[number], self.exact[number]
            for way in Direction:
                frames.append(
                    labels.assign(
                        direction=way.value,
                        pair=number,
                        clean=pair.clean.address,
                        corrupt=pair.corrupt.address,
                        audited=np.where(self.sample.is_top[order], "top", "random"),
                        estimate=one.chosen[way][sites] / one.total,
                        error_bar=bars[:, number] / one.total,
                        exact=exact[way][order] / one.total,
                    )
                )
        return pd.concat(frames, ignore_index=True)

    def agreement(self) -> pd.DataFrame:
        """One row per cut and direction: how the pooled estimates agree with pooled exact effects.

        Columns are those of `Agreement`; correlations, error and the share found come with 95 %
        intervals over pairs (`_low`, `_high`), missing below five independent ones.
        """
        return self._agreements(np.ones((1, len(self.pairs))), self._drawn_pairs())

    def agreement_per_pair(self) -> pd.DataFrame:
        """The same for every pair by itself, without intervals."""
        each = np.eye(len(self.pairs))
        return pd.concat(
            [
                self._agreements(each[i : i + 1], None).assign(
                    pair=i, clean=pair.clean.address, corrupt=pair.corrupt.address
                )
                for i, pair in enumerate(self.pairs)
            ],
            ignore_index=True,
        )

    def missed(self) -> pd.DataFrame:
        """Audited sites whose exact effect reaches the threshold, and whose estimate does not."""
        return self._of_each_direction(
            lambda table: (
                (table.exact.abs() >= self.options.threshold)
                & (table.estimate.abs() < self.options.threshold)
            )
        )

    def completeness(self) -> pd.DataFrame:
        """Wholes of hook points: the sum of the estimates against patching everything at once.

        The `gap` is what the linearisation cannot account for at this cut. Queries and keys that
        pass the softmax exactly are taken together, not summed, over a head.
        """
        table = self._of_each_direction(lambda table: table.unit == "whole")
        return table.assign(gap=table.estimate - table.exact)

    def _of_each_direction(self, chosen: Callable[[pd.DataFrame], pd.Series]) -> pd.DataFrame:
        frame = self.frame()
        audited = frame[frame.audited != ""]
        places = audited[["hook", "unit", "depth", "address", "error_bar"]]
        tables = [
            places.assign(direction=way.value, estimate=audited[way], exact=audited[f"exact_{way}"])
            for way in Direction
        ]
        both = pd.concat(tables, ignore_index=True)
        return both[chosen(both)].reset_index(drop=True)

    @property
    def _totals(self) -> Float[np.ndarray, " pair"]:
        return np.array([one.total for one in self.estimates])

    def _estimate(self, way: Direction) -> Float[np.ndarray, "site pair"]:
        return np.stack([one.chosen[way] for one in self.estimates], 1)

    def _exact(self, way: Direction) -> Float[np.ndarray, "audited pair"]:
        return np.stack([effects[way] for effects in self.exact], 1)

    def _differences(self) -> Float[np.ndarray, "site pair"]:
        """Between the estimates with the gradients of the two runs."""
        denoise, noise = (
            np.stack([one.plain[way] for one in self.estimates], 1) for way in Direction
        )
        return denoise - noise

    def _pooled(self, table: pd.DataFrame, name: str, along: np.ndarray) -> None:
        pooled = pooled_ratio(along, self._totals[None], clusters=self.clusters, seed=self.seed)
        table[name], table[f"{name}_low"], table[f"{name}_high"] = (
            pooled.estimate, pooled.low, pooled.high,
        )  # fmt: skip

    def _drawn_pairs(self) -> Float[np.ndarray, "draw pair"] | None:
        """How often each bootstrap draw of clusters holds each pair; None below five clusters."""
        names, member = np.unique(self.clusters, return_inverse=True)
        if len(names) < MIN_CLUSTERS:
            return None
        generator = np.random.default_rng(self.seed)
        drawn = generator.integers(0, len(names), (_DRAWS, len(names)))
        return (drawn[:, :, None] == np.arange(len(names))).sum(1)[:, member].astype(float)

    def _agreements(
        self, times: Float[np.ndarray, "1 pair"], draws: Float[np.ndarray, "draw pair"] | None
    ) -> pd.DataFrame:
        starts = np.cumsum([0, *map(len, self.cuts)])
        of_cut = np.searchsorted(starts, self.sample.sites, side="right") - 1
        differences, rows = self._differences()[self.sample.sites], []
        for way in Direction:
            estimate, exact = self._estimate(way)[self.sample.sites], self._exact(way)
            for number, cut in enumerate(self.cuts):
                here = of_cut == number
                audit = agreement(
                    self._shares(estimate[here], times)[0],
                    self._shares(exact[here], times)[0],
                    np.abs(self._shares(differences[here], times)[0]),
                    self.sample.is_top[here],
                    n_sites=len(cut),
                    top_k=self.options.top_k,
                    threshold=self.options.threshold,
                )
                spread = None
                if draws is not None:
                    spread = figures(
                        self._shares(estimate[here], draws),
                        self._shares(exact[here], draws),
                        audit.k,
                    )
                place = {"hook": cut.hook, "unit": cut.unit, "depth": cut.depth}
                rows.append({**place, "direction": way.value, **_in_columns(audit, spread)})
        return pd.DataFrame(rows)

    def _shares(
        self, along: Float[np.ndarray, "site pair"], times: Float[np.ndarray, "draw pair"]
    ) -> Float[np.ndarray, "draw site"]:
        """Pooled restored shares, with every pair as often as `times` says."""
        return times @ along.T / (times @ self._totals)[:, None]


def _in_columns(audit: Agreement, spread: Figures | None) -> dict[str, float]:
    """The audit's numbers by column, with the intervals of its figures over the draws."""
    columns = {name: value for name, value in vars(audit).items() if name != "figures"}
    for name, value in vars(audit.figures).items():
        columns[name] = float(value)
        low = high = np.nan
        if spread is not None and np.isfinite(draws := vars(spread)[name]).any():
            low, high = np.nanquantile(draws, (0.025, 0.975))
        columns |= {f"{name}_low": low, f"{name}_high": high}
    return columns
