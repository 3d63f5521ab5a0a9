"""The steering report: whether neurons move the robot the way that their values promise."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from actlens.report.cells import estimate, number, p_value
from actlens.report.closing import closing
from actlens.report.layout import facts_header, words_and_numbers
from actlens.report.plain import plain


def render_steering(
    summary: pd.DataFrame,
    dose_response: pd.DataFrame,
    *,
    policy: str,
    dosing: str,
    facts: Sequence[tuple[str, str]] = (),
    files: Sequence[Path] = (),
    next_steps: Sequence[str] = (),
) -> RenderableType:
    """How far every dose of every claim went, which way, and what matched neurons did.

    Args:
        summary: `SteeredRollouts.summary()`.
        dose_response: `SteeredRollouts.dose_response()`.
        policy: one line that identifies the policy.
        dosing: one line that says what a dose is.
        facts: further lines of the header.
        files: what was written.
        next_steps: commands worth running now.
    """
    n = int(summary.rollouts.max())
    asked = "do these neurons move the arm the way their values promise?"
    lines = [("policy", policy), ("rollouts", f"{n} starts, each dose"), ("dose", dosing), *facts]
    header = facts_header("steering", asked, lines)
    parts: list[RenderableType] = [header, Text(), _along(summary), Text(), _outcome(summary)]
    if len(dose_response):
        parts += [Text(), _doses(dose_response)]
    parts += [Text(), Text(_note(summary, n))]
    parts += closing([], 0, min_effect=0, files=files, next_steps=next_steps)
    return Group(*parts)


def _along(summary: pd.DataFrame) -> Table:
    columns = ("dose", "along, mm, 95 %", "matched", "as far", "p", "q")
    table = words_and_numbers("The promised way", "neurons", *columns, dense=True)
    for _, row in summary.iterrows():
        # In joints where the promised motion does not move the gripper, such as a roll.
        in_joints = bool(np.isnan(row.along_mm))
        along = estimate(row, "along_deg" if in_joints else "along_mm", "+.1f")
        matched = row["matched_deg" if in_joints else "matched_mm"]
        table.add_row(
            Text(plain(row.claim)),
            f"{row.dose:+g}",
            f"{along} deg" if in_joints else along,
            number(matched, "+.1f"),
            f"{row.as_far:.0f}/{row.draws:.0f}" if row.draws else "",
            p_value(row.p),
            p_value(row.q),
        )
    return table


def _outcome(summary: pd.DataFrame) -> Table:
    columns = ("dose", "straight", "any way, mm", "matched", "success", "change, 95 %", "matched")
    table = words_and_numbers("All of it", "neurons", *columns, dense=True)
    for _, row in summary.iterrows():
        change = f"{100 * row.success_change_low:+.0f}…{100 * row.success_change_high:+.0f} %"
        table.add_row(
            Text(plain(row.claim)),
            f"{row.dose:+g}",
            number(row.straight, "+.2f"),
            f"{row.apart_mm:.1f}",
            number(row.matched_apart_mm, ".1f"),
            f"{row.successes:.0f}/{row.rollouts:.0f}",
            change,
            number(row.matched_successes, ".1f"),
        )
    return table


def _doses(dose_response: pd.DataFrame) -> Table:
    table = words_and_numbers(
        "Does more do more?", "neurons", "deg a dose, 95 %", "tau, 95 %", "p", dense=True
    )
    for _, row in dose_response.iterrows():
        table.add_row(
            Text(plain(row.claim)),
            estimate(row, "slope_deg", "+.2f"),
            estimate(row, "tau", "+.2f"),
            p_value(row.p),
        )
    return table


def _note(summary: pd.DataFrame, n: int) -> str:
    draws = int(summary.draws.max())
    lines = [
        "Displacement from the undisturbed rollout of the same start, mean over control steps and "
        "starts"
        + (", bootstrap over starts." if n >= 5 else f" (no interval: {n} starts; 5 are needed)."),
        "along: of the gripper, along the way that the promised motion of the joints would take it."
        " straight: the share of the joints' displacement that goes the promised way.",
    ]
    if draws:
        lines.append(
            f"matched: as many other neurons, alike in length of value and activity, mean of "
            f"{draws} draws. p: claimed against matched, sign flips of starts ({n} starts can give "
            f"p >= {2 / 2**n:.2g}); q: Benjamini-Hochberg. as far: draws that went as far the "
            f"dose's way; none of {draws} means p = {1 / (draws + 1):.2g} over neurons."
        )
    return " ".join(lines)
