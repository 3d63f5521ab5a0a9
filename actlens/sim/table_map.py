"""A policy over the table: what it errs and how often it succeeds, cell by cell."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from actlens.model.act import HookedACT
from actlens.sim.conditions import Start
from actlens.sim.regions import (
    CELL,
    COLUMNS,
    ROWS,
    X_MIN,
    Y_MIN,
    Region,
    cell_of,
    cell_region,
)
from actlens.sim.series.closed_loop import success_by_region
from actlens.sim.series.offline import REGIONS


@dataclass(frozen=True)
class Cell:
    """A square of the table."""

    row: int
    """Along x, away from the base."""
    column: int
    """Along y, to the arm's left."""

    @property
    def region(self) -> Region:
        """What a cube here asks of a policy."""
        return cell_region(self.row, self.column)

    @property
    def corner(self) -> tuple[float, float]:
        """The smallest x and y, metres."""
        return X_MIN + self.row * CELL, Y_MIN + self.column * CELL


CELLS = tuple(Cell(row, column) for row in range(ROWS) for column in range(COLUMNS))
"""All of them, in reading order."""


def starts_by_cell(n: int, *, seed: int = 0) -> dict[Cell, tuple[Start, ...]]:
    """`n` starts in each cell, at random places in it; the first are the same for every `n`."""
    found = {}
    for number, cell in enumerate(CELLS):
        starts = []
        for i in range(n):
            rng = np.random.default_rng([seed, number, i])
            x, y = (np.array(cell.corner) + CELL * rng.uniform(size=2)).tolist()
            starts.append(Start((x, y), int(rng.integers(2**31))))
        found[cell] = tuple(starts)
    return found


def success_by_cell(
    model: HookedACT,
    n: int,
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda n_rollouts: None,
) -> pd.DataFrame:
    """`n` closed-loop episodes in each cell: one row a rollout, as `success_by_region` gives."""
    named = {str(i): starts for i, starts in enumerate(starts_by_cell(n, seed=seed).values())}
    rollouts = success_by_region(model, named, progress=progress)
    regions = [REGIONS[CELLS[int(number)].region] for number in rollouts.region]
    return rollouts.assign(region=regions)


def mean_by_cell(
    places: Float[np.ndarray, "place 2"], values: Float[np.ndarray, " place"]
) -> dict[Cell, float | None]:
    """The mean of the values in every cell; None where there is none.

    Args:
        places: x and y in metres; those off the table are left out.
    """
    of_cell: dict[Cell, list[float]] = {cell: [] for cell in CELLS}
    for (x, y), value in zip(places.tolist(), values.tolist(), strict=True):
        cell = Cell(*cell_of(x, y))
        if cell in of_cell:
            of_cell[cell].append(value)
    return {cell: sum(v) / len(v) if v else None for cell, v in of_cell.items()}
