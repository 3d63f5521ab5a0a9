"""How many cells a table of actions would need, against the neurons there are."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from actlens.retrieval.keys import RetrievalError


@dataclass(frozen=True)
class TableSize:
    """Cells of a table that answers every demonstrated action within a tolerance, joint by joint.

    Centres of cells that are chosen one after another cover everything (`cells`). Centres that are
    more than twice the tolerance apart cannot share a cell, whatever the table (`at_least`).
    """

    tolerance: float
    """Of every joint, in dataset units."""
    actions: int
    """That are to be answered."""
    cells: int
    at_least: int
    neurons: int

    @property
    def fits(self) -> bool | None:
        """Whether one neuron a cell suffices; None where that is between the two counts."""
        if self.cells <= self.neurons:
            return True
        return False if self.at_least > self.neurons else None


def table_size(actions: Float[np.ndarray, "action d"], tolerance: float, neurons: int) -> TableSize:
    """Count cells for actions, or for whole chunks as rows.

    Raises:
        RetrievalError: if the tolerance is negative, or an action is not finite.
    """
    if not tolerance >= 0:
        raise RetrievalError(f"A tolerance is zero or more, not {tolerance}.")
    if not np.isfinite(actions).all():
        raise RetrievalError("An action is not finite.")
    return TableSize(
        tolerance,
        len(actions),
        len(cover(actions, tolerance)),
        len(cover(actions, 2 * tolerance)),
        neurons,
    )


def cover(actions: Float[np.ndarray, "action d"], radius: float) -> list[int]:
    """Rows such that each action is within the radius of one of them in every coordinate.

    The first action that is not yet covered becomes the next centre, so that centres are farther
    apart than the radius (Gonzalez 1985 calls such a set a packing).
    """
    left, centres = np.arange(len(actions)), []
    while len(left):
        centres.append(int(left[0]))
        apart = np.abs(actions[left] - actions[left[0]]).max(1)
        left = left[apart > radius]
    return centres
