"""The console report of the perturbation suite; computes nothing."""

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from actlens.report.cells import number
from actlens.report.plain import plain

_STRONG = 0.05
"""Disturbances with a q below this are set in bold."""


def render_suite(frame: pd.DataFrame, *, policy: str) -> RenderableType:
    """What each disturbance does to the predicted actions, to success and to aim.

    Args:
        frame: `SuiteResult.frame()`.
        policy: what identifies the policy.
    """
    n = int(frame.rollouts.max())
    table = Table(title=Text(f"{plain(policy)}, disturbed"), title_justify="left")
    table.add_column("disturbance", overflow="fold")
    for column in ("action RMS, 95 %", "success, 95 %", "lost", "won", "q", "aim, mm"):
        table.add_column(column, justify="right")
    for _, row in frame.iterrows():
        success = f"{row.successes}/{row.rollouts}"
        table.add_row(
            Text(plain(row.condition)),
            f"{number(row.action_rms, '.2f')} {_action_interval(row)}".strip(),
            f"{success} {100 * row.success_low:.0f}…{100 * row.success_high:.0f}",
            number(row.lost, ".0f"),
            number(row.gained, ".0f"),
            number(row.q, ".3f"),
            f"{row.tip_error_mm:.1f}",
            style="bold" if row.q < _STRONG else None,
        )
    note = (
        f"{n} starts, all with every disturbance. Action RMS: root mean square change of the "
        "predicted chunk in joint units, at moments of the undisturbed rollouts (open loop). Lost, "
        "won: starts whose outcome changed in closed loop; q: exact McNemar, Benjamini-Hochberg "
        "over the disturbances. Aim: median distance from gripper to cube where the gripper closed."
    )
    return Group(table, Text(note, style="dim"))


def _action_interval(row: pd.Series) -> str:
    low, high = row.action_rms_low, row.action_rms_high
    return "" if pd.isna(low) else f"{low:.2f}…{high:.2f}"
