"""Intervals as columns of tables: `name`, `name_low`, `name_high`."""

from typing import TYPE_CHECKING

from actlens.statistics import Interval

if TYPE_CHECKING:
    import pandas as pd


def put(table: "pd.DataFrame", name: str, interval: Interval) -> None:
    """Three more columns, an entry a row."""
    table[name] = interval.estimate.ravel()
    table[f"{name}_low"], table[f"{name}_high"] = interval.low.ravel(), interval.high.ravel()


def named(name: str, interval: Interval) -> dict[str, float]:
    """The entries of one row, of a single estimate."""
    return {
        name: float(interval.estimate),
        f"{name}_low": float(interval.low),
        f"{name}_high": float(interval.high),
    }
