"""What the policies of the series are shown: how many demonstrations, and at how many places."""

from dataclasses import dataclass
from itertools import product

import numpy as np

from actlens.scenes.dataset import Dataset


@dataclass(frozen=True)
class Arm:
    """One dose: policies that are shown as many demonstrations at as many places."""

    demonstrations: int
    positions: int | None = None
    """Places where the cube stands; None where every demonstration has its own."""

    @property
    def name(self) -> str:
        """In folders and tables."""
        if self.positions is None:
            return f"demonstrations-{self.demonstrations}"
        return f"positions-{self.positions}"


ARMS = (
    Arm(100),
    Arm(50),
    Arm(5),
    Arm(50, 1),
    Arm(20),
    Arm(50, 5),
    Arm(10),
    Arm(50, 9),
)
"""Every dose, the ends of both curves first; fifty demonstrations that are all over the table are
the last of both."""


@dataclass(frozen=True)
class Run:
    """One policy of the series."""

    arm: Arm
    seed: int
    """Of its weights, its batches and the choice of its demonstrations."""

    @property
    def name(self) -> str:
        """Its folder's."""
        return f"{self.arm.name}-seed-{self.seed}"

    def episodes(self, dataset: Dataset) -> tuple[int, ...]:
        """Those it is shown. With the same seed, a smaller dose is a part of a larger one."""
        known = np.array([episode.index for episode in dataset.episodes])
        order = np.random.default_rng([self.seed, len(known)]).permutation(known)
        return tuple(sorted(order[: self.arm.demonstrations].tolist()))


def all_runs(seeds: int) -> tuple[Run, ...]:
    """Every arm of the first seed, then of the next: what is finished is a whole series."""
    return tuple(Run(arm, seed) for seed, arm in product(range(seeds), ARMS))
