"""What an edit says of itself: what was asked for, how it was made, and what was found."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf, isfinite
from typing import Any, Self

from actlens.rome.conflicts import Conflict
from actlens.rome.errors import EditError
from actlens.text import clean_text

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class RequestRecord:
    """A request as it was granted, in dataset units."""

    scene: str
    """Its source and address."""
    scene_sha256: str
    positions: tuple[int, ...]
    before: Rows
    """What the policy did, by position and joint."""
    target: Rows
    """What it was asked to do."""
    left_over: float
    """The largest difference from the target under the edit, over positions and joints."""


@dataclass(frozen=True)
class EditRecord:
    """The provenance of an edit."""

    requests: tuple[RequestRecord, ...]
    joints: tuple[str, ...]
    options: Mapping[str, Any]
    """How it was made: ridge, update rule, solver, jitter; plain values."""
    statistics: Mapping[str, Any]
    """Which key statistics were kept to; plain values."""
    condition: float
    """Of the Gram matrix of the keys: the square of how much an edit grows where keys that resemble
    each other are told apart."""
    price: float
    """How many times the drift grows because all requests are granted at once."""
    conflicts: tuple[Conflict, ...]
    """Requests that contradict each other."""
    n_steps: int
    """Steps of the solver, over all requests."""
    earlier: tuple[str, ...] = ()
    """Hashes of the policies that edits before it made."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is infinite as null."""
        saved = asdict(self)
        saved |= {"condition": _finite(self.condition), "price": _finite(self.price)}
        saved["conflicts"] = [
            asdict(conflict) | {"price": _finite(conflict.price)} for conflict in self.conflicts
        ]
        return saved

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        """What `to_json` wrote, whoever did.

        Raises:
            EditError: naming the entry that is missing or not understood.
        """
        try:
            requests = tuple(_request(entry) for entry in saved["requests"])
            conflicts = tuple(
                Conflict(int(entry["first"]), int(entry["second"]), _number(entry["price"]))
                for entry in saved["conflicts"]
            )
            return cls(
                requests,
                tuple(clean_text(name) for name in saved["joints"]),
                dict(saved["options"]),
                dict(saved["statistics"]),
                _number(saved["condition"]),
                _number(saved["price"]),
                conflicts,
                int(saved["n_steps"]),
                tuple(str(entry) for entry in saved["earlier"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EditError(
                f"This is no record of an edit ({type(error).__name__}: {clean_text(error)})."
            ) from error


def _request(saved: Mapping[str, Any]) -> RequestRecord:
    before, target = (
        tuple(tuple(float(x) for x in row) for row in saved[name]) for name in ("before", "target")
    )
    return RequestRecord(
        clean_text(saved["scene"]),
        str(saved["scene_sha256"]),
        tuple(int(k) for k in saved["positions"]),
        before,
        target,
        float(saved["left_over"]),
    )


def _finite(number: float) -> float | None:
    return number if isfinite(number) else None


def _number(saved: float | None) -> float:
    return inf if saved is None else float(saved)
