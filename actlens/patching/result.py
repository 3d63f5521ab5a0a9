"""What a sweep found: the table people read, and the numbers behind it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from actlens.interventions import Audit
from actlens.patching.parts import Part
from actlens.patching.sweep import Direction, PairSweep, SweepOptions
from actlens.scene import ScenePair
from actlens.statistics import false_discovery, pooled_ratio, sign_flip_p


@dataclass(frozen=True)
class PatchingResult:
    """Both directions and the null, over all pairs that count.

    `frame()` is the table people read; `per_pair()` the numbers behind it.
    """

    parts: tuple[Part, ...]
    sweeps: dict[Direction, tuple[PairSweep, ...]]
    null: tuple[PairSweep, ...]
    """Denoising with a donor that shares the corrupt scene's value and nothing else."""
    pairs: tuple[ScenePair, ...]
    """The pairs that were patched, in the order of the sweeps."""
    left_out: tuple[tuple[ScenePair, float], ...]
    """Pairs whose actions differ too little to be restored, with that difference."""
    differs_in: str
    cameras: dict[str, tuple[int, int]]
    """Token grid (rows, columns) by camera name."""
    options: SweepOptions
    seed: int = 0

    @property
    def audits(self) -> tuple[Audit, ...]:
        """One per sweep that was made within an allowed error; none if all are exact."""
        sweeps = [*self.null, *(sweep for sweeps in self.sweeps.values() for sweep in sweeps)]
        return tuple(sweep.audit for sweep in sweeps if sweep.audit is not None)

    def per_pair(self) -> pd.DataFrame:
        """One row per direction (and null), pair and part: restored share, off-axis, receipts."""
        rows = []
        runs = [(direction.value, sweeps) for direction, sweeps in self.sweeps.items()]
        for name, sweeps in [*runs, ("null", self.null)]:
            for number, (pair, sweep) in enumerate(zip(self.pairs, sweeps, strict=False)):
                orthogonal = np.clip(sweep.moved - sweep.along**2 / sweep.total, 0, None)
                rows.append(
                    self._labels().assign(
                        direction=name,
                        pair=number,
                        clean=pair.clean.address,
                        corrupt=pair.corrupt.address,
                        restored=sweep.along / sweep.total,
                        off_axis=np.sqrt(orthogonal / sweep.total),
                        site_change=sweep.site_change,
                        output_change=sweep.output_change,
                    )
                )
        return pd.concat(rows, ignore_index=True)

    def frame(self) -> pd.DataFrame:
        """One row per part: pooled shares with 95 % intervals over pairs, the null, p and q.

        Columns `denoise`, `noise`, `null` (each with `_low`, `_high`), `off_axis`, `p` (sign flips
        of pairs, denoise against null), `q` (Benjamini-Hochberg over all parts), `site_change` and
        `output_change` (largest over pairs). Intervals are missing below five pairs, p and q where
        there is no null.
        """
        table = self._labels()
        for direction, sweeps in self.sweeps.items():
            self._pooled(table, direction.value, sweeps)
        denoise = self.sweeps[Direction.DENOISE]
        moved = np.stack([s.moved for s in denoise], 1)
        along, total = self._stacked(denoise)
        off = np.sqrt(np.clip(moved - along**2 / total, 0, None) / total)
        table["off_axis"] = _nanmean(off)
        table["site_change"] = _nanmax(np.stack([s.site_change for s in denoise], 1))
        table["output_change"] = _nanmax(np.stack([s.output_change for s in denoise], 1))
        if self.null:
            self._pooled(table, "null", self.null)
            null_along, null_total = self._stacked(self.null)
            usable = np.isfinite(along).all(1) & np.isfinite(null_along).all(1)
            difference = (along / total - null_along / null_total)[usable]
            p, q = np.full(len(along), np.nan), np.full(len(along), np.nan)
            if difference.shape[1] >= 2:
                p[usable] = sign_flip_p(difference, seed=self.seed)
                q[usable] = false_discovery(p[usable])
            table["p"], table["q"] = p, q
        return table

    def heatmap(
        self,
        camera: str,
        hook: str,
        direction: Direction = Direction.DENOISE,
        pair: int | None = None,
    ) -> Float[np.ndarray, "row col"]:
        """Restored share of every token of one camera at one hook point, pooled or of one pair."""
        chosen = [
            i
            for i, part in enumerate(self.parts)
            if part.hook == hook and part.token is not None and part.label.startswith(f"{camera}[")
        ]
        sweeps = self.sweeps[direction] if pair is None else self.sweeps[direction][pair : pair + 1]
        along, total = self._stacked(sweeps)
        return (along.sum(1) / total.sum(1))[chosen].reshape(self.cameras[camera])

    def _labels(self) -> pd.DataFrame:
        return pd.DataFrame(
            [
                {
                    "hook": part.hook,
                    "unit": part.unit.value,
                    "part": part.label,
                    "depth": part.depth,
                    "token": part.token,
                    "head": part.head,
                }
                for part in self.parts
            ]
        ).astype({"token": "Int64", "head": "Int64"})

    def _stacked(self, sweeps: Sequence[PairSweep]) -> tuple[np.ndarray, np.ndarray]:
        along = np.stack([sweep.along for sweep in sweeps], 1)
        return along, np.asarray([[sweep.total for sweep in sweeps]])

    def _pooled(self, table: pd.DataFrame, name: str, sweeps: Sequence[PairSweep]) -> None:
        along, total = self._stacked(sweeps)
        columns = np.full((3, len(along)), np.nan)
        # Parts that some pair does not have are pooled over the pairs that do.
        for having in np.unique(np.isfinite(along), axis=0):
            rows = (np.isfinite(along) == having).all(1)
            if having.any():
                pooled = pooled_ratio(along[rows][:, having], total[:, having], seed=self.seed)
                columns[:, rows] = pooled.estimate, pooled.low, pooled.high
        table[name], table[f"{name}_low"], table[f"{name}_high"] = columns


def _nanmean(values: np.ndarray) -> np.ndarray:
    finite = np.isfinite(values)
    count = finite.sum(1)
    return np.where(count > 0, np.where(finite, values, 0).sum(1) / np.maximum(count, 1), np.nan)


def _nanmax(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values).any(1), np.nan_to_num(values, nan=-np.inf).max(1), np.nan)
