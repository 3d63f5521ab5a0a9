"""Results that draw themselves where a notebook shows them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from actlens.page.blocks import Block

_MOST_ROWS = 25


class Drawn(ABC):
    """What is shown by its own `drawn_as()` when it is the last line of a notebook's cell."""

    @abstractmethod
    def drawn_as(self) -> "Sequence[Block]":
        """What stands for the result on a page."""

    def _repr_html_(self) -> str:
        from actlens.page.rendering import blocks_html

        return blocks_html(self.drawn_as())


class DrawnAsTable(Drawn):
    """A result that is shown as its `frame()`: the first rows, each interval beside its figure."""

    @abstractmethod
    def frame(self) -> "pd.DataFrame":
        """The result as a table."""

    def drawn_as(self) -> "Sequence[Block]":
        """The table of `frame()`, cut to what a cell can show."""
        from actlens.page.frames import table_of

        frame = self.frame()
        name = type(self).__name__
        return (table_of(frame, title=name, caption="All of it: .frame().", most=_MOST_ROWS),)


class DrawnAsTables(Drawn):
    """A result that is shown as its `frames()`: the first open, the others by their names."""

    @abstractmethod
    def frames(self) -> "Mapping[str, pd.DataFrame]":
        """All tables by name."""

    def drawn_as(self) -> "Sequence[Block]":
        """A table for each of `frames()`, cut to what a cell can show."""
        from actlens.page.frames import table_of

        frames = self.frames()
        caption = "All of it: .frames()[{!r}]."
        return tuple(
            table_of(frame, title=name, caption=caption.format(name), folded=i > 0, most=_MOST_ROWS)
            for i, (name, frame) in enumerate(frames.items())
        )
