"""Do neurons move the arm the way their values promise, and further than other neurons do?

    scales = NeuronScales.of(model, dataset.scenes(chunk=50, frames=slice(None, None, 15)),
                             "decoder.0")
    claim = Claim("to the left", (17, 301), (1.0, 0, 0, 0, 0, 0))
    found = steer(model, draw_starts(10), scales, [claim])
    found.summary()

Claimed neurons are compared with matched ones: the same number, alike in the length of their values
and in how strongly and how often they fire. Every draw of them is rolled out from every start. The
start is the sampling unit; against which neurons were drawn speaks how many draws did as well.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from actlens.errors import InterventionError
from actlens.model.act import HookedACT
from actlens.notebook import DrawnAsTable
from actlens.sim.closed_loop import ClosedLoop, compare, pooled_columns
from actlens.sim.conditions import UNDISTURBED, Condition, Start
from actlens.sim.controlled import Episode, simulator_for
from actlens.sim.environment import PickCube
from actlens.sim.paired_success import paired_success
from actlens.sim.steering import AddValues, Claim, Dosing, NeuronScales, displacement
from actlens.statistics import false_discovery, sign_flip_p

_MATCHED = ("matched_mm", "matched_deg", "matched_apart_mm", "matched_successes", "as_far", "p")


@dataclass(frozen=True)
class Treatment:
    """Some neurons at some dose; the name of its condition in a comparison."""

    claim: Claim
    dose: float
    neurons: tuple[int, ...]
    draw: int | None = None
    """Which draw of matched neurons; None for the claimed ones."""
    times: float = 1.0
    """What the dose is multiplied by."""

    @property
    def name(self) -> str:
        """`to the left +2`, `to the left +2, matched 1`."""
        matched = "" if self.draw is None else f", matched {self.draw + 1}"
        return f"{self.claim.name} {self.dose:+g}{matched}"


@dataclass(frozen=True)
class SteeringOptions:
    """What is rolled out for every claim.

    A start costs a rollout for every dose, and one for every draw at every controlled dose.
    """

    dosing: Dosing = field(default_factory=AddValues)
    doses: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0)
    """Of the claimed neurons, in high values of their own coefficients. Adding values costs no
    rollout at dose 0."""
    controlled: tuple[float, ...] = (-2.0, 2.0)
    """Doses at which matched neurons are rolled out as well."""
    draws: int = 3
    equal_writes: bool = True
    """Whether matched neurons are dosed so that they write a vector as long as the claimed ones do:
    values that agree add up to a longer one than values that do not."""
    steps: int = 90
    """Control steps of a rollout, 40 ms each."""
    seed: int = 0
    """Of the draws and of the bootstrap."""

    def __post_init__(self) -> None:
        strange = not self.doses or len(set(self.doses)) < len(self.doses) or self.draws < 0
        if strange or not set(self.controlled) <= set(self.doses):
            raise InterventionError(
                f"Give different doses, of which the controlled ones are some: doses {self.doses}, "
                f"controlled {self.controlled}, {self.draws} draws."
            )


def steer(
    model: HookedACT,
    starts: Sequence[Start],
    scales: NeuronScales,
    claims: Sequence[Claim],
    *,
    options: SteeringOptions | None = None,
    env: PickCube | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> "SteeredRollouts":
    """Dose the neurons of every claim, and matched ones, at every inference of rollouts.

    Args:
        scales: of the MLP whose neurons are claimed.
        env: the simulator; made for the policy if not given.
        progress: called with (rollouts done, rollouts in all).

    Raises:
        SceneError: if the simulator does not fit the policy.
        InterventionError: if there is no start or no claim, two claims share a name, a neuron has
            no scale, or there are too few others to match it.
    """
    options = options or SteeringOptions()
    if env is None:
        with closing(simulator_for(model)) as own:
            return steer(model, starts, scales, claims, options=options, env=own, progress=progress)
    treatments = _treatments(model, scales, claims, options)
    conditions = []
    for one in treatments:
        dose = one.times * one.dose
        what = options.dosing.intervention(model, scales, one.neurons, dose)
        if what is not None:
            conditions.append(Condition(one.name, what))
    found = compare(
        model, env, starts, conditions, steps=options.steps, seed=options.seed, progress=progress
    )
    return SteeredRollouts(found, treatments)


def _treatments(
    model: HookedACT, scales: NeuronScales, claims: Sequence[Claim], options: SteeringOptions
) -> tuple[Treatment, ...]:
    if not claims:
        raise InterventionError("There is no claim about neurons to test.")
    made = []
    for number, claim in enumerate(claims):
        scales.require(claim.neurons)
        assert len(claim.unit)  # raises where it promises nothing
        made += [Treatment(claim, dose, claim.neurons) for dose in options.doses]
        for draw in range(options.draws if options.controlled else 0):
            # The same neurons at every dose, other ones for every claim and draw.
            seed = int(np.random.default_rng([options.seed, number, draw]).integers(2**31))
            others = scales.matched(claim.neurons, seed=seed)
            lengths = (np.linalg.norm(scales.write(model, i)) for i in (claim.neurons, others))
            times = float(next(lengths) / next(lengths)) if options.equal_writes else 1.0
            made += [Treatment(claim, dose, others, draw, times) for dose in options.controlled]
    return tuple(made)


@dataclass(frozen=True, eq=False)
class SteeredRollouts(DrawnAsTable):
    """The rollouts; `summary()` and `dose_response()` are the tables people read."""

    closed_loop: ClosedLoop
    treatments: tuple[Treatment, ...]

    def episodes(self, treatment: Treatment) -> tuple[Episode, ...]:
        """By start; undisturbed ones at a dose at which nothing is done."""
        every = self.closed_loop.episodes
        return every.get(treatment.name, every[UNDISTURBED.name])

    def frame(self, at: int | None = None) -> pd.DataFrame:
        """One row per treatment and start: how far it went, and which way.

        Against the undisturbed rollout of the same start: `along_deg` is the displacement of the
        joints along the promised direction (the gripper's percent count as degrees), `apart_deg`
        its length in any direction; `along_mm` that of the gripper's tip along the way in which the
        promised motion would take it from where it was undisturbed (missing if it would not move),
        `apart_mm` in any direction. Means over control steps; `…_at` at step `at` alone, the middle
        of the rollout if not given.

        Raises:
            InterventionError: if the rollouts do not reach step `at`.
        """
        rows = []
        undisturbed = self.closed_loop.episodes[UNDISTURBED.name]
        steps = len(undisturbed[0].result.actions)
        at = steps // 2 if at is None else at
        if not 0 < at <= steps:
            raise InterventionError(f"The rollouts have steps 1 to {steps}; there is no {at}.")
        for one in self.treatments:
            for start, pair in enumerate(zip(self.episodes(one), undisturbed, strict=True)):
                row = {
                    "claim": one.claim.name,
                    "dose": one.dose,
                    "draw": one.draw,
                    "start": start,
                    "success": pair[0].result.success,
                    "success_undisturbed": pair[1].result.success,
                }
                for name, values in displacement(*pair, one.claim).items():
                    row |= {name: float(values[1:].mean()), f"{name}_at": float(values[at])}
                rows.append(row)
        return pd.DataFrame(rows).astype({"draw": "Int64"})

    def summary(self, at: int | None = None) -> pd.DataFrame:
        """One row per claim and dose, with 95 % bootstrap intervals over starts.

        `along_mm`, `along_deg` and `apart_mm` as in `frame()`; `straight` is the share of the
        joints' displacement that goes the promised way (1: all of it, -1: all the other way).
        `successes` of `rollouts`, `success_change` with Tango's interval against the undisturbed.

        Where matched neurons were rolled out: the means over `draws` of them (`matched_mm`,
        `matched_apart_mm`, `matched_successes`), `more_deg` and `more_mm`, by how much the claimed
        neurons moved the arm further along than these, `p` that this is centred on zero (sign flips
        of starts) and `q` (Benjamini-Hochberg); `as_far` counts draws whose mean went as far the
        dose's way: with none among n draws, p over neurons is 1 / (n + 1).
        """
        frame = self.frame(at)
        rows = []
        for (claim, dose), every in frame.groupby(["claim", "dose"], sort=False):
            mine, others = every[every.draw.isna()], every[every.draw.notna()]
            rows.append({"claim": claim, "dose": dose} | self._row(mine, others, float(dose)))
        table = pd.DataFrame(rows)
        table["q"] = false_discovery(table.p.to_numpy())
        return table

    def _row(self, mine: pd.DataFrame, others: pd.DataFrame, dose: float) -> dict[str, float]:
        n = len(mine)
        paired = paired_success(mine.success_undisturbed.to_numpy(), mine.success.to_numpy())
        row = {"rollouts": n, "successes": int(mine.success.sum())}
        row |= {
            "success_change": paired.change,
            "success_change_low": paired.low,
            "success_change_high": paired.high,
        }
        row |= self._pooled("straight", mine.along_deg, mine.apart_deg)
        for name in ("along_mm", "along_deg", "apart_mm", "along_mm_at", "along_deg_at"):
            row |= self._pooled(name, mine[name])
        draws = others.draw.nunique()
        row |= {"draws": draws} | dict.fromkeys(_MATCHED, np.nan)
        if not draws:
            return row
        by_start = others.groupby("start")[["along_mm", "along_deg", "apart_mm", "success"]].mean()
        by_draw = others.groupby("draw").along_deg.mean().to_numpy()
        further = mine.along_deg.to_numpy() - by_start.along_deg.to_numpy()
        sign = -1.0 if dose <= 0 else 1.0
        row |= {
            "matched_mm": float(by_start.along_mm.mean()),
            "matched_deg": float(by_start.along_deg.mean()),
            "matched_apart_mm": float(by_start.apart_mm.mean()),
            "matched_successes": float(by_start.success.sum()),
            "as_far": int((sign * by_draw >= sign * mine.along_deg.mean()).sum()),
            "p": float(sign_flip_p(further)),
        }
        row |= self._pooled("more_deg", further)
        return row | self._pooled(
            "more_mm", mine.along_mm.to_numpy() - by_start.along_mm.to_numpy()
        )

    def dose_response(self) -> pd.DataFrame:
        """One row per claim: does the arm go further along the more is dosed?

        With `along_deg` of `frame()`: `slope_deg`, degrees a dose (least squares), and `tau`,
        Kendall's rank correlation with the dose (tau-b; 1: it never goes back), of every start.
        Means over starts with bootstrap intervals, and `p` that tau is centred on zero (sign flips
        of starts). Missing for a single dose.
        """
        frame, rows = self.frame(), []
        for claim, mine in frame[frame.draw.isna()].groupby("claim", sort=False):
            table = mine.pivot(index="dose", columns="start", values="along_deg")
            doses, along = table.index.to_numpy(float), table.to_numpy()
            if len(doses) < 2:
                continue
            centred = doses - doses.mean()
            slopes = centred @ along / (centred @ centred)
            tau = np.array([stats.kendalltau(doses, of_start).statistic for of_start in along.T])
            row = {"claim": claim, "doses": len(doses), "p": float(sign_flip_p(tau))}
            rows.append(row | self._pooled("slope_deg", slopes) | self._pooled("tau", tau))
        return pd.DataFrame(rows)

    def _pooled(
        self,
        name: str,
        values: Float[np.ndarray, " start"] | pd.Series,
        of: pd.Series | None = None,
    ) -> dict[str, float]:
        values = np.asarray(values)
        whole = np.ones(len(values)) if of is None else of.to_numpy()
        return pooled_columns(name, values, whole, seed=self.closed_loop.seed)
