"""What a run consists of: independent units of work, each with the key of its result."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from actlens.shards.errors import RunError
from actlens.shards.keys import differences, key_of
from actlens.text import listed, quoted

_SHARD = re.compile(r"(\d{1,9})/(\d{1,9})", re.ASCII)


@dataclass(frozen=True)
class Unit:
    """One piece of work."""

    key: str
    """Of its result: the SHA-256 of what the whole run is asked and of what this unit is."""
    what: Any
    """What its function needs to know, in JSON's types."""
    name: str
    """For messages."""


@dataclass(frozen=True)
class Plan:
    """What is asked of every unit, and the units in the order of the result."""

    asked: Mapping[str, Any]
    """Everything that decides what the results are, in JSON's types: hashes of weights and data,
    options, versions."""
    units: tuple[Unit, ...]

    @classmethod
    def of(cls, asked: Mapping[str, Any], items: Iterable[tuple[str, Any]]) -> Self:
        """The plan of (name, what) items."""
        common = key_of(asked)
        units = (Unit(key_of([common, what]), what, name) for name, what in items)
        return cls(asked, tuple(units))

    def require_same(self, other: "Plan", where: object) -> None:
        """Refuse a folder that holds another run.

        Raises:
            RunError: naming what differs.
        """
        found = differences(self.asked, other.asked)
        if found:
            shown = "; ".join(
                f"{path} is {quoted(theirs, 40)} there and {quoted(ours, 40)} here"
                for path, ours, theirs in found[:4]
            )
            more = f" and {len(found) - 4} more" if len(found) > 4 else ""
            raise RunError(
                f"{where} holds another run: {shown}{more}. Take another folder, or ask for the "
                "same to go on with it."
            )
        ours, theirs = ([unit.key for unit in plan.units] for plan in (self, other))
        if ours != theirs:
            odd = [unit.name for unit in self.units if unit.key not in set(theirs)]
            raise RunError(
                f"{where} holds another run: it is about {len(theirs)} units there and "
                f"{len(ours)} here{', not there: ' + listed(odd, 3) if odd else ''}. Take another "
                "folder, or ask for the same to go on with it."
            )


@dataclass(frozen=True)
class Shard:
    """The `number`-th of `of` parts of a run, counted from 1; every unit is in exactly one."""

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise RunError(
                f"A shard is i/n with i from 1 to n, such as 1/4 and 4/4; got "
                f"{self.number}/{self.of}."
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """The shard that `i/n` names.

        Raises:
            RunError: if the text has another form.
        """
        match = _SHARD.fullmatch(text)
        if match is None:
            raise RunError(f"A shard is i/n, such as 1/4; got {quoted(text)}.")
        return cls(int(match[1]), int(match[2]))

    def units(self, plan: Plan) -> Sequence[Unit]:
        """Its units: every `of`-th, so that neighbours that cost the same are shared out evenly."""
        return plan.units[self.number - 1 :: self.of]

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"
