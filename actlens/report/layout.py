"""What reports share: the lines of facts at their head, and tables with one column of words."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from actlens.report.plain import plain


def facts_header(topic: str, question: str, facts: Sequence[tuple[str, str]]) -> Table:
    """What is asked, then a line for each fact: the policy, the data, the run."""
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(Text(topic), Text(question, style="bold"))
    for name, value in facts:
        table.add_row(Text(plain(name)), Text(plain(value)))
    return table


def words_and_numbers(title: str, first: str, *columns: str, dense: bool = False) -> Table:
    """A table whose first column folds and whose others are numbers on one line.

    Args:
        dense: with less space between columns, for many of them.
    """
    table = Table(title=Text(title), title_justify="left", box=None, padding=(0, 1))
    if dense:
        table.pad_edge, table.collapse_padding = False, True
    table.add_column(first, overflow="fold", ratio=1)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
