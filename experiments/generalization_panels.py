"""What of a policy and of a series is drawn: maps of the table and panels along the doses."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd

from actlens.report.generalization import Dose
from actlens.report.generalization_pictures import DosePanel, TableMap, Tile
from actlens.retrieval import TIP
from actlens.sim.regions import CELL
from actlens.sim.series import (
    ALL,
    BETWEEN,
    FIRST,
    REGIONS,
    SHOWN,
    along_demonstrations,
    along_positions,
    error_along,
    index_along,
    mechanism_along,
    success_along,
)
from actlens.sim.table_map import mean_by_cell

_SUCCESS, _MECHANISM = "Closed loop, % lifted", "Mechanism: 0 like a rule, 1 like a table"
_LIMITS = {_SUCCESS: (-3.0, 103.0), _MECHANISM: (-0.4, 1.1)}
"""Of axes; others fit themselves to what they show."""


def doses_of(records: Sequence[dict]) -> tuple[Dose, ...]:
    """What is shown of a series."""
    if not records:
        return ()
    success = success_along(records)
    shares = ["mean", "smallest", "largest", "low", "high"]
    return (
        Dose(_SUCCESS, success.assign(**{name: 100 * success[name] for name in shares}), ".0f"),
        Dose("Error at frame 0, mm of the tip", error_along(records, TIP, FIRST), ".0f"),
        Dose("Generalisation index at frame 0, tip", index_along(records, TIP, FIRST), ".2f"),
        Dose("Generalisation index at all frames, tip", index_along(records, TIP, ALL), ".2f"),
        Dose(_MECHANISM, mechanism_along(records), ".2f"),
    )


def maps_of(tables: dict[str, pd.DataFrame]) -> list[TableMap]:
    """Errors at demonstrated and at other places, and success, cell by cell."""

    def tiles(table: pd.DataFrame, column: str, factor: float = 1.0) -> list[Tile]:
        places, values = np.stack([table.x, table.y], 1), np.array(table[column].tolist(), float)
        means = mean_by_cell(places, factor * values)
        return [Tile(*c.corner, CELL, REGIONS[c.region], value) for c, value in means.items()]

    shown = []
    for where, frames in product(("demonstrated", "unseen"), (FIRST, ALL)):
        column = TIP if frames == ALL else f"{TIP}, {frames}"
        title = f"error of the tip at {where} places, mm, {frames}"
        shown.append(TableMap(title, tiles(tables[f"{where}_episodes"], column), largest=40.0))
    if "rollouts" in tables:
        success = tiles(tables["rollouts"], "success", 100.0)
        shown.append(TableMap("lifted, %", success, largest=100.0, good_is_large=True))
    return shown


def panels_of(doses: Sequence[Dose]) -> list[dict[str, DosePanel]]:
    """A row of panels for each statistic."""
    found = []
    for given in doses:
        title, table = given.title, given.found
        key = "region" if "region" in table else "statistic"
        row = {}
        for dose, part in (
            ("demonstrations", along_demonstrations(table)),
            ("positions", along_positions(table)),
        ):
            names = [n for n in dict.fromkeys(part[key]) if n not in ("all", BETWEEN, "none")]
            names.sort(key=lambda name: name == SHOWN)  # so that a region keeps its colour
            curves = {name: part[part[key] == name] for name in names}
            row[dose] = DosePanel(title, curves, _LIMITS.get(title))
        found.append(row)
    return found
