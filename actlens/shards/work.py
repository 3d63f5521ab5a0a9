"""Compute what a run lacks, whatever happens to the workers, and store each result as it comes."""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass, field

from actlens.errors import ActlensError
from actlens.shards.engines import Engine
from actlens.shards.errors import RunError
from actlens.shards.folder import Run, stored
from actlens.shards.plan import Unit
from actlens.text import quoted

_MOST_DEATHS = 3
"""How often a unit may be in work when a worker dies; all but the first time it is by itself."""
_MOST_BREAKS = 6
"""How often workers may die one after another without any result."""
_MOST_FAILURES = 20
"""With more failed units than this, something is wrong with the run and not with the units."""


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    done: float
    """Units with a result; begun ones count in part where that is known."""
    total: int
    found: int
    """Of the done, those that had a result before."""
    seconds: float
    """Since this process began to compute."""

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far; None before anything was computed."""
        computed = self.done - self.found
        return self.seconds * (self.total - self.done) / computed if computed > 0 else None


def complete(
    run: Run,
    units: Sequence[Unit],
    work: Callable[[Unit], bytes],
    engine: Engine,
    *,
    progress: Callable[[Progress], None] = lambda progress: None,
    notice: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Give every unit a whole file in the run's folder; those that have one are left alone.

    A unit that takes its worker down is tried again by itself, so that none is blamed for another.
    A unit that fails does not hold up the others; the failed ones are named at the end. An
    interrupted run leaves all finished results, and calling this again goes on from there.

    Args:
        work: computes a unit's result and encodes it (`encode`); a unit must always give the same
            bytes.
        notice: told of damaged files and dead workers.

    Raises:
        RunError: if units failed, results cannot be written, or the workers are out of reach.
    """
    distinct = {unit.key: unit for unit in units}
    before = stored(run, list(distinct.values()))
    for sentence in before.damaged:
        notice(f"{sentence} It is computed again.")
    todo = [unit for key, unit in distinct.items() if key not in before.done]
    crew = _Crew(run, work, engine, progress, notice, len(distinct), len(before.done))
    crew.work_off(todo)


@dataclass
class _Crew:
    """The units in work, and what became of the others."""

    run: Run
    work: Callable[[Unit], bytes]
    engine: Engine
    progress: Callable[[Progress], None]
    notice: Callable[[str], None]
    total: int
    found: int
    began: float = field(default_factory=time.monotonic)
    done: int = 0
    breaks: int = 0
    """Since the last result."""
    deaths: Counter[str] = field(default_factory=Counter)
    suspects: deque[Unit] = field(default_factory=deque)
    """Units that were in work when a worker died."""
    failed: list[tuple[Unit, str]] = field(default_factory=list)

    def work_off(self, units: Sequence[Unit]) -> None:
        """Compute and store all units."""
        todo = deque(units)
        self._report()
        while todo or self.suspects:
            with self.engine.executor() as executor:
                whole = self._emptied(self.suspects, executor, in_flight=1)
                whole = whole and self._emptied(todo, executor, in_flight=self.engine.in_flight)
            self.breaks += not whole
            if self.breaks > _MOST_BREAKS:
                raise RunError(f"Workers die again and again, whatever they do. {self._kept()}")
        if self.failed:
            raise self._failure()

    def _emptied(self, queue: deque[Unit], executor: Executor, *, in_flight: int) -> bool:
        """Compute the units of a queue; False if the executor broke, and nothing is in work."""
        running: dict[Future[bytes], Unit] = {}
        whole = True
        while running or (queue and whole):
            while queue and whole and len(running) < in_flight:
                unit = queue.popleft()
                if self._has_result(unit):  # another process works on the same folder
                    self._count(self.found + 1, self.done)
                    continue
                try:
                    running[executor.submit(self.work, unit)] = unit
                except BrokenExecutor:
                    queue.appendleft(unit)
                    whole = False
            if running:
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    whole &= self._settled(running.pop(future), future)
        return whole

    def _settled(self, unit: Unit, future: Future[bytes]) -> bool:
        """What became of one unit; False if the executor broke."""
        if future.cancelled():
            raise RunError(
                f"The workers are out of reach: the scheduler ended, or dropped {unit.name}. "
                f"{self._kept()}"
            )
        error = future.exception()
        if error is None:
            self._store(unit, future.result())
        elif isinstance(error, BrokenExecutor):
            self._died(unit, error)
            return False
        elif self.engine.is_death(error):
            self._fail(unit, f"took every worker down that it was given to ({quoted(error)})")
        elif isinstance(error, ActlensError | OSError | MemoryError) and not isinstance(
            error, RunError
        ):
            self._fail(unit, f"{type(error).__name__}: {error}")
        else:
            raise error
        return True

    def _store(self, unit: Unit, content: bytes) -> None:
        try:
            self.run.store(unit, content)
        except OSError as error:
            raise RunError(
                f"{self.run.path(unit)} cannot be written ({error.strerror or error}). "
                f"{self._kept()}"
            ) from error
        self.breaks = 0
        self._count(self.found, self.done + 1)

    def _died(self, unit: Unit, error: BaseException) -> None:
        self.deaths[unit.key] += 1
        if self.deaths[unit.key] >= _MOST_DEATHS:
            self._fail(unit, f"ended its worker {_MOST_DEATHS} times (too little memory?)")
            return
        self.suspects.append(unit)
        self.notice(f"A worker died during {unit.name}, which is tried again by itself.")

    def _fail(self, unit: Unit, reason: str) -> None:
        self.failed.append((unit, reason))
        if len(self.failed) > _MOST_FAILURES:
            raise self._failure()

    def _failure(self) -> RunError:
        unit, reason = self.failed[0]
        others = ", ".join(unit.name for unit, _ in self.failed[1:4])
        rest = f" Also: {others}{', …' if len(self.failed) > 4 else '.'}" if others else ""
        return RunError(
            f"{len(self.failed)} of {self.total} units failed, first {unit.name}: {reason}.{rest} "
            f"{self._kept()}"
        )

    def _kept(self) -> str:
        return (
            f"{self.found + self.done} of {self.total} units are stored in {self.run.folder}; the "
            "same command goes on from there."
        )

    def _has_result(self, unit: Unit) -> bool:
        try:
            return self.run.read(unit) is not None
        except RunError:
            return False

    def _count(self, found: int, done: int) -> None:
        self.found, self.done = found, done
        self._report()

    def _report(self) -> None:
        seconds = time.monotonic() - self.began
        self.progress(Progress(self.found + self.done, self.total, self.found, seconds))
