"""The console report of a policy over the table and along the doses; computes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from actlens.report.cells import number
from actlens.report.closing import closing
from actlens.report.layout import facts_header, words_and_numbers
from actlens.report.plain import plain
from actlens.report.styles import WARNING


@dataclass(frozen=True)
class Dose:
    """One statistic of a series."""

    title: str
    found: pd.DataFrame
    """Columns `arm`, `region` or `statistic`, `mean`, `smallest`, `largest`, `seeds`."""
    form: str
    """How a value is written."""


def render_generalization(
    indices: pd.DataFrame,
    success: pd.DataFrame,
    doses: Sequence[Dose],
    by_distance: pd.DataFrame,
    verdicts: dict[str, pd.DataFrame],
    *,
    policy: str,
    facts: Sequence[tuple[str, str]] = (),
    files: Sequence[Path] = (),
    next_steps: Sequence[str] = (),
) -> RenderableType:
    """Errors by region, closed-loop success by region, and what other doses of data do.

    Args:
        indices: `Offline.frames()["indices"]`.
        success: `success_summary`; empty if nothing was rolled out.
        doses: over training seeds; none if there is no series.
        by_distance: `success_by_distance`; empty if there is no series.
        verdicts: `verdicts_along`, by the frames that they are about.
        policy: one line that identifies the policy.
        facts: further lines of the header.
        files: what was written.
        next_steps: commands worth running now.
    """
    question = "how far beyond its demonstrations does it reach?"
    header = facts_header("generalization", question, [("policy", policy), *facts])
    parts: list[RenderableType] = [header]
    for frames in dict.fromkeys(indices.frames):
        parts += [Text(), _offline(indices, frames)]
    parts += [Text(), Text(_OFFLINE)]
    undefined = indices[(indices.undefined != "") & ~indices.region.isin(_TOGETHER)]
    undefined = undefined.drop_duplicates("undefined")
    parts += [
        Text(
            f"! {plain(row.region)}, {plain(row.frames)}, {plain(row.measure)}: "
            f"{plain(row.undefined)}",
            style=WARNING,
        )
        for row in undefined.itertuples()
    ]
    if len(success):
        parts += [Text(), _success(success)]
    if doses:
        for dose in doses:
            parts += [Text(), _dose(dose)]
        parts += [Text(), _by_distance(by_distance)]
        parts += [Text(), _verdicts(verdicts)]
        parts += [Text(), Text(_DOSES.format(seeds=_seeds(doses)))]
    return Group(*parts, *closing([], 0, min_effect=0, files=files, next_steps=next_steps))


_OFFLINE = (
    "nearest: the demonstration nearest in cube place, heading and frame, in the policy's stead. "
    "index: 1 as good as on its own demonstrations, 0 as bad as the nearest one, below 0 worse; "
    "95 % by episode. At frame 0 the arm's pose says nothing yet of where the cube is; later it "
    "does, as the expert moved it there."
)
_DOSES = (
    "Small policies, trained from scratch for equally many steps; mean over training seeds "
    "({seeds}), which also draw the demonstrations, and smallest to largest seed (of the "
    "mechanism: in the files). held-out: cells between demonstrated ones; strip: beyond them."
)


def _seeds(doses: Sequence[Dose]) -> str:
    counts = sorted({int(n) for dose in doses for n in dose.found.seeds if n})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _offline(indices: pd.DataFrame, frames: str) -> Table:
    table = words_and_numbers(
        f"Off the expert, {plain(frames)}", "scenes", "trained", "here, 95 %", "nearest", "index"
    )
    some = indices[~indices.region.isin(_TOGETHER) & (indices.frames == frames)]
    for _, row in some.iterrows():
        index = "undefined" if row.undefined else f"{row['index']:.2f}"
        if not np.isnan(row.low):
            index += f" ({row.low:.2f}…{row.high:.2f})"
        here = f"{row.policy_unseen:.1f} ({row.policy_unseen_low:.1f}…{row.policy_unseen_high:.1f})"
        table.add_row(
            Text(plain(f"{row.region}, {_UNIT.get(row.measure, row.measure)}")),
            f"{row.policy_trained:.1f}",
            here,
            f"{row.nearest_unseen:.1f}",
            index,
        )
    return table


_TOGETHER = ("all", "between")
"""Regions that are sums of others."""
_UNIT = {"arm, degrees": "degrees", "tip, mm": "mm"}


def _success(success: pd.DataFrame) -> Table:
    table = words_and_numbers(
        "Closed loop", "cube", "lifted", "share, 95 %", "gripper to cube, mm (median)"
    )
    for _, row in success.iterrows():
        table.add_row(
            Text(plain(row.region)),
            f"{row.successes}/{row.rollouts}",
            f"{row.success:.2f} ({row.success_low:.2f}…{row.success_high:.2f})",
            f"{row.tip_error_mm:.1f}",
        )
    return table


def _by_distance(found: pd.DataFrame) -> Table:
    title = "Closed loop, all policies, by distance to the nearest demonstration"
    table = words_and_numbers(title, "mm", "rollouts", "lifted, 95 % by rollout")
    for _, row in found.iterrows():
        far = "and more" if np.isinf(row.to_mm) else f"to {row.to_mm:g}"
        share = f"{row.success:.2f} ({row.low:.2f}…{row.high:.2f})"
        table.add_row(f"{row.from_mm:g} {far}", f"{row.rollouts:g}", share)
    return table


def _verdicts(verdicts: dict[str, pd.DataFrame]) -> Table:
    """How many seeds of an arm got which answer; what an undecided one may be."""
    table = words_and_numbers("Verdict, by number of seeds", "shown", *map(plain, verdicts))
    arms = dict.fromkeys(arm for found in verdicts.values() for arm in found.arm)
    for arm in arms:
        cells = []
        for found in verdicts.values():
            answers = found[found.arm == arm].answer.value_counts(sort=False)
            cells.append("\n".join(f"{answer} {n}" for answer, n in answers.items()))
        table.add_row(Text(plain(arm)), *map(plain, cells))
    return table


_SHORT = {
    "demonstrated places": "demonstrated",
    "jump between neighbours": "jump",
    "|log10 slope / secant|": "slope",
    "deviation between neighbours": "deviation",
    "smooth against table surrogate": "surrogate",
    "participation of neurons": "neurons",
    "specificity of ablations": "ablations",
}
"""Names as heads of columns."""


def _dose(dose: Dose) -> Table:
    """A row an arm; a column a region, with its range over seeds, or a statistic."""
    found, by_region = dose.found, "region" in dose.found
    key = "region" if by_region else "statistic"
    columns = [name for name in dict.fromkeys(found[key]) if name not in (*_TOGETHER, "none")]
    heads = [plain(_SHORT.get(name, name)) for name in columns]
    table = words_and_numbers(dose.title, "shown", *heads, dense=True)
    for arm, rows in found.groupby("arm", sort=False):
        cells = []
        for column in columns:
            one = rows[rows[key] == column]
            cells.append(_mean(one.iloc[0], dose.form, ranged=by_region) if len(one) else "")
        table.add_row(Text(plain(arm)), *cells)
    return table


def _mean(row: pd.Series, form: str, *, ranged: bool) -> str:
    mean = number(row["mean"], form) or "undefined"
    if not ranged or row.seeds < 2:
        return mean
    return f"{mean} ({row.smallest:{form}}…{row.largest:{form}})"
