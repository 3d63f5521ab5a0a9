"""What every command does alike: where files go, how it ends, tables, the report and its page."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pandas as pd
from rich.console import Console, RenderableType
from rich.text import Text

from actlens.errors import ActlensError
from actlens.page import Block, write_page
from actlens.report.page import report_page
from actlens.report.plain import plain
from actlens.report.styles import BAD

C = TypeVar("C", bound="Options")

REPORT = "report.html"
"""The name of a run's page."""


def run_folder(name: str, chosen: Path | None) -> Path:
    """Where a run's files go: as chosen, or `runs/NAME-DATE-TIME`."""
    return chosen or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


class Options(Protocol):
    """Of a command that writes files."""

    @property
    def output_dir(self) -> Path | None:
        """Where files go, if chosen."""


def run_command(
    kind: type[C],
    name: str,
    about: str | None,
    work: Callable[[C, Path, Console], None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the options, do the work, and give the exit code of `attempt`.

    Args:
        kind: the dataclass of the options.
        name: of the command's module.
        about: the module's docstring, for `--help`.
        work: is given the options, the run's folder, and the standard error's console.
    """
    import tyro

    config = tyro.cli(
        kind,
        prog=f"python -m experiments.{name}",
        description=about,
        args=argv,
        config=(tyro.conf.EnumChoicesFromValues,),
    )
    console, folder = Console(stderr=True), run_folder(name, config.output_dir)
    return attempt(lambda: work(config, folder, console), folder, console)


def attempt(work: Callable[[], None], folder: Path, console: Console) -> int:
    """Do the work and give the exit code: 0, 3 for a mistake that is told, 130 if interrupted.

    Args:
        folder: where the work writes; an interrupted run says what it leaves there.
        console: for messages, the standard error's.
    """
    try:
        work()
    except ActlensError as error:
        console.print(Text(plain(f"{type(error).__name__}: {error}"), style=BAD))
        return 3
    except KeyboardInterrupt:
        left = f"what was finished is in {folder}" if folder.exists() else "nothing was written"
        console.print(Text(plain(f"interrupted; {left}")))
        return 130
    return 0


def write_tables(
    tables: Mapping[str, pd.DataFrame], folder: Path, *, parquet: bool = False
) -> list[Path]:
    """Tables by name as csv, and the files that were written.

    Args:
        parquet: beside each, the same for programs; not among the files that are listed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, table in tables.items():
        files.append(folder / f"{name}.csv")
        table.to_csv(files[-1], index=False)
        if parquet:
            table.to_parquet(files[-1].with_suffix(".parquet"), index=False)
    return files


def rows(table: pd.DataFrame) -> list[dict]:
    """A table for JSON, one object a row."""
    return json.loads(table.to_json(orient="records"))


def with_page(folder: Path, files: Iterable[Path]) -> tuple[Path, ...]:
    """A run's files as a report lists them: the page first."""
    return (folder / REPORT, *files)


def write_report(
    report: RenderableType,
    files: Sequence[Path],
    *,
    origin: Mapping[str, Any],
    blocks: Sequence[Block] = (),
    tables: Mapping[str, pd.DataFrame] | None = None,
    shown: Sequence[Path] | None = None,
) -> None:
    """Write a run's page: what it prints, what a console cannot show, and how to run it again.

    Args:
        files: the page (`with_page`), then the others.
        origin: the run's provenance.
        blocks: what stands before the report, such as maps to look into.
        tables: whole, by name.
        shown: files to show in the page; all pictures and films among `files` if not given.
    """
    page, *others = files
    shown = others if shown is None else shown
    write_page(page, report_page(report, origin=origin, blocks=blocks, tables=tables, shown=shown))
