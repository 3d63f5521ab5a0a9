"""What a sweep found: the tables people read, and the numbers behind them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from actlens.errors import SceneError
from actlens.interventions import Audit
from actlens.metrics import Direction, Projection
from actlens.notebook import DrawnAsTable
from actlens.patching.clusters import episode_clusters
from actlens.patching.parts import Part
from actlens.patching.pool import Of, Pool
from actlens.patching.sweep import PairSweep, SweepOptions
from actlens.scene import ScenePair
from actlens.statistics import Interval, false_discovery, max_t_p, sign_flip_p

_INTEGERS = ("layer", "token", "row", "col", "head", "neuron")


@dataclass(frozen=True)
class PatchingResult(DrawnAsTable):
    """Both directions and the null, over all pairs that count.

    `frame()` is the table people read, one row a part; `joints()` and `chunk_positions()` say what
    every part did to every joint and at every chunk position; `per_pair()` has the numbers behind.
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
    joint_names: tuple[str, ...] = ()
    """Of the action's dimensions; `joint_0` … if not given."""

    @property
    def audits(self) -> tuple[Audit, ...]:
        """One per sweep that was made within an allowed error; none if all are exact."""
        sweeps = [*self.null, *(sweep for sweeps in self.sweeps.values() for sweep in sweeps)]
        return tuple(sweep.audit for sweep in sweeps if sweep.audit is not None)

    @property
    def clusters(self) -> Int[np.ndarray, " pair"]:
        """Which pairs share an episode: intervals draw whole clusters."""
        return episode_clusters(self.pairs)

    @property
    def null_clusters(self) -> Int[np.ndarray, " pair"]:
        """Which pairs share an episode, the null's donors' included: p flips whole clusters."""
        return episode_clusters(self.pairs, with_donors=True)

    @property
    def gripper_difference_mm(self) -> float:
        """How far the two scenes' own actions put the gripper apart, at the last executed position.

        The mean over pairs, to hold `gripper_mm` against; NaN where the kinematics are unknown.
        """
        own = [s.gripper_end_difference for s in self.sweeps[Direction.DENOISE]]
        return float(np.mean([np.nan if mm is None else mm for mm in own]))

    def frame(self) -> pd.DataFrame:
        """One row per part: pooled shares with 95 % intervals over clusters of pairs, the null, p.

        Columns, after the part's labels:

        - `denoise`, `noise`, `null`: the restored share, each with `_low` and `_high`.
        - `off_axis`, `cosine`, `distance_recovered` (`actlens.metrics.Projection`), of denoising.
        - `gripper_mm` (with `_low`, `_high`): how far denoising moved the gripper's tip at the last
          executed position; `gripper_largest_mm`: the most at any measured position, both means
          over pairs. `gripper_restored`: the restored share of the tip's displacement. Missing
          where the arm's kinematics are unknown.
        - `p`: denoise against null, sign flips of clusters; `q`: Benjamini-Hochberg over all parts
          (the share of false findings); `p_max_t`: Westfall-Young over all parts (the chance of
          any). Only where there is a null; missing where its pairs make one cluster.
        - `site_change` and `output_change`, the largest over pairs.

        Intervals are missing below five clusters.
        """
        table = self._labels()
        for direction in self.sweeps:
            _put(table, direction.value, self._pool(direction).ratio(_along, _total))
        denoise = self._pool(Direction.DENOISE)
        table["off_axis"] = np.sqrt(
            denoise.estimate(lambda s: s.projection.off_axis.numpy() ** 2 * s.total, _total)
        )
        table["cosine"] = _pooled_cosine(denoise)
        table["distance_recovered"] = denoise.estimate(
            lambda s: s.projection.distance_recovered.numpy() * s.total**0.5,
            lambda s: s.total**0.5,
        )
        _put(table, "gripper_mm", denoise.ratio(_gripper_mm, _one))
        table["gripper_largest_mm"] = denoise.estimate(_gripper_largest_mm, _one)
        table["gripper_restored"] = denoise.estimate(
            lambda s: _or_missing(s.gripper_along, s),
            lambda s: np.nan if s.gripper_total is None else s.gripper_total,
        )
        if self.null:
            null = self._null_pool
            _put(table, "null", null.ratio(_along, _total))
            share = lambda sweep: sweep.along / sweep.total
            difference = denoise.stacked(share) - null.stacked(share)
            table["p"], table["p_max_t"] = (
                self._tested(test, difference) for test in (sign_flip_p, max_t_p)
            )
            table["q"] = false_discovery(table.p.to_numpy())
        table["site_change"] = _nanmax(denoise.stacked(lambda s: s.site_change))
        table["output_change"] = _nanmax(denoise.stacked(lambda s: s.output_change))
        return table

    def joints(self, direction: Direction = Direction.DENOISE) -> pd.DataFrame:
        """One row per part and joint: what patching the part did to the joint, in its own unit.

        Columns, after the part's labels and `joint`, in dataset units, means over the measured
        chunk positions and over pairs:

        - `effect`: mean absolute change of the joint; `shift`: mean change, in which opposite ones
          cancel; each with its 95 % interval (`_low`, `_high`).
        - `difference`: the same of the two scenes' own actions, for comparison with `effect`.
        - `restored` (with its interval): the share of this joint's own difference; `component`:
          what the joint adds to the part's restored share, which is the sum over joints.
        - `null`, `p`, `q`: the null's component, and tests of the component against it over all
          rows; only where there is a null, and for denoising.
        """
        pool = self._pool(direction)
        weight = lambda sweep: sweep.weights.sum()
        table = self._repeated("joint", self._names_of_joints())
        _put(table, "effect", pool.ratio(lambda s: s.joint_size, weight))
        _put(table, "shift", pool.ratio(lambda s: s.joint_signed, weight))
        table["difference"] = self._alike(pool.estimate(lambda s: s.joint_difference, weight))
        self._put_shares(table, direction, lambda s: s.joint_along, lambda s: s.joint_total)
        return table

    def chunk_positions(self, direction: Direction = Direction.DENOISE) -> pd.DataFrame:
        """One row per part and measured chunk position: what patching the part did there.

        `position` counts control steps from 0. `effect` and `difference` are means over joints of
        absolute changes, in dataset units; the other columns are as in `joints`.

        Raises:
            SceneError: if the sweep was made with `by_position=False`.
        """
        pool = self._pool(direction)
        measured = np.flatnonzero(pool.stacked(lambda s: s.weights).any(1))
        weights = lambda sweep: sweep.weights[measured]
        table = self._repeated("position", measured)
        _put(table, "effect", pool.ratio(lambda s: _kept(s.position_size)[:, measured], weights))
        table["difference"] = self._alike(
            pool.estimate(lambda s: s.position_difference[measured], weights)
        )
        self._put_shares(
            table,
            direction,
            lambda s: _kept(s.position_along)[:, measured],
            lambda s: s.position_total[measured],
        )
        return table

    def per_pair(self) -> pd.DataFrame:
        """One row per direction (and null), pair and part: shares, gripper and receipts."""
        rows = []
        runs = [(direction.value, sweeps) for direction, sweeps in self.sweeps.items()]
        labels, clusters = self._labels(), self.clusters
        for name, sweeps in [*runs, ("null", self.null)]:
            for number, (pair, sweep) in enumerate(zip(self.pairs, sweeps, strict=False)):
                found = sweep.projection
                rows.append(
                    labels.assign(
                        direction=name,
                        pair=number,
                        cluster=clusters[number],
                        clean=pair.clean.address,
                        corrupt=pair.corrupt.address,
                        restored=found.share.numpy(),
                        off_axis=found.off_axis.numpy(),
                        cosine=found.cosine.numpy(),
                        distance_recovered=found.distance_recovered.numpy(),
                        gripper_mm=_gripper_mm(sweep),
                        gripper_largest_mm=_gripper_largest_mm(sweep),
                        site_change=sweep.site_change,
                        output_change=sweep.output_change,
                    )
                )
        return pd.concat(rows, ignore_index=True)

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
            if part.hook == hook and part.camera == camera and part.row is not None
        ]
        sweeps = self.sweeps[direction] if pair is None else self.sweeps[direction][pair : pair + 1]
        pooled = Pool(sweeps, np.arange(len(sweeps)), self.seed).estimate(_along, _total)
        return pooled[chosen].reshape(self.cameras[camera])

    def _pool(self, direction: Direction) -> Pool:
        return Pool(self.sweeps[direction], self.clusters, self.seed)

    @property
    def _null_pool(self) -> Pool:
        return Pool(self.null, self.null_clusters, self.seed)

    def _tested(self, test: Callable, difference: np.ndarray) -> np.ndarray:
        """The p values of differences from the null; one cluster alone can tell nothing."""
        p = test(difference, clusters=self.null_clusters, seed=self.seed)
        return p if len(set(self.null_clusters)) > 1 else np.full_like(p, np.nan)

    def _put_shares(self, table: pd.DataFrame, direction: Direction, along: Of, total: Of) -> None:
        """The restored share of every row of a long table, its component, and the null's."""
        pool = self._pool(direction)
        _put(table, "restored", pool.ratio(along, total))
        table["component"] = pool.estimate(along, _total).ravel()
        if self.null and direction is Direction.DENOISE:
            null = self._null_pool
            table["null"] = null.estimate(along, _total).ravel()
            component = lambda sweep: along(sweep) / sweep.total
            difference = pool.stacked(component) - null.stacked(component)
            table["p"] = self._tested(sign_flip_p, difference).ravel()
            table["q"] = false_discovery(table.p.to_numpy())

    def _names_of_joints(self) -> Sequence[str]:
        n_joints = len(self.sweeps[Direction.DENOISE][0].joint_total)
        return self.joint_names or [f"joint_{i}" for i in range(n_joints)]

    def _repeated(self, name: str, entries: Sequence[str] | np.ndarray) -> pd.DataFrame:
        """The labels of every part, once for each entry."""
        labels = self._labels()
        table = labels.loc[labels.index.repeat(len(entries))].reset_index(drop=True)
        table[name] = np.tile(np.asarray(entries), len(self.parts))
        return table

    def _alike(self, values: np.ndarray) -> np.ndarray:
        """What is the same for every part, once for each."""
        return np.tile(values, len(self.parts))

    def _labels(self) -> pd.DataFrame:
        table = pd.DataFrame([part.labels for part in self.parts])
        return table.astype(dict.fromkeys(_INTEGERS, "Int64"))


