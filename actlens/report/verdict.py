"""A verdict on the console, with its evidence."""

from collections.abc import Sequence

import numpy as np
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from actlens.report.layout import words_and_numbers
from actlens.report.plain import plain
from actlens.report.styles import BAD, GOOD, NOTE, WARNING
from actlens.verdict import Answer, Verdict

_COLOURS = {
    Answer.LOOKUP_TABLE: BAD,
    Answer.SMOOTH_MEMORISER: BAD,
    Answer.INTERPOLATOR: NOTE,
    Answer.GENERAL_RULE: GOOD,
    Answer.UNDECIDED: WARNING,
}


def verdict_lines(
    verdict: Verdict | None, at_start: Verdict | None, missing: Sequence[str]
) -> list[RenderableType]:
    """The answer, what fits if there is none, what is lacking, and the evidence.

    Args:
        verdict: None if there is no mechanism axis.
        at_start: the verdict from frame 0 alone.
        missing: what could not be measured, and what it would take.
    """
    if verdict is None:
        said = Text("verdict: undecided", style=f"bold {WARNING}")
        return [said, *(_indented(f"needs {one}") for one in missing), Text()]
    colour = _COLOURS[verdict.answer]
    said = Text(f"verdict: {verdict.answer.value}", style=f"bold {colour}")
    if verdict.site is not None:
        said.append(f", in the {verdict.site.value}")
    parts: list[RenderableType] = [said]
    if verdict.answer is not Answer.UNDECIDED:
        parts.append(Text(f"  {_MEANS[verdict.answer]}"))
    elif verdict.candidates:
        parts.append(Text(f"  what fits the figures: {_possible(verdict)}"))
    if at_start is not None:
        fits = _possible(at_start) if at_start.answer is Answer.UNDECIDED else ""
        parts.append(
            _indented(
                "from frame 0 alone, where the arm does not yet give the object away: "
                f"{at_start.answer.value}{f' ({fits})' * bool(fits)}"
            )
        )
    parts += [_indented(f"lacking: {one}") for one in verdict.missing]
    lacking = " ".join(verdict.missing)
    parts += [_indented(f"not measured, for want of {m}") for m in missing if m not in lacking]
    table = words_and_numbers("", "evidence", "value, 95 %", "boundary")
    table.title = None
    for one in verdict.evidence:
        where = f"{one.axis}: {one.figure}"
        value = interval(one.value, one.low, one.high)
        told = Text(plain(where)).append(plain(f"\n  {one.says}"), style="dim")
        table.add_row(told, value, f"{one.boundary:g}")
    return [*parts, Text(), table, Text()]


def _possible(verdict: Verdict) -> str:
    return " or ".join(answer.value for answer in verdict.candidates)


def _indented(text: str) -> Padding:
    return Padding(Text(plain(text), style=WARNING), (0, 0, 0, 2))


_MEANS = {
    Answer.LOOKUP_TABLE: "no better than its nearest demonstration, and it jumps between them",
    Answer.SMOOTH_MEMORISER: "no better than its nearest demonstration, yet smooth between them",
    Answer.INTERPOLATOR: "smooth; better than retrieval between demonstrations, not beyond them",
    Answer.GENERAL_RULE: "smooth, and better than retrieval beyond the demonstrations too",
}


def interval(value: float, low: float, high: float) -> str:
    """`0.84 (0.82…0.86)`, or `undefined`."""
    if np.isnan(value):
        return "undefined"
    if np.isnan(low):
        return f"{value:.2f}"
    return f"{value:.2f} ({low:.2f}…{high:.2f})"
