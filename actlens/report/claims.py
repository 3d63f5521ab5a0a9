"""Claims with their figures and verdicts as a table, one block a claim."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from rich.table import Table
from rich.text import Text

from actlens.claims import Claim, Support
from actlens.report.cells import number
from actlens.report.layout import words_and_numbers
from actlens.report.plain import plain

COLOURS = {Support.SUPPORTED: "green", Support.REFUTED: "red", Support.UNDECIDED: "yellow"}


def claims_table(claims: Sequence[Claim], title: str = "The claims") -> Table:
    """Every reading under its claim: the value with its interval, the null, the limit, the
    verdict."""
    table = words_and_numbers(title, "", "value, 95 %", "null", "limit", "verdict")
    for claim, readings in groupby(claims, key=lambda one: one.claim):
        table.add_row(Text(plain(claim), style="bold"))
        for one in readings:
            table.add_row(
                Text(plain(f"· {one.reading}: {one.figure}")),
                interval(one.value, one.low, one.high),
                number(one.null, ".3g"),
                one.rule.replace("at most ", "≤ ").replace("at least ", "≥ "),
                Text(one.verdict.value, style=COLOURS[one.verdict]),
            )
    return table


def interval(value: float, low: float, high: float) -> str:
    """`0.84 (0.82…0.86)`, without bounds where there are none."""
    if np.isnan(low):
        return number(value, ".3g")
    return f"{value:.3g} ({low:.3g}…{high:.3g})"
