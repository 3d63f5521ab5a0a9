"""The table's split into cube positions to train on, to interpolate to, and to extrapolate to."""

from enum import Enum

import numpy as np

CELL = 0.025
"""Side of a cell in metres."""
ROWS, COLUMNS = 4, 11
"""Cells along x (away from the base) and along y (to the arm's left)."""
X_MIN, Y_MIN = 0.13, -0.15
X_MAX, Y_MAX = X_MIN + ROWS * CELL, Y_MIN + COLUMNS * CELL
"""The rectangle of cube positions, metres from the base: 10 cm by 27.5 cm."""
STRIP_COLUMNS = 2
"""The columns of the largest y, 5 cm wide, that no demonstration touches."""


class Region(Enum):
    """A part of the table, named for what a cube there asks of a policy."""

    TRAIN = "train"
    """Demonstrated: 27 of the 44 cells."""
    HELD_OUT = "held_out"
    """Interpolation: 9 cells, each with demonstrated cells on all its sides on the table but one
    that borders the strip."""
    STRIP = "strip"
    """Extrapolation: the 8 cells of the last two columns."""
    OUTSIDE = "outside"
    """Off the rectangle; nothing is sampled here."""


def cell_region(row: int, column: int) -> Region:
    """The region of a whole cell."""
    if not (0 <= row < ROWS and 0 <= column < COLUMNS):
        return Region.OUTSIDE
    if column >= COLUMNS - STRIP_COLUMNS:
        return Region.STRIP
    # A knight's-move lattice: one cell in four, never two side by side, never a corner.
    return Region.HELD_OUT if (row + 2 * column) % 4 == 1 else Region.TRAIN


def cell_of(x: float, y: float) -> tuple[int, int]:
    """Row and column of the cell that holds a position; off the table, indices out of range."""
    # Positions such as 0.13 + 3 * 0.025 must not fall a rounding error short of their cell.
    row = np.floor(np.round((x - X_MIN) / CELL, 9))
    column = np.floor(np.round((y - Y_MIN) / CELL, 9))
    return int(row), int(column)


def region_of(x: float, y: float) -> Region:
    """The region of a cube position in metres; cells are closed below and open above."""
    return cell_region(*cell_of(x, y))


def cells(region: Region) -> list[tuple[int, int]]:
    """The (row, column) of a region's cells, in reading order."""
    return [
        (row, column)
        for row in range(ROWS)
        for column in range(COLUMNS)
        if cell_region(row, column) is region
    ]


def sample(region: Region, rng: np.random.Generator) -> np.ndarray:
    """A cube position (x, y) in metres, uniform over a region of the table.

    Raises:
        ValueError: for `Region.OUTSIDE`, which has no area.
    """
    candidates = cells(region)
    if not candidates:
        raise ValueError("Region.OUTSIDE has no cells to sample; choose TRAIN, HELD_OUT or STRIP.")
    row, column = candidates[rng.integers(len(candidates))]
    return np.array([X_MIN, Y_MIN]) + CELL * (np.array([row, column]) + rng.uniform(size=2))


FIVE_POSITIONS: tuple[tuple[float, float], ...] = (
    (0.1925, -0.0375),
    (0.1425, -0.1375),
    (0.2175, -0.1375),
    (0.1425, 0.0625),
    (0.2175, 0.0625),
)
"""Centre and four around it, in demonstrated cells: the regime of LeRobot's guide, which asks for
ten demonstrations at each of five places."""

ONE_POSITION = FIVE_POSITIONS[:1]
"""The centre alone: the least that can be demonstrated."""
NINE_POSITIONS = (
    *FIVE_POSITIONS,
    (0.1425, -0.0375),
    (0.2175, -0.0375),
    (0.1925, -0.1375),
    (0.1925, 0.0625),
)
"""The five and the middles between the outer four, in demonstrated cells as well."""
