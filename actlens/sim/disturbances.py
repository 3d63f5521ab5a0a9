"""The disturbances of the perturbation suite: of what is shown, and of how the world looks."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from actlens.errors import InterventionError
from actlens.interventions.perturbations import Perturbation, usual_suite
from actlens.sim.look import Look
from actlens.text import did_you_mean, quoted


@dataclass(frozen=True)
class Disturbance:
    """One disturbance at one severity: of what is shown (a perturbation), or of how things look."""

    kind: str
    severity: int | None
    """From 1 within its kind; None if it is all or nothing."""
    what: Perturbation | Look

    @property
    def name(self) -> str:
        """`blur 2`, `top black`."""
        return self.kind if self.severity is None else f"{self.kind} {self.severity}"

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, numbers and strings."""
        saved = asdict(self.what) if isinstance(self.what, Look) else self.what.to_json()
        return {"kind": self.kind, "severity": self.severity, type(self.what).__name__: saved}


def suite(cameras: Sequence[str]) -> tuple[Disturbance, ...]:
    """The usual perturbations for these cameras, and other colours of the cube and of the light."""
    levels: dict[str, tuple[Perturbation | Look, ...]] = dict(usual_suite(cameras))
    levels |= {
        "green cube": (Look(cube_rgb=(0.10, 0.60, 0.15)),),
        "blue cube": (Look(cube_rgb=(0.10, 0.25, 0.85)),),
        "dim light": (Look(brightness=0.8), Look(brightness=0.6), Look(brightness=0.4)),
        "bright light": (Look(brightness=1.2), Look(brightness=1.4), Look(brightness=1.8)),
        "turned light": (Look(light_turn=1.0), Look(light_turn=2.0), Look(light_turn=3.0)),
    }
    return tuple(
        Disturbance(kind, severity if len(found) > 1 else None, what)
        for kind, found in levels.items()
        for severity, what in enumerate(found, start=1)
    )


def chosen(
    every: Sequence[Disturbance], kinds: Sequence[str], severities: Sequence[int]
) -> tuple[Disturbance, ...]:
    """The disturbances of some kinds and severities; all where none is named.

    Those that are all or nothing have every severity.

    Raises:
        InterventionError: if a kind is unknown, or nothing is left.
    """
    known = dict.fromkeys(one.kind for one in every)
    for kind in kinds:
        if kind not in known:
            raise InterventionError(
                f"There is no disturbance {quoted(kind)}; there are {', '.join(known)}."
                f"{did_you_mean(kind, known)}"
            )
    levels = {None, *(severities or (one.severity for one in every))}
    found = tuple(one for one in every if one.kind in (kinds or known) and one.severity in levels)
    if not found:
        raise InterventionError(f"No disturbance has a severity among {list(severities)}.")
    return found
