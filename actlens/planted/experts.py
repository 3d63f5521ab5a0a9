"""Experts of the synthetic worlds: where the object is -> joint targets, step by step."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float

from actlens.kinematics import SO101_SIMULATED, Arm

JOINTS = SO101_SIMULATED.joints
HOME = np.array([0.0, -20.0, 30.0, 40.0, 0.0, 20.0])
"""Degrees (the gripper in percent): where every episode starts, whatever there is to see."""
N_JOINTS = len(HOME)


class Expert(Protocol):
    """A rule that generalises over the whole table."""

    def __call__(
        self, positions: Float[np.ndarray, "position 2"], n_steps: int
    ) -> Float[np.ndarray, "position step joint"]:
        """Joint targets for every step, degrees and percent; positions in metres."""
        ...


@dataclass(frozen=True)
class LinearExpert:
    """Every joint target is affine in the object's position."""

    seed: int = 0
    gain: float = 12.0
    """Degrees for one standard deviation of the position, roughly."""

    def __call__(
        self, positions: Float[np.ndarray, "position 2"], n_steps: int
    ) -> Float[np.ndarray, "position step joint"]:
        """From home straight to a pose that is linear in the position."""
        rng = np.random.default_rng(self.seed)
        slope = rng.normal(0, self.gain, (2, N_JOINTS))
        goal = HOME + rng.normal(0, 15, N_JOINTS) + (positions - [0.14, 0.0]) / 0.06 @ slope
        progress = np.minimum(1.0, np.arange(1, n_steps + 1) * 3 / n_steps)
        return HOME + progress[None, :, None] * (goal - HOME)[:, None]


@dataclass(frozen=True)
class ReachExpert:
    """Reach over the object, go down, close, lift: closed-form inverse kinematics, not linear."""

    arm: Arm = SO101_SIMULATED
    hover: float = 0.07
    """Metres above the table, as `grasp`."""
    grasp: float = 0.012

    def __call__(
        self, positions: Float[np.ndarray, "position 2"], n_steps: int
    ) -> Float[np.ndarray, "position step joint"]:
        """Straight lines in joint space between the poses at a third, two thirds, … of the way."""
        above = self.joints_for(positions, self.hover, gripper=60.0)
        down = self.joints_for(positions, self.grasp, gripper=60.0)
        closed = self.joints_for(positions, self.grasp, gripper=10.0)
        up = self.joints_for(positions, self.hover, gripper=10.0)
        home = np.broadcast_to(HOME, above.shape)
        poses = np.stack([home, above, down, closed, up], 1)
        knots = np.array([0.0, 1 / 3, 2 / 3, 0.8, 1.0])
        at = np.arange(1, n_steps + 1) / n_steps
        after = np.clip(np.searchsorted(knots, at - 1e-9), 1, len(knots) - 1)
        share = ((at - knots[after - 1]) / (knots[after] - knots[after - 1]))[None, :, None]
        return poses[:, after - 1] * (1 - share) + poses[:, after] * share

    def joints_for(
        self, positions: Float[np.ndarray, "position 2"], height: float, *, gripper: float
    ) -> Float[np.ndarray, "position joint"]:
        """Joints that put the tip there, the gripper straight down and parallel to the x axis.

        Raises:
            ValueError: if a position lies out of reach.
        """
        arm, (x, y) = self.arm, positions.T
        radius = np.hypot(x, y) - arm.shoulder_offset
        up = height + arm.wrist_to_tip - arm.shoulder_height
        reach = np.hypot(radius, up)
        cosine = (reach**2 - arm.upper_arm**2 - arm.forearm**2) / (2 * arm.upper_arm * arm.forearm)
        if (np.abs(cosine) > 1).any():
            worst = positions[np.abs(cosine).argmax()]
            raise ValueError(f"The arm cannot reach ({worst[0]:.3f}, {worst[1]:.3f}) m.")
        bend = np.arccos(cosine)
        lift = np.arctan2(radius, up) - np.arctan2(
            arm.forearm * np.sin(bend), arm.upper_arm + arm.forearm * np.cos(bend)
        )
        pan = np.arctan2(y, x)
        angles = np.stack([pan, lift, bend - np.pi / 2, np.pi - lift - bend, pan], -1)
        return np.column_stack([np.rad2deg(angles), np.full(len(x), gripper)])
