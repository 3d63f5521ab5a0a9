"""A console report as blocks of a page: the same content, so that a report is written once."""

import io
from collections.abc import Iterator

from rich.align import Align
from rich.columns import Columns
from rich.console import Console, ConsoleRenderable, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.segment import Segment
from rich.style import Style
from rich.table import Table as RichTable
from rich.text import Text

from actlens.page.blocks import (
    Block,
    Column,
    Facts,
    Lines,
    Rows,
    Run,
    Section,
    Styled,
    Table,
    Tone,
    Words,
)

_CONSOLE = Console(file=io.StringIO(), width=100, color_system="truecolor", legacy_windows=False)


def from_rich(renderable: RenderableType) -> tuple[Block, ...]:
    """Blocks for what rich would print: groups, panels, tables, text.

    A table whose heads are hidden and whose columns are two becomes facts. A row with words in its
    first cell alone heads the rows below it if it is bold, and goes on with the row above if not.
    Indented commands and paths become lines. What else rich can print is shown as it would stand on
    a console.
    """
    return tuple(_gathered(_blocks(renderable)))


def _blocks(renderable: RenderableType) -> Iterator[Block | str]:
    """Blocks; a string is a line of its own, to be gathered with its neighbours."""
    match renderable:
        case str():
            yield from _paragraph(Text(renderable))
        case Text():
            yield from _paragraph(renderable)
        case Group():
            for part in renderable.renderables:
                yield from _blocks(part)
        case Columns():
            for part in renderable.renderables:
                yield from _blocks(part)
        case Panel():
            inside = from_rich(renderable.renderable)
            title = renderable.title
            title = title.plain if isinstance(title, Text) else title or ""
            yield Section(title, inside) if title else inside[0]
            if not title:
                yield from inside[1:]
        case Padding() | Align():
            yield from _blocks(renderable.renderable)
        case RichTable():
            yield from _table(renderable)
        case _:
            yield Words(_as_printed(renderable))


def _gathered(blocks: Iterator[Block | str]) -> Iterator[Block]:
    lines: list[str] = []
    for block in blocks:
        if isinstance(block, str):
            lines.append(block)
            continue
        if lines:
            yield Lines(tuple(lines))
            lines = []
        yield block
    if lines:
        yield Lines(tuple(lines))


def _paragraph(text: Text) -> Iterator[Block | str]:
    if not text.plain.strip():
        return
    line = text.plain.strip()
    listed = line.startswith("python -m ") or "/" in line.split()[0]
    if "\n" not in text.plain and text.plain.startswith("  ") and listed:
        yield line
    else:
        yield Words(_styled(text))


def _table(table: RichTable) -> Iterator[Block]:
    columns = [list(column.cells) for column in table.columns]
    looks = [_look(row.style) for row in table.rows]
    bare = not table.show_header and not table.title
    if bare and len(columns) == 2:
        names, values = columns
        looked = zip(names, values, looks, strict=True)
        yield Facts(tuple((_cell(name, look), _cell(value, look)) for name, value, look in looked))
        return
    if bare and len(columns) == 1:
        for cell in columns[0]:
            yield from from_rich(cell)
        return
    rows = [
        tuple(_cell(cell, look) for cell in row)
        for row, look in zip(zip(*columns, strict=True), looks, strict=True)
    ]
    if not rows:
        return
    yield Table(
        columns=tuple(
            Column(_plain(column.header) if table.show_header else "", column.justify == "right")
            for column in table.columns
        ),
        groups=tuple(_groups(rows)),
        title=_plain(table.title),
        caption=_plain(table.caption),
    )


def _groups(rows: list[tuple[Styled, ...]]) -> Iterator[Rows]:
    heading: Styled = ""
    together: list[tuple[Styled, ...]] = []
    for row in rows:
        alone = len(row) > 2 and row[0] and not any(row[1:])
        if alone and _is_strong(row[0]):
            if together or heading:
                yield Rows(tuple(together), heading)
            heading, together = row[0], []
        elif alone and together:
            above = together.pop()
            together.append(((*_runs(above[0]), Run("\n"), *_runs(row[0])), *above[1:]))
        elif any(row):
            together.append(row)
    yield Rows(tuple(together), heading)


def _runs(text: Styled) -> tuple[Run, ...]:
    return (Run(text),) if isinstance(text, str) else text


def _is_strong(text: Styled) -> bool:
    return all(run.strong for run in _runs(text))


def _look(style: str | Style | None) -> Style:
    return style if isinstance(style, Style) else Style.parse(style or "none")


def _cell(cell: RenderableType, look: Style) -> Styled:
    """A cell's text; `look` is its row's."""
    match cell:
        case str():
            return _styled(Text(cell, style=look))
        case Text():
            return _styled(Text("", style=look).append_text(cell))
        case _:
            return _as_printed(cell)


def _plain(text: RenderableType | None) -> str:
    match text:
        case None:
            return ""
        case Text():
            return text.plain
        case _:
            return str(text)


def _as_printed(renderable: RenderableType) -> str:
    if not isinstance(renderable, ConsoleRenderable | str) and not hasattr(renderable, "__rich__"):
        return str(renderable)
    lines = _CONSOLE.render_lines(renderable, _CONSOLE.options.update(width=100), pad=False)
    return "\n".join("".join(segment.text for segment in line).rstrip() for line in lines).strip()


def _styled(text: Text) -> Styled:
    base = _look(text.style)  # what rich leaves out of the segments of text of one look
    runs = [_run(segment, base) for segment in text.render(_CONSOLE) if segment.text]
    if all(run.tone is Tone.PLAIN and not run.strong for run in runs):
        return text.plain
    return tuple(runs)


def _run(segment: Segment, base: Style) -> Run:
    style = base + segment.style
    return Run(segment.text, _tone(style), strong=bool(style.bold))


def _tone(style: Style) -> Tone:
    """What a console's colour says: red is bad, green good, orange a warning, blue a note."""
    if style.color is None or style.color.is_default:
        return Tone.DIM if style.dim else Tone.PLAIN
    red, green, blue = style.color.get_truecolor()
    largest, smallest = max(red, green, blue), min(red, green, blue)
    if largest - smallest < 40:
        return Tone.DIM
    if blue == largest:
        return Tone.NOTE
    if green == largest and green - red > 40:
        return Tone.GOOD
    return Tone.WARNING if green - blue > 60 else Tone.BAD
