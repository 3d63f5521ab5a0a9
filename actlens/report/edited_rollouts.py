"""The closed-loop report of weight edits: carried out there, unchanged elsewhere?"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from actlens.report.cells import estimate, p_value
from actlens.report.closing import closing
from actlens.report.layout import facts_header


def render_edited_rollouts(
    summary: pd.DataFrame,
    *,
    policy: str,
    asked: str,
    steps: int,
    facts: Sequence[tuple[str, str]] = (),
    files: Sequence[Path] = (),
    next_steps: Sequence[str] = (),
) -> RenderableType:
    """What edits did to the arm where they were made, near by and far away, and to success.

    Args:
        summary: `EditedRollouts.summary()`.
        policy: one line that identifies the policy.
        asked: one line that says what every edit asks for.
        steps: control steps of a rollout.
        facts: further lines of the header.
        files: what was written.
        next_steps: commands worth running now.
    """
    n = int(summary.cases.max())
    question = "carried out there, unchanged elsewhere?"
    rollouts = f"{n} edits, each from 3 starts, {steps} control steps, without and with"
    lines = [("policy", policy), ("asked", asked), ("rollouts", rollouts), *facts]
    header = facts_header("edits in closed loop", question, lines)
    parts: list[RenderableType] = [header, Text(), _request(summary), Text(), _outcome(summary)]
    parts += [Text(), Text(_note(summary, n))]
    parts += closing([], 0, min_effect=0, files=files, next_steps=next_steps)
    return Group(*parts)


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=Text(title), title_justify="left", box=None, pad_edge=False, collapse_padding=True
    )
    table.add_column("cube", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _request(summary: pd.DataFrame) -> Table:
    columns = ("commanded, 95 %", "any way, 95 %", "moved", "afterwards, 95 %")
    table = _table("How much of the request is done, as a share of it", *columns)
    for _, row in summary.iterrows():
        commanded, drift, later = (
            estimate(row, name, ".2f") for name in ("commanded", "drift", "afterwards")
        )
        table.add_row(_where(row), commanded, drift, f"{row.moved:.2f}", later)
    return table


def _outcome(summary: pd.DataFrame) -> Table:
    columns = ("without", "with", "lost", "won", "change, 95 %", "p", "path, mm, 95 %")
    table = _table("What becomes of the episode", *columns)
    for _, row in summary.iterrows():
        low, high = 100 * row.success_change_low, 100 * row.success_change_high
        table.add_row(
            _where(row),
            f"{row.successes_undisturbed:.0f}/{row.cases:.0f}",
            f"{row.successes:.0f}/{row.cases:.0f}",
            f"{row.lost:.0f}",
            f"{row.gained:.0f}",
            f"{low:+.0f}…{high:+.0f} %",
            p_value(row.p),
            estimate(row, "path_mm", ".1f"),
        )
    return table


def _where(row: pd.Series) -> str:
    if not row.distance_mm_max:
        return f"{row.place}"
    return f"{row.place} {row.distance_mm_min / 10:.0f}-{row.distance_mm_max / 10:.0f} cm"


def _note(summary: pd.DataFrame, n: int) -> str:
    there = summary.iloc[0]
    return (
        "commanded: of the change asked for, what is commanded until the policy looks again; "
        "any way: the length of that change, whichever way it goes. moved: where the joints then "
        "are. afterwards: what is commanded from then on, mean over steps. "
        f"There, every joint is commanded to within 1 degree of what was asked for in "
        f"{there.within_1_deg} of {n} cases; the gripper is then {there.tip_mm:.0f} mm from where "
        f"it would be without (joints that stood as asked: {there.asked_tip_mm:.0f} mm). change: "
        "of success, Tango's interval, p exact McNemar. path: mean distance of the gripper from "
        "that of the rollout without, at the same step. Every edit has starts of its own"
        + (
            "; bootstrap over edits."
            if n >= 5
            else f" (no interval of means: {n} edits; 5 are needed)."
        )
    )
