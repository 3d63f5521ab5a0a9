"""Where units are computed: in threads, in processes, or on a Dask cluster.

Each engine gives a `concurrent.futures.Executor`. Functions that go to processes or to Dask must be
importable there, and their arguments small.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event
from typing import Protocol

from actlens.shards.errors import RunError
from actlens.text import quoted


class Engine(Protocol):
    """Something that computes units."""

    @property
    def in_flight(self) -> int:
        """How many units it should be given at a time."""
        ...

    def executor(self) -> AbstractContextManager[Executor]:
        """A new executor; left with an exception, it drops what it was computing.

        Raises:
            RunError: if there can be none.
        """
        ...

    def is_death(self, error: BaseException) -> bool:
        """Whether a unit failed because it took workers down, again and again."""
        ...


@dataclass(frozen=True)
class Threads:
    """Threads of this process, which share its model."""

    n: int
    stopped: Event = field(default_factory=Event, compare=False)
    """Set when the run ends early; long units look at it now and then."""

    @property
    def in_flight(self) -> int:
        """As `Engine` says."""
        return 2 * self.n

    @contextmanager
    def executor(self) -> Generator[Executor]:
        """As `Engine` says."""
        self.stopped.clear()
        pool = ThreadPoolExecutor(self.n)
        try:
            yield pool
        except BaseException:
            self.stopped.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def is_death(self, error: BaseException) -> bool:
        """Never: this process would be dead."""
        return False


@dataclass(frozen=True)
class Processes:
    """Processes of this machine, started afresh (`spawn`); they end when this process ends."""

    n: int

    @property
    def in_flight(self) -> int:
        """As `Engine` says."""
        return 2 * self.n

    @contextmanager
    def executor(self) -> Generator[Executor]:
        """As `Engine` says."""
        context = multiprocessing.get_context("spawn")
        end, line = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(
            self.n, mp_context=context, initializer=_live_while_held, initargs=(end,)
        )
        try:
            yield pool
        except BaseException:
            line.close()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            line.close()
            end.close()

    def is_death(self, error: BaseException) -> bool:
        """Never: the whole pool breaks, and the run finds out which unit it was."""
        return False


def _live_while_held(end: Connection) -> None:
    """In a new worker: end with the process that holds the other end of the line, even when it is
    killed, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        try:
            end.recv_bytes()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclass(frozen=True)
class Dask:
    """The workers of a Dask cluster.

    A worker that dies is replaced by Dask: its units go to the others, up to Dask's own limit
    (`distributed.scheduler.allowed-failures`).
    """

    scheduler: str
    """Its address (`tcp://10.0.0.1:8786`), or the file that `--scheduler-file` made it write."""
    in_flight: int = 1024

    @contextmanager
    def executor(self) -> Generator[Executor]:
        """As `Engine` says."""
        try:
            from distributed import Client
        except ImportError as error:
            raise RunError(
                "Dask is not installed here: pip install 'dask[distributed]', or install actlens "
                "with its extra [dask]."
            ) from error
        file = Path(self.scheduler)
        where = {"scheduler_file": str(file)} if file.is_file() else {"address": self.scheduler}
        try:
            client = Client(**where, set_as_default=False, timeout="20s")
        except (OSError, ValueError) as error:
            raise RunError(
                f"No Dask scheduler answers at {quoted(self.scheduler)} ({quoted(error)}). Start "
                "one with `dask scheduler`; it prints its address."
            ) from error
        with client:
            executor = client.get_executor(pure=False)
            try:
                yield executor
            finally:
                executor.shutdown(wait=False)

    def is_death(self, error: BaseException) -> bool:
        """As `Engine` says: Dask has tried it on several workers, and all died."""
        from distributed.scheduler import KilledWorker

        return isinstance(error, KilledWorker)
