"""The folder of a run: what was asked in `run.json`, and one file for every unit that is done.

A unit is done when its file is whole, and nothing else says so: no list is kept that could disagree
with the files, and a process may be killed at any moment.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from actlens.shards.errors import RunError
from actlens.shards.files import remove_scraps, write_first, write_whole
from actlens.shards.keys import canonical, key_of
from actlens.shards.plan import Plan, Unit
from actlens.shards.records import check, decode
from actlens.text import listed, quoted

T = TypeVar("T")

RUN_FILE = "run.json"
_UNITS = "units"
_FORMAT = 1
_LARGEST = 2**30


@dataclass(frozen=True)
class Run:
    """A run and the folder in which its results are."""

    folder: Path
    plan: Plan
    settled: Mapping[str, Any]
    """What was found out when the run began and holds until it ends, whoever goes on with it: how
    to compute, not what."""
    about: Mapping[str, Any]
    """Whatever else whoever began the run wanted to be remembered."""

    def path(self, unit: Unit) -> Path:
        """Where the unit's result is, or will be."""
        return self.folder / _UNITS / unit.key[:2] / f"{unit.key}.safetensors"

    def store(self, unit: Unit, content: bytes) -> None:
        """Put an encoded result in its place, whole or not at all."""
        write_whole(self.path(unit), content)

    def read(self, unit: Unit) -> bytes | None:
        """The bytes of the unit's result, if there is a whole one; None if there is no file.

        Raises:
            RunError: if the file is damaged or belongs to another unit.
        """
        path = self.path(unit)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"{path} cannot be read ({error.strerror or error}).") from error
        check(content, key=unit.key, where=path)
        return content


def begin(
    folder: Path,
    plan: Plan,
    *,
    settle: Callable[[], Mapping[str, Any]] = dict,
    about: Mapping[str, Any] | None = None,
) -> Run:
    """The run in a folder: a new one, or the one that was begun there with the same plan.

    Args:
        settle: called for a new run, for what must not change between its beginning and its end.
        about: kept with a new run for those who read the folder later, in JSON's types.

    Raises:
        RunError: if the folder holds another run, or cannot be written.
    """
    path = folder / RUN_FILE
    try:
        if not path.exists():
            content: dict[str, Any] = {
                "format": _FORMAT,
                "asked": plan.asked,
                "settled": settle(),
                "about": about or {},
                "units": [[unit.key, unit.name, unit.what] for unit in plan.units],
            }
            content["sha256"] = key_of(content)
            write_first(path, canonical(content).encode())
        for place in (folder, *folder.glob(f"{_UNITS}/*")):
            remove_scraps(place)
    except OSError as error:
        raise RunError(f"{folder} cannot hold a run ({error.strerror or error}).") from error
    run = open_run(folder)
    plan.require_same(run.plan, folder)
    return run


def open_run(folder: Path) -> Run:
    """The run that a folder holds.

    Raises:
        RunError: if it holds none, or `run.json` is damaged.
    """
    path = folder / RUN_FILE
    try:
        if path.stat().st_size > _LARGEST:
            raise RunError(f"{path} is larger than any run's description.")
        content = json.loads(path.read_bytes())
        stated = content.pop("sha256")
        if stated != key_of(content):
            raise ValueError("its checksum does not fit what it holds")
        if content["format"] != _FORMAT:
            raise RunError(f"{path} has version {quoted(content['format'])} of the format.")
        plan = Plan.of(content["asked"], ((name, what) for _, name, what in content["units"]))
        if [unit.key for unit in plan.units] != [key for key, _, _ in content["units"]]:
            raise ValueError("its keys do not follow from what it says was asked")
    except FileNotFoundError as error:
        raise RunError(f"{folder} holds no run: there is no {RUN_FILE} in it.") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror or error}).") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{path} is damaged ({quoted(error)}). Remove it and give the command again: results "
            "that are whole are found again by their keys."
        ) from error
    return Run(folder, plan, content["settled"], content["about"])


@dataclass(frozen=True)
class Stored:
    """Which units of a run are done."""

    done: frozenset[str]
    """Their keys."""
    damaged: tuple[str, ...]
    """One sentence for each file that is there and cannot be used."""


def stored(run: Run, units: Sequence[Unit]) -> Stored:
    """Which of the units have a whole file; every file is read to its end."""
    done, damaged = set(), []
    for unit in units:
        try:
            if run.read(unit) is not None:
                done.add(unit.key)
        except RunError as error:
            damaged.append(f"{unit.name}: {error}")
    return Stored(frozenset(done), tuple(damaged))


def read_all(runs: Sequence[Run], cls: type[T]) -> Iterator[T]:
    """The results of all units in the plan's order, from whichever folders have them.

    Args:
        runs: the same run in one folder or several; its shards, for instance.
        cls: the dataclass that the results are.

    Raises:
        RunError: at once, if the folders hold different runs or a unit has no whole file in any of
            them; it names the units.
    """
    first, *others = runs
    for run in others:
        first.plan.require_same(run.plan, run.folder)
    place: dict[str, Run] = {}
    damaged: list[str] = []
    for run in runs:
        left = [unit for unit in first.plan.units if unit.key not in place]
        found = stored(run, left)
        place |= dict.fromkeys(found.done, run)
        damaged += found.damaged
    missing = [unit.name for unit in first.plan.units if unit.key not in place]
    if missing:
        folders = ", ".join(str(run.folder) for run in runs)
        reasons = f" Damaged: {' '.join(damaged[:3])}" if damaged else ""
        raise RunError(
            f"{len(missing)} of {len(first.plan.units)} units have no result in {folders}: "
            f"{listed(missing)}.{reasons} Give the run's command again with the same folder; it "
            "computes what is missing."
        )
    return (_read(place[unit.key], unit, cls) for unit in first.plan.units)


def _read(run: Run, unit: Unit, cls: type[T]) -> T:
    content = run.read(unit)
    if content is None:
        raise RunError(f"{run.path(unit)} was removed while it was read.")
    return decode(cls, content, key=unit.key, where=run.path(unit))
