"""The closed-loop part of the retrieval report: what suffices, and what warns of failures."""

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

_REGIONS = {
    "train": "new places",
    "held_out": "held-out cells",
    "strip": "strip",
    "all": "all starts",
}


def render_retrieval_rollouts(
    summary: pd.DataFrame,
    monitor: pd.DataFrame,
    *,
    policy: str,
    steps: int,
    facts: Sequence[tuple[str, str]] = (),
    files: Sequence[Path] = (),
    next_steps: Sequence[str] = (),
) -> RenderableType:
    """What can act in the policy's place, by region, and which distance warns of failures.

    Args:
        summary: `SubstitutedRollouts.summary()`.
        monitor: `monitor_table(…)`.
        policy: one line that identifies the policy.
        steps: control steps of a rollout.
        facts: further lines of the header.
        files: what was written.
        next_steps: commands worth running now.
    """
    n = int(summary.rollouts.min())
    line = f"{n} starts a region, {steps} control steps, the same starts under every condition"
    question = "what suffices while the arm acts, and what warns of failures?"
    header = facts_header(
        "retrieval, closed loop", question, [("policy", policy), ("rollouts", line), *facts]
    )
    parts: list[RenderableType] = [header, Text()]
    if summary.condition.nunique() > 1:
        parts += [_successes(summary), Text(), _changes(summary), Text()]
        parts += [Text(_outcome(summary)), Text(), Text(_contest_note(summary)), Text()]
    for table in _monitors(monitor):
        parts += [table, Text()]
    parts += [Text(_monitor_note(monitor))]
    return Group(*parts, *closing([], 0, min_effect=0, files=files, next_steps=next_steps))


def _named(region: str) -> str:
    return _REGIONS.get(region, plain(region))


def _successes(summary: pd.DataFrame) -> Table:
    regions = summary.region.unique().tolist()
    table = words_and_numbers("Success", "acting", *map(_named, regions), dense=True)
    for condition, mine in summary.groupby("condition", sort=False):
        by_region = mine.set_index("region")
        cells = [f"{by_region.successes[r]}/{by_region.rollouts[r]}" for r in regions]
        last = by_region.loc[regions[-1]]
        cells[-1] += f" ({100 * last.success_low:.0f}…{100 * last.success_high:.0f} %)"
        style = "dim" if np.isnan(last.p) else None
        table.add_row(Text(plain(str(condition))), *cells, style=style)
    return table


def _changes(summary: pd.DataFrame) -> Table:
    last = summary.region.iloc[-1]
    title = f"Against the policy itself, {_named(last)}"
    columns = ("lost", "won", "change, 95 %", "p", "off by, mm", "path, mm, 95 %")
    table = words_and_numbers(title, "acting", *columns, dense=True)
    for _, row in summary[summary.region == last].iterrows():
        low, high = 100 * row.success_change_low, 100 * row.success_change_high
        change = "" if np.isnan(low) else f"{low:+.0f}…{high:+.0f} %"
        path = "" if np.isnan(row.p) else estimate(row, "path_mm", ".1f")
        lost, won = (number(row[name], ".0f") for name in ("lost", "gained"))
        table.add_row(
            Text(plain(row.condition)), lost, won, change, p_value(row.p),
            f"{row.tip_error_mm:.1f}", path,
            style="dim" if np.isnan(row.p) else None,
        )  # fmt: skip
    return table


def _outcome(summary: pd.DataFrame) -> str:
    """Who is worse than the policy, and of whom that was not shown."""
    last = summary[summary.region == summary.region.iloc[-1]].dropna(subset="p")
    worse = last[(last.q < 0.05) & (last.success_change < 0)]
    alike = last.drop(worse.index)
    listed = lambda rows: "; ".join(map(plain, rows.condition)) or "none"
    points = -100 * alike.success_change_low.max() if len(alike) else 0.0
    bound = f" (the best of them loses at most {points:.0f} points)" if len(alike) else ""
    return (
        f"Worse than the policy (q < 0.05): {listed(worse)}. Not shown to be worse: "
        f"{listed(alike)}{bound}."
    )


def _contest_note(summary: pd.DataFrame) -> str:
    n = int(summary.rollouts.max())
    return (
        "MLP: a surrogate writes for the last decoder MLP. decoder: one answers for all behind the "
        "action vector. nearest demonstration: its chunk is carried out, the nearest by what the "
        "simulator knows (task) or by action vectors (vector), looked up anew at every inference. "
        "All know the demonstrations alone. change: of success on the same starts (Tango's "
        f"interval; {n} starts without any change leave {100 * _untouched(n):.0f} points either "
        "way); p exact McNemar, q Benjamini-Hochberg over the rows. off by: gripper to cube "
        "where it closed, median. path: mean distance from the undisturbed gripper at the same "
        "step. Where a table suffices and a linear map does, too, it is no evidence of a table."
    )


def _untouched(n: int) -> float:
    """Half of Tango's interval if no outcome differs: z² / (n + z²)."""
    return 3.8415 / (n + 3.8415)


def _monitors(monitor: pd.DataFrame) -> list[Table]:
    tables = []
    for region, mine in monitor.groupby("region", sort=False):
        failures, rollouts = int(mine.failures.iloc[0]), int(mine.rollouts.iloc[0])
        title = f"Warning of failures, {_named(str(region))}: {failures} of {rollouts} fail"
        if not failures or failures == rollouts:
            alarms = _alarms_alone(mine, title)
            tables.append(alarms)
            continue
        table = words_and_numbers(
            title, "distance, when", "AUC, 95 %", "- oracle's", "5 %", "hits", "false", dense=True
        )
        for _, row in mine.iterrows():
            table.add_row(
                Text(_what(row)),
                estimate(row, "auc", ".2f"),
                _difference(row),
                number(100 * row.hits_at_5, ".0f"),
                f"{row.flagged_failures}/{row.failures}",
                f"{row.flagged_successes}/{row.successes}",
            )
        tables.append(table)
    return tables


def _alarms_alone(mine: pd.DataFrame, title: str) -> Table:
    table = words_and_numbers(title, "distance, when", "alarms", dense=True)
    for _, row in mine.iterrows():
        flagged = row.flagged_failures + row.flagged_successes
        table.add_row(Text(_what(row)), f"{flagged}/{row.rollouts}")
    return table


def _what(row: pd.Series) -> str:
    short = {"first inference": "first", "farthest until closing": "until closing"}
    return f"{plain(row.site)}, {short.get(row.when, plain(row.when))}"


def _difference(row: pd.Series) -> str:
    if np.isnan(row.over_oracle_low):
        return number(row.over_oracle, "+.2f")
    return f"{row.over_oracle_low:+.2f}…{row.over_oracle_high:+.2f}"


def _monitor_note(monitor: pd.DataFrame) -> str:
    pooled = (
        " all starts mixes regions that fail at different rates: a score that only tells regions "
        "apart does well there; within regions compares pairs of one region alone."
        if monitor.region.nunique() > 1
        else ""
    )
    return (
        "AUC: probability that a failure is farther from the demonstrations than a success; - "
        "oracle's: minus that of the cube's distance from the demonstrated starts, 95 % over "
        "starts. 5 %: failures flagged, in %, by the best threshold that flags at most 5 % of the "
        "successes. hits, false: failures and successes flagged by the threshold that the "
        "demonstrations set, each against all other episodes, at 5 % false alarms." + pooled
    )
