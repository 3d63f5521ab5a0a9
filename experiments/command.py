"""What every command does alike: where files go, how it ends, tables as files and as JSON."""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.text import Text

from actlens.errors import ActlensError
from actlens.report.plain import plain
from actlens.report.styles import BAD


def run_folder(name: str, chosen: Path | None) -> Path:
    """Where a run's files go: as chosen, or `runs/NAME-DATE-TIME`."""
    return chosen or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


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
