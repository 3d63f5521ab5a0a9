"""What a verdict can say, and on what it rests."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from actlens.mechanism import Part
from actlens.notebook import DrawnAsTable

if TYPE_CHECKING:
    import pandas as pd


class Answer(StrEnum):
    """What a policy is, by what it does at unseen places and how it gets there."""

    LOOKUP_TABLE = "lookup table"
    """No better than its nearest demonstration, and jumps between neighbours."""
    SMOOTH_MEMORISER = "smooth memoriser"
    """No better than its nearest demonstration, yet smooth: memory without cells."""
    INTERPOLATOR = "interpolator"
    """Smooth, and better than retrieval between the demonstrations but not beyond them."""
    GENERAL_RULE = "general rule"
    """Smooth, and better than retrieval beyond the demonstrations, too."""
    UNDECIDED = "undecided"
    """More than one of these fits the intervals, or none does."""


@dataclass(frozen=True)
class Evidence:
    """One figure beside the boundary that it is held against."""

    axis: str
    """`function` or `mechanism`."""
    figure: str
    value: float
    low: float
    high: float
    boundary: float
    says: str


@dataclass(frozen=True)
class Verdict(DrawnAsTable):
    """An answer with its evidence."""

    answer: Answer
    candidates: tuple[Answer, ...]
    """All answers that the intervals leave possible. None is for what is table-like and yet
    generalises, as a table does that has more cells than there are demonstrations."""
    site: Part | None
    """Of a lookup table: the last part that jumps while everything behind it does not. None if
    there is no table, or it cannot be told."""
    evidence: tuple[Evidence, ...]
    missing: tuple[str, ...]
    """What was lacking for a decision, or for a part of it."""

    def frame(self) -> "pd.DataFrame":
        """The evidence, one row a figure."""
        import pandas as pd

        return pd.DataFrame([asdict(one) for one in self.evidence])
