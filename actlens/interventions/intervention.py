"""Interventions as values: what to change, into what, and when. They run anywhere, and save."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

from torch import Tensor

from actlens.errors import InterventionError
from actlens.hooks import HookPoint
from actlens.interventions.sources import SAVEABLE, Call, Donors, Moment, Source
from actlens.sites import Selection, Site


@dataclass(frozen=True)
class Schedule:
    """The control steps at which an intervention acts; outside of a rollout it always does.

    The network runs only at some control steps (the others are answered from the action queue), so
    an intervention acts on the runs whose control step lies in `start, start + every, …` below
    `stop`.
    """

    start: int = 0
    stop: int | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if self.start < 0 or self.every < 1 or (self.stop is not None and self.stop <= self.start):
            raise InterventionError(
                f"{self} holds no control step: start >= 0, every >= 1, stop > start or None."
            )

    def acts_at(self, control_step: int) -> bool:
        """Whether a run at this control step is changed; runs outside of a rollout (-1) are."""
        if control_step < 0:
            return True
        below = self.stop is None or control_step < self.stop
        return (
            below and control_step >= self.start and (control_step - self.start) % self.every == 0
        )


ALWAYS = Schedule()


@dataclass(frozen=True)
class Edit:
    """One part of one activation, and what takes its place."""

    site: Site
    source: Source

    def apply(
        self,
        activation: Tensor,
        point: HookPoint,
        donors: Donors | None = None,
        inference_step: int = 0,
    ) -> Tensor:
        """The activation with the part replaced, in memory of its own."""
        index = point.index(self.site.where, activation.shape)
        part = activation[index]
        moment = Moment(point, index, donors or {}, inference_step)
        edited = activation.clone()
        edited[index] = self.source.value(part, moment)
        return edited


@dataclass(frozen=True)
class Intervention:
    """Edits that are made jointly, and the control steps at which they are made.

    Edits at one hook point are made in their order. The same value is run by the engine
    (`actlens.interventions.run`), by plain hooks (`as_hooks`), through nnsight and in rollouts.
    """

    edits: tuple[Edit, ...]
    schedule: Schedule = ALWAYS

    def __post_init__(self) -> None:
        if not self.edits:
            raise InterventionError("An intervention without edits changes nothing.")

    @classmethod
    def at(cls, site: Site, source: Source, schedule: Schedule = ALWAYS) -> Self:
        """An intervention of one edit."""
        return cls((Edit(site, source),), schedule)

    def __and__(self, other: "Intervention") -> "Intervention":
        """Both jointly; their schedules must agree."""
        if self.schedule != other.schedule:
            raise InterventionError(f"{self.schedule} and {other.schedule} do not agree.")
        return Intervention(self.edits + other.edits, self.schedule)

    def __str__(self) -> str:
        return " + ".join(f"{edit.site} := {edit.source}" for edit in self.edits)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, numbers and strings.

        Raises:
            InterventionError: if a source is a function.
        """
        return {
            "edits": [edit_to_json(edit) for edit in self.edits],
            "schedule": asdict(self.schedule),
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        """What `to_json` wrote.

        Raises:
            InterventionError: naming the entry that is missing or not understood.
        """
        with understood("intervention"):
            edits = tuple(edit_from_json(entry) for entry in saved["edits"])
            return cls(edits, Schedule(**saved["schedule"]))


@contextmanager
def understood(what: str) -> Generator[None]:
    """Turns whatever damaged entries raise into one error that names them."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InterventionError(
            f"This is no saved {what} ({type(error).__name__}: {error})."
        ) from error


def edit_to_json(edit: Edit) -> dict[str, Any]:
    """An edit as plain values.

    Raises:
        InterventionError: if its source is a function.
    """
    return {**site_to_json(edit.site), "source": _saved_source(edit.source)}


def edit_from_json(saved: Mapping[str, Any]) -> Edit:
    """What `edit_to_json` made; to be called within `understood`."""
    return Edit(site_from_json(saved), _loaded_source(saved["source"]))


def site_to_json(site: Site) -> dict[str, Any]:
    """A site as plain values."""
    return {
        "hook": site.name,
        "where": {axis: _saved(chosen) for axis, chosen in site.where.items()},
    }


def site_from_json(saved: Mapping[str, Any]) -> Site:
    """What `site_to_json` made; to be called within `understood`."""
    return Site(saved["hook"], {axis: _loaded(chosen) for axis, chosen in saved["where"].items()})


def _saved(chosen: Selection) -> Any:
    if isinstance(chosen, slice):
        return {"start": chosen.start, "stop": chosen.stop}
    return list(chosen) if isinstance(chosen, tuple) else chosen


def _loaded(saved: Any) -> Selection:
    if isinstance(saved, Mapping):
        return slice(saved["start"], saved["stop"])
    if isinstance(saved, list):
        return tuple(int(i) for i in saved)
    if isinstance(saved, bool) or not isinstance(saved, int):
        raise ValueError(f"{saved!r} selects nothing on an axis")
    return saved


def _saved_source(source: Source) -> dict[str, Any]:
    if isinstance(source, Call):
        raise InterventionError(
            "A function cannot be saved: use a source that is data (FromScene, Constant, "
            "GaussianNoise, Steering, Subspace)."
        )
    return {"kind": type(source).__name__, **asdict(source)}


def _loaded_source(saved: Mapping[str, Any]) -> Source:
    kinds = {kind.__name__: kind for kind in SAVEABLE}
    if saved["kind"] not in kinds:
        raise ValueError(f"{saved['kind']!r} is no source; there are {', '.join(kinds)}")
    fields = {name: _tuples(value) for name, value in saved.items() if name != "kind"}
    return kinds[saved["kind"]](**fields)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
