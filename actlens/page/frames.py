"""A data frame as a table of the page, each interval beside its figure."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from actlens.page.blocks import Column, Rows, Table

if TYPE_CHECKING:
    import pandas as pd

_LOW, _HIGH = "_low", "_high"


def table_of(
    frame: "pd.DataFrame",
    *,
    title: str = "",
    caption: str = "",
    names: Mapping[str, str] | None = None,
    about: Mapping[str, str] | None = None,
    folded: bool = False,
    most: int = 500,
) -> Table:
    """The frame's columns as they come; `NAME_low` and `NAME_high` stand in brackets behind NAME.

    Args:
        names: what the heads of columns say, where that is not the column's name.
        about: what columns mean, shown under the pointer.
        folded: shown as its title until it is opened.
        most: rows; the caption says how many there are more.
    """
    columns = list(frame.columns)
    shown = [name for name in columns if not _is_bound(name, columns)]
    cells = [_cells(frame.iloc[:most], name, columns) for name in shown]
    numeric = [_is_number(frame[name]) for name in shown]
    if len(frame) > most:
        caption = f"{caption} The first {most:,} of {len(frame):,} rows.".strip()
    return Table(
        columns=tuple(
            Column((names or {}).get(name, name), number, (about or {}).get(name, ""))
            for name, number in zip(shown, numeric, strict=True)
        ),
        groups=(Rows(tuple(zip(*cells, strict=True))),),
        title=title,
        caption=caption,
        folded=folded,
    )


def _is_bound(name: str, columns: Sequence[str]) -> bool:
    return any(name.endswith(end) and name.removesuffix(end) in columns for end in (_LOW, _HIGH))


def _is_number(column: "pd.Series") -> bool:
    return column.dtype.kind in "iuf" or str(column.dtype).startswith(("Int", "Float"))


def _cells(frame: "pd.DataFrame", name: str, columns: Sequence[str]) -> list[str]:
    if not _is_number(frame[name]):
        return ["" if _missing(value) else str(value) for value in frame[name]]
    form = _form(frame[name])
    cells = [form(value) for value in frame[name]]
    bounds = [f"{name}{end}" for end in (_LOW, _HIGH)]
    if not set(bounds) <= set(columns):
        return cells
    return [
        cell if _missing(low) or _missing(high) else f"{cell} ({form(low)}…{form(high)})"
        for cell, low, high in zip(cells, *(frame[bound] for bound in bounds), strict=True)
    ]


def _form(column: "pd.Series") -> Callable[[Any], str]:
    """How a column's numbers are written: one number of decimals, three digits of the largest."""
    if column.dtype.kind in "iu" or str(column.dtype).startswith("Int"):
        return lambda value: "" if _missing(value) else f"{value:d}"
    finite = column.to_numpy(dtype=float, na_value=np.nan)
    largest = float(np.abs(finite[np.isfinite(finite)]).max(initial=0))
    if largest and not 1e-3 <= largest < 1e5:
        return lambda value: "" if _missing(value) else f"{value:.3g}"
    decimals = 3 if largest < 10 else max(0, 3 - len(str(int(largest))))
    return lambda value: "" if _missing(value) else f"{value:.{decimals}f}"


def _missing(value: Any) -> bool:
    import pandas as pd

    return value is None or value is pd.NA or value is pd.NaT or value != value  # NaN alone differs
