"""What interventions did, and proof that they were made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.hooks import Receipt
from actlens.interventions.intervention import Edit
from actlens.interventions.scene_run import SceneRun


class HasEdits(Protocol):
    """An intervention or a path."""

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What is edited."""
        ...


@dataclass(frozen=True)
class Effects:
    """What each of several interventions did, in the order in which they were given."""

    actions: Float[Tensor, "intervention chunk joint"]
    """Normalised action chunks."""
    changed: Int[np.ndarray, " intervention"]
    """Elements that differ from the run's own at the edited parts."""
    site_change: Float[np.ndarray, " intervention"]
    """Largest absolute change at the edited parts."""
    output_change: Float[np.ndarray, " intervention"]
    """Largest absolute change of the normalised actions."""
    left_out: Float[np.ndarray, " intervention"]
    """Norm of the relative movements of tokens that a tolerance left out; 0 where exact."""

    def receipts(self, interventions: Sequence[HasEdits]) -> tuple[Receipt, ...]:
        """One per intervention (or path); every edit is made exactly once."""
        return tuple(
            Receipt(str(given), len(given.edits), int(changed), float(site), float(output))
            for given, changed, site, output in zip(
                interventions, self.changed, self.site_change, self.output_change, strict=True
            )
        )


class Tally:
    """Receipts while they are being counted."""

    def __init__(self, n: int):
        self.changed = np.zeros(n, dtype=np.int64)
        self.site_change = np.zeros(n)
        self.squares_left_out = np.zeros(n)

    def neglect(self, numbers: Sequence[int], squares: Float[Tensor, " intervention"]) -> None:
        """Note what a tolerance left out of one layer."""
        self.squares_left_out[numbers] += squares.numpy(force=True)

    def record(self, numbers: Sequence[int], before: Tensor, after: Tensor) -> None:
        """Count what edits changed, one batch row per intervention.

        Infinities and NaNs that stayed are no change.
        """
        different = (after != before) & ~((before != before) & (after != after))
        change = torch.where(different, (after - before).abs(), 0).reshape(len(numbers), -1).amax(1)
        self.changed[numbers] += different.reshape(len(numbers), -1).sum(1).numpy(force=True)
        known = self.site_change[numbers]
        self.site_change[numbers] = np.maximum(known, change.numpy(force=True))

    def effects(
        self, actions: Float[Tensor, "intervention chunk joint"], base: SceneRun
    ) -> Effects:
        """The counts so far with what came of the edits."""
        difference = (actions - base.actions).abs().flatten(1).amax(1)
        return Effects(
            actions,
            self.changed,
            self.site_change,
            difference.numpy(force=True),
            np.sqrt(self.squares_left_out),
        )
