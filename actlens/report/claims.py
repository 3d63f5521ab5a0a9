"""Claims with their figures and verdicts, one block a claim, readable at 80 columns."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from actlens.claims import Claim, Support
from actlens.report.cells import number
from actlens.report.plain import plain
from actlens.report.styles import BAD, GOOD, WARNING

COLOURS = {Support.SUPPORTED: GOOD, Support.REFUTED: BAD, Support.UNDECIDED: WARNING}


def claims_table(claims: Sequence[Claim], title: str = "The claims") -> RenderableType:
    """Every reading under its claim: the verdict, then the value with its interval, the limit and
    the null."""
    parts: list[RenderableType] = [Text(title, style="italic")]
    for claim, readings in groupby(claims, key=lambda one: one.claim):
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True, width=max(map(len, Support)))
        table.add_column(overflow="fold")
        for one in readings:
            said = Text(one.verdict.value, style=COLOURS[one.verdict])
            table.add_row(said, Text(plain(f"{one.reading}: {one.figure}")))
            table.add_row("", Text(plain(_figures(one)), style="dim"))
        parts += [Text(plain(claim), style="bold"), table, Text()]
    return Group(*parts[:-1])


def _figures(claim: Claim) -> str:
    null = ""
    if np.isfinite(claim.null):
        null = f"; {claim.null_is}: {number(claim.null, '.3g')}"
    return f"{interval(claim.value, claim.low, claim.high)}, {claim.rule}{null}"


def interval(value: float, low: float, high: float) -> str:
    """`0.84 (0.82…0.86)`, without bounds where there are none; `none` for nothing at all."""
    if np.isnan(value):
        return "none"
    if np.isnan(low):
        return number(value, ".3g")
    return f"{value:.3g} ({low:.3g}…{high:.3g})"
