"""The closed-loop report: what interventions do to the robot, and what the loop undoes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from actlens.report.cells import estimate, number, p_value
from actlens.report.layout import facts_header, words_and_numbers
from actlens.report.plain import plain


def render_closed_loop(
    summary: pd.DataFrame,
    correction: pd.DataFrame | None = None,
    *,
    policy: str,
    steps: int,
    facts: Sequence[tuple[str, str]] = (),
    files: Sequence[Path] = (),
    next_steps: Sequence[str] = (),
) -> RenderableType:
    """What each condition did to success and to the gripper, and how much of it the loop undid.

    Args:
        summary: `ClosedLoop.summary()`.
        correction: `Correction.summary()`.
        policy: one line that identifies the policy.
        steps: control steps of a rollout.
        facts: further lines of the header.
        files: what was written.
        next_steps: commands worth running now.
    """
    n = int(summary.rollouts.max())
    parts: list[RenderableType] = [_header(n, policy, steps, facts), _outcomes(summary), Text()]
    parts += [_displacements(summary), Text(), Text(_outcome_note(summary, n))]
    if correction is not None:
        parts += [Text(), _corrections(correction), Text(), Text(_correction_note(correction))]
    if files:
        parts += [Text(), *(Text(f"  {plain(path)}") for path in files)]
    if next_steps:
        parts += [Text(), Text("next", style="bold"), *(Text(f"  {step}") for step in next_steps)]
    return Group(*parts)


def _header(n: int, policy: str, steps: int, facts: Sequence[tuple[str, str]]) -> RenderableType:
    rollouts = f"{n} starts, {steps} control steps, each condition"
    lines = [("policy", policy), ("rollouts", rollouts), *facts]
    return Group(facts_header("closed loop", "what does it do to the robot?", lines), Text())


def _outcomes(summary: pd.DataFrame) -> Table:
    table = words_and_numbers(
        "Outcome", "condition", "success, 95 %", "lost", "won", "change, 95 %", "p", "q"
    )
    for _, row in summary.iterrows():
        success = f"{row.successes}/{row.rollouts}"
        table.add_row(
            Text(plain(row.condition)),
            f"{success} ({100 * row.success_low:.0f}…{100 * row.success_high:.0f} %)",
            number(row.lost, ".0f"),
            number(row.gained, ".0f"),
            _percent(row.success_change_low, row.success_change_high),
            p_value(row.p),
            p_value(row.q),
            style=_style(row),
        )
    return table


def _displacements(summary: pd.DataFrame) -> Table:
    table = words_and_numbers(
        "Gripper", "condition", "off by, mm", "change, 95 %", "path, mm", "followed, 95 %"
    )
    for _, row in summary.iterrows():
        table.add_row(
            Text(plain(row.condition)),
            f"{row.tip_error_mm:.1f}",
            estimate(row, "tip_error_change_mm", "+.0f"),
            number(row.path_mm, ".1f"),
            estimate(row, "followed", ".2f"),
            style=_style(row),
        )
    return table


def _corrections(correction: pd.DataFrame) -> Table:
    title = "What the loop undoes of one intervened inference"
    table = words_and_numbers(
        title, "condition", "open", "closed, mm", "corrected, 95 %", "fresh", "looking"
    )
    for _, row in correction.iterrows():
        table.add_row(
            Text(plain(row.condition)),
            f"{row.open_mm:.1f}",
            f"{row.closed_mm:.1f}",
            estimate(row, "corrected", ".2f"),
            number(row.by_fresh_chunks, ".2f"),
            number(row.by_looking, ".2f"),
            style="dim" if np.isnan(row.corrected) else None,
        )
    return table


def _outcome_note(summary: pd.DataFrame, n: int) -> str:
    never = int((summary.rollouts - summary.closed).sum())
    lines = [
        "change: against the undisturbed rollouts of the same starts (Tango's interval; p exact "
        f"McNemar, {n} starts can give p >= {2 / 2**n:.2g}; q Benjamini-Hochberg).",
        "off by: gripper to cube where it closed, median; change: mean, bootstrap over starts"
        + ("." if n >= 5 else f" (none: {n} starts; 5 are needed)."),
        "path: mean distance from the undisturbed gripper at the same control step.",
    ]
    if summary.followed.notna().any():
        lines.append(
            "followed: how far the closing place moved towards the twin's cube, as a share of the "
            "way between the two cubes (1: it grasps at the twin's)."
        )
    if never:
        lines.append(f"In {never} rollouts the gripper never closed: taken where it was lowest.")
    return " ".join(lines)


def _correction_note(correction: pd.DataFrame) -> str:
    first = correction.iloc[0]
    return (
        f"Acting at control step {first['at']} alone; distance of the gripper from that of the "
        f"rollout without, {first['after']} control steps later. open: the chunk is carried out "
        "whole. closed: the policy goes on undisturbed. corrected = 1 - closed/open, in two parts: "
        "fresh, undone by new chunks as they came in the rollout without, whatever is seen; "
        "looking, undone (negative: kept) by seeing where the arm is. Ratios of sums over starts, "
        "bootstrap over starts; none where there was less than 0.1 mm to correct."
    )


def _style(row: pd.Series) -> str | None:
    return "dim" if np.isnan(row.q) else None


def _percent(low: float, high: float) -> str:
    return "" if np.isnan(low) else f"{100 * low:+.0f}…{100 * high:+.0f} %"
