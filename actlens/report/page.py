"""A command's console report as its HTML page, with what a console cannot show."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from actlens.page import (
    Block,
    Facts,
    Film,
    Page,
    Picture,
    Run,
    Section,
    Styled,
    from_rich,
    table_of,
)

if TYPE_CHECKING:
    import pandas as pd

_PANEL = "actlens · "
_ASKED = "asked"


def report_page(
    report: RenderableType,
    *,
    origin: Mapping[str, Any],
    blocks: Sequence[Block] = (),
    tables: "Mapping[str, pd.DataFrame] | None" = None,
    shown: Sequence[Path] = (),
    methods: Sequence[Block] = (),
) -> Page:
    """The page of a run.

    Title, question and facts are those at the head of the report.

    Args:
        report: what the command prints.
        origin: the run's provenance.
        blocks: what stands before the report, such as maps to look into.
        tables: whole, by name; folded behind the report.
        shown: the pictures (PNG) and films (MP4) among the run's files.
        methods: how it was measured, where the report does not say.
    """
    title, question, facts, body = _head(list(from_rich(report)))
    behind: list[Block] = []
    seen = [_seen(file) for file in shown if file.suffix in (".png", ".mp4")]
    if seen:
        behind.append(Section("Pictures", tuple(seen)))
    whole = [
        table_of(frame, title=name.replace("_", " "), folded=True)
        for name, frame in (tables or {}).items()
        if len(frame)
    ]
    if whole:
        behind.append(Section("All rows", tuple(whole)))
    findings = (Section("Findings", tuple(body)),) if blocks else tuple(body)
    return Page(
        title=title,
        question=question,
        facts=facts,
        blocks=(*blocks, *findings, *behind),
        command=str(origin.get("command", "")),
        methods=tuple(methods),
        provenance=origin,
    )


def _head(
    blocks: list[Block],
) -> tuple[str, str, tuple[tuple[Styled, Styled], ...], list[Block]]:
    """Title, question and facts of a report, and what comes behind them."""
    title, rest = "", blocks
    match blocks:
        case [Section(title=panel, blocks=[Facts(facts=facts)]), *rest]:
            title = panel.removeprefix(_PANEL)
        case [Facts(facts=facts), *rest]:
            pass
        case _:
            return "Report", "", (), blocks
    (first, question), *others = facts
    if _text(first) == _ASKED:
        return _heading(title), _text(question), tuple(others), rest
    if not title:
        return _heading(_text(first)), _text(question), tuple(others), rest
    return _heading(title), "", facts, rest


def _heading(topic: str) -> str:
    return topic[:1].upper() + topic[1:]


def _text(styled: Styled) -> str:
    runs = (Run(styled),) if isinstance(styled, str) else styled
    return "".join(run.text for run in runs)


def _seen(file: Path) -> Block:
    words = file.stem.replace("_", " ").replace("-", " ")
    if file.suffix == ".mp4":
        return Film(file.read_bytes(), words)
    return Picture(file.read_bytes(), alt=f"picture: {words}", caption=words)
