"""What a page is made of: words, tables, pictures, films, and maps over camera pictures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

from actlens.errors import ConfigError
from actlens.page.overlays import Overlays


class Tone(Enum):
    """What a colour says, where words say it too."""

    PLAIN = "plain"
    GOOD = "good"
    BAD = "bad"
    WARNING = "warning"
    NOTE = "note"
    DIM = "dim"


@dataclass(frozen=True)
class Run:
    """A stretch of text of one look."""

    text: str
    tone: Tone = Tone.PLAIN
    strong: bool = False


Styled: TypeAlias = str | tuple[Run, ...]
"""Text, or text whose stretches look different. Never markup: it is shown as it is written."""


@dataclass(frozen=True)
class Words:
    """A paragraph; line breaks stay."""

    text: Styled


@dataclass(frozen=True)
class Lines:
    """Short lines of their own, such as files; a line that starts with `python -m` can be copied.

    What follows three spaces on a line explains it.
    """

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """Names and what they stand for; an empty name continues the one above."""

    facts: tuple[tuple[Styled, Styled], ...]


@dataclass(frozen=True)
class Column:
    """The head of a table's column."""

    name: str
    numeric: bool = False
    """Set to the right, in digits of one width."""
    about: str = ""
    """What it means, shown under the pointer."""


@dataclass(frozen=True)
class Rows:
    """Rows of a table that stay together when it is sorted, under a heading or none."""

    rows: tuple[tuple[Styled, ...], ...]
    heading: Styled = ""


@dataclass(frozen=True)
class Table:
    """A table that is sorted by a click on a column's head.

    Raises:
        ConfigError: if a row has not one cell for each column.
    """

    columns: tuple[Column, ...]
    groups: tuple[Rows, ...]
    title: str = ""
    caption: str = ""
    folded: bool = False
    """Shown as its title until it is opened."""

    def __post_init__(self) -> None:
        for group in self.groups:
            for row in group.rows:
                if len(row) != len(self.columns):
                    raise ConfigError(
                        f"Table {self.title!r} has {len(self.columns)} columns; a row has "
                        f"{len(row)} cells."
                    )

    @property
    def n_rows(self) -> int:
        """Of all groups."""
        return sum(len(group.rows) for group in self.groups)


@dataclass(frozen=True)
class Picture:
    """A PNG or JPEG file's bytes; `alt` says in words what it shows."""

    image: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Film:
    """An MP4 file's bytes (H.264 or AV1, which browsers play)."""

    mp4: bytes
    caption: str = ""


@dataclass(frozen=True)
class Beside:
    """Blocks side by side where there is room, below each other where there is not."""

    blocks: tuple["Block", ...]


@dataclass(frozen=True)
class Section:
    """Blocks under a heading."""

    title: str
    blocks: tuple["Block", ...]
    folded: bool = False


Block: TypeAlias = Words | Lines | Facts | Table | Picture | Film | Overlays | Beside | Section


@dataclass(frozen=True)
class Page:
    """A whole report."""

    title: str
    question: str = ""
    """What was asked, under the title."""
    facts: tuple[tuple[Styled, Styled], ...] = ()
    """The lines that identify the run: policy, data, time."""
    blocks: tuple[Block, ...] = ()
    command: str = ""
    """What makes the same run again; there is a button to copy it."""
    methods: tuple[Block, ...] = ()
    """Folded, behind the findings."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """In JSON's types; folded at the end."""
