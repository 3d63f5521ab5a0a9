"""How far a long run is: a bar with the time left, or a line a minute where nobody sees bars."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

from actlens.shards import Progress

_SECONDS_BETWEEN_LINES = 60


@contextmanager
def showing_progress(
    console: Console, what: str, units: str
) -> Generator[Callable[[Progress], None]]:
    """Gives the function to call with every `Progress`, and takes the bar away at the end.

    Args:
        console: the standard error's, usually.
        what: is being done, `patching`.
        units: what is counted, `pairs`.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    bar = Bar(*columns, TextColumn("{task.fields[left]}"), console=console, transient=True)
    last = time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal last
        text = time_left(progress)
        bar.update(task, completed=progress.done, total=progress.total, left=text)
        if not console.is_terminal and time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            done = f"{what}: {int(progress.done)} of {progress.total} {units}"
            console.print(f"{done}, {text}" if text else done, highlight=False)

    with bar:
        task = bar.add_task(what, total=None, left="")
        yield show


def time_left(progress: Progress) -> str:
    """`0:12:30 left`; nothing while it is not known."""
    left = progress.seconds_left
    return "" if left is None else f"{timedelta(seconds=round(left))} left"