def _along(sweep: PairSweep) -> np.ndarray:
    return sweep.along


def _total(sweep: PairSweep) -> float:
    return sweep.total


def _one(sweep: PairSweep) -> float:
    return 1.0


def _or_missing(values: np.ndarray | None, sweep: PairSweep) -> np.ndarray:
    return np.full(len(sweep.along), np.nan) if values is None else values


def _pooled_cosine(pool: Pool) -> np.ndarray:
    """Of the movements of all pairs, one behind the other, with their differences."""
    share, moved = pool.estimate(_along, _total), pool.estimate(lambda s: s.moved, _total)
    share, moved = torch.from_numpy(share), torch.from_numpy(moved)
    return Projection(share, torch.ones_like(share), moved).cosine.numpy()


def _kept(values: np.ndarray | None) -> np.ndarray:
    if values is None:
        raise SceneError(
            "What happened at each chunk position was not kept: patch with by_position=True."
        )
    return values


def _gripper_mm(sweep: PairSweep) -> np.ndarray:
    return _or_missing(sweep.gripper_end, sweep)


def _gripper_largest_mm(sweep: PairSweep) -> np.ndarray:
    return _or_missing(sweep.gripper_largest, sweep)


def _put(table: pd.DataFrame, name: str, interval: Interval) -> None:
    table[name] = interval.estimate.ravel()
    table[f"{name}_low"], table[f"{name}_high"] = interval.low.ravel(), interval.high.ravel()


def _nanmax(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values).any(1), np.nan_to_num(values, nan=-np.inf).max(1), np.nan)
