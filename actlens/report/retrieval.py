"""The console report of the battery; computes nothing but its selection of rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from actlens.report.cells import number
from actlens.report.closing import closing
from actlens.report.layout import facts_header, words_and_numbers
from actlens.report.plain import plain
from actlens.report.retrieval_parts import capacity, ladder, monitor, substitution
from actlens.report.verdict import interval, verdict_lines
from actlens.retrieval import ALL_JOINTS, TIP
from actlens.verdict import Verdict

Tables = Mapping[str, pd.DataFrame]


def render_retrieval(
    tables: Tables,
    verdict: Verdict | None,
    missing: Sequence[str],
    *,
    at_start: Verdict | None = None,
    policy: str,
    facts: Sequence[tuple[str, str]] = (),
    files: Sequence[Path] = (),
    next_steps: Sequence[str] = (),
) -> RenderableType:
    """The verdict with its evidence, and the tables behind it.

    Args:
        tables: by name; those that could not be made are left out.
        verdict: None if there is no mechanism axis.
        missing: what could not be measured, and what it would take.
        at_start: the verdict from frame 0 alone.
        policy: one line that identifies the policy.
        facts: further lines of the header.
        files: what was written.
        next_steps: commands worth running now.
    """
    question = "is this policy a lookup table?"
    parts: list[RenderableType] = [
        facts_header("retrieval", question, [("policy", policy), *facts]),
        Text(),
        *verdict_lines(verdict, at_start, missing),
    ]
    if "generalisation" in tables:
        parts += [_function(tables["generalisation"]), Text()]
        parts += [Text(plain(_function_note(tables["generalisation"]))), Text()]
        parts += [_drawn(tables["snap"], tables["similarity"]), Text()]
        parts += [Text(_drawn_note(tables["similarity"])), Text()]
    if "mechanism" in tables:
        parts += [_mechanism(tables["mechanism"]), Text()]
        parts += [Text(_mechanism_note(tables["mechanism"])), Text()]
    parts += [*ladder(tables["ladder"]), *substitution(tables["substitution"])]
    parts += capacity(tables["capacity"])
    if "monitor" in tables:
        parts += monitor(tables["monitor"])
    return Group(*parts[:-1], *closing([], 0, min_effect=0, files=files, next_steps=next_steps))


_MECHANISM = (
    "Of the last decoder MLP and all behind it, between neighbouring demonstrations. rule, table: "
    "planted on this policy's own activations, equal to it in the demonstrated scenes. memoriser: "
    "a decoder trained on the actions of other episodes, which no rule can give; where it is like "
    "the rule, a figure tells nothing about memory; where rule and table are alike, it tells "
    "nothing at all. jump, on which the verdict rests: 0 for a linear map, 1 for a table."
)


def _mechanism_note(table: pd.DataFrame) -> str:
    rule, memoriser = (float(table[f"{who}_error"].iloc[0]) for who in ("rule", "memoriser"))
    and_memoriser = "" if np.isnan(memoriser) else f", the memoriser by {memoriser:.3f}"
    return (
        f"{_MECHANISM} On what it was made to answer, the rule is off by {rule:.3f} spreads of the "
        f"actions{and_memoriser}: one that is far off is no reference."
    )


def _from(row: Mapping[Any, Any], name: str = "value") -> str:
    return interval(row[name], row["low"], row["high"])


def _by(table: pd.DataFrame, column: str) -> dict[Any, dict[Any, Any]]:
    """Rows by what is in a column."""
    return {row[column]: row for row in table.to_dict("records")}


def _in_order(table: pd.DataFrame) -> list[str]:
    """All frames first, then frame 0 alone; no single region at frame 0."""
    start = lambda name: name.endswith(", frame 0")
    main = {"all unseen, frame 0", "between, frame 0", "beyond, frame 0"}
    names = list(dict.fromkeys(table.scenes))
    return [n for n in names if not start(n)] + [n for n in names if n in main]


def _function(table: pd.DataFrame) -> Table:
    has_tip = TIP in set(table.measure)
    unit, errors = ("mm", TIP) if has_tip else ("spreads", ALL_JOINTS)
    columns = [f"off, {unit}", "nearest", "GI, all joints", *(["GI, tip"] if has_tip else [])]
    shown = words_and_numbers(
        "Function: better than the nearest demonstration?", "unseen scenes", *columns, dense=True
    )
    for scenes in _in_order(table):
        by_measure = _by(table[table.scenes == scenes], "measure")
        off = by_measure[errors]
        indices = [by_measure[m] for m in (ALL_JOINTS, TIP) if m in by_measure]
        shown.add_row(
            Text(plain(scenes)),
            f"{off['policy_unseen']:.2f}",
            f"{off['nearest_unseen']:.2f}",
            *(_from(row, "index") for row in indices),
        )
    return shown


def _function_note(table: pd.DataFrame) -> str:
    measure = TIP if TIP in set(table.measure) else ALL_JOINTS
    known = table[table.measure == measure].iloc[0].policy_trained
    shown = table[table.measure.isin([ALL_JOINTS, TIP])]
    why = ""
    for row in shown[shown.undefined != ""].head(1).to_dict("records"):
        why = f" Undefined, as for {row['scenes']}: {row['undefined']} ({row['measure']})."
    return (
        f"GI: 1 if as good as on its own demonstrations ({known:.2f}), 0 if as bad as the nearest "
        "demonstration in task space (what is known of the object and the time; weights fitted). "
        "between, beyond: unseen places between the demonstrated ones, and beyond them. At frame "
        f"0 the arm does not yet give the object away.{why}"
    )


def _drawn(snap: pd.DataFrame, similarity: pd.DataFrame) -> Table:
    last = int(snap["rank"].max())
    columns = ("to the 1st", f"to the {last}th", "S", "expert's S", "novelty, 95 %")
    shown = words_and_numbers(
        "Drawn to what was demonstrated?", "unseen scenes", *columns, dense=True
    )
    for scenes in _in_order(similarity):
        by_rank = _by(snap[snap.scenes == scenes], "rank")
        values = _by(similarity[similarity.scenes == scenes], "statistic")
        shown.add_row(
            Text(plain(scenes)),
            number(by_rank[1]["snap"], ".2f"),
            number(by_rank[last]["snap"], ".2f") if last in by_rank else "",
            number(values["S of the policy"]["value"], ".2f"),
            number(values["S of the expert"]["value"], ".2f"),
            _from(values["novelty"]),
        )
    return shown


def _drawn_note(similarity: pd.DataFrame) -> str:
    first = _by(similarity[similarity.scenes == similarity.scenes.iloc[0]], "statistic")
    growth = [_from(first[f"growth of {who} error"]) for who in ("the policy's", "retrieval's")]
    return (
        "How far the action has moved from the expert's towards that of the nearest demonstration "
        "(1: it is that), and towards a farther one: what retrieves is drawn to the first alone. "
        "S: He et al.'s similarity to a lookup table, which has no null of its own: the expert, a "
        "perfect rule, has the score beside it. novelty: distance to what was demonstrated, over "
        "the expert's (0: nothing new, 1: as new). Errors grow with the distance to the nearest "
        f"demonstration to the power {growth[0]}; retrieval's: {growth[1]}."
    )


def _mechanism(table: pd.DataFrame) -> Table:
    trained = table.memoriser.notna().any()
    columns = ["policy, 95 %", "rule", "table", *(["memoriser"] if trained else [])]
    shown = words_and_numbers("Mechanism: plateaus and jumps, or a smooth map?", "", *columns)
    for row in table.to_dict("records"):
        references = [row["rule"], row["table"], *([row["memoriser"]] if trained else [])]
        shown.add_row(
            Text(str(row["statistic"])),
            interval(row["value"], row["low"], row["high"]),
            *(number(value, ".2f") for value in references),
        )
    return shown
