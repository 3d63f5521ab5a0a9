"""How far chunks are from the expert's: sums by scene, for ratios of sums over episodes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from actlens.kinematics import Arm
from actlens.retrieval.keys import RetrievalError
from actlens.statistics import Interval, pooled_ratio

ALL_JOINTS = "all joints"
"""Mean over joints of the error over the joint's spread in the demonstrations: no unit."""
TIP = "tip, mm"
"""Distance of the points between the jaws that the commands ask for."""


@dataclass(frozen=True)
class Yardstick:
    """What errors are measured in."""

    joints: tuple[str, ...]
    spread: Float[np.ndarray, " joint"]
    """Standard deviation of the demonstrated actions, dataset units."""
    arm: Arm | None = None
    """If it is known, errors are also in mm."""

    @classmethod
    def of(
        cls,
        actions: Float[np.ndarray, "scene chunk joint"],
        counted: Bool[np.ndarray, "scene chunk"],
        *,
        joints: tuple[str, ...] = (),
        arm: Arm | None = None,
    ) -> "Yardstick":
        """From the demonstrations' actions.

        Raises:
            RetrievalError: if no joint ever moves.
        """
        spread = actions[counted].std(0, dtype=np.float64)
        if not (spread > 0).any():
            raise RetrievalError("All demonstrated actions are alike; there is nothing to predict.")
        names = joints or tuple(f"joint_{i}" for i in range(actions.shape[-1]))
        return cls(names, spread, arm)

    @property
    def measures(self) -> tuple[str, ...]:
        """What `errors` measures, in order."""
        return (*self.joints, ALL_JOINTS, *([TIP] if self.arm else []))

    @property
    def unit(self) -> Float[np.ndarray, " joint"]:
        """What normalised actions are multiples of: the spread; 1 for a joint that never moves."""
        return np.where(self.spread > 0, self.spread, 1.0)

    def errors(
        self,
        answered: Float[np.ndarray, "scene chunk joint"],
        expert: Float[np.ndarray, "scene chunk joint"],
        counted: Bool[np.ndarray, "scene chunk"],
    ) -> "Errors":
        """Absolute errors by scene, over the positions that count."""
        difference = np.abs(answered - expert).astype(np.float64)
        parts = [difference, (difference / self.unit).mean(-1, keepdims=True)]
        if self.arm is not None:
            apart = self.arm.tip(answered) - self.arm.tip(expert)
            parts.append(1000 * np.linalg.norm(apart, axis=-1, keepdims=True))
        by_position = np.where(counted[..., None], np.concatenate(parts, -1), 0.0)
        return Errors(self.measures, by_position.sum(1).T, counted.sum(1))


@dataclass(frozen=True)
class Errors:
    """Sums over chunk positions, scene by scene."""

    measures: tuple[str, ...]
    sums: Float[np.ndarray, "measure scene"]
    n: Int[np.ndarray, " scene"]
    """Positions that count."""

    def mean(self, episodes: Int[np.ndarray, " scene"]) -> Interval:
        """Mean error by measure, with an interval by episode."""
        return pooled_ratio(self.sums, self.n.astype(float), clusters=episodes)

    def over(self, other: "Errors", episodes: Int[np.ndarray, " scene"]) -> Interval:
        """This error as a multiple of another on the same scenes, by measure."""
        return pooled_ratio(self.sums, other.sums, clusters=episodes)

    def of(self, measure: str) -> Float[np.ndarray, " scene"]:
        """The sums of one measure.

        Raises:
            RetrievalError: if it was not measured.
        """
        if measure not in self.measures:
            raise RetrievalError(
                f"{measure!r} was not measured; there is {', '.join(self.measures)}."
            )
        return self.sums[self.measures.index(measure)]
