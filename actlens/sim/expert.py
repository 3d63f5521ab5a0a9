"""The scripted expert: hover above the cube, descend, close, lift, in 75 steps of 40 ms."""

from dataclasses import dataclass

import numpy as np

from actlens.sim.kinematics import joints_for_tip

HOVER_HEIGHT = 0.065
GRASP_HEIGHT = 0.016
LIFT_HEIGHT = 0.080
"""Heights of the tip above the table in metres."""

OPEN, CLOSED = 70.0, 15.0
"""Gripper targets in percent; the cube stops the jaws near 27, so 15 presses on it."""


@dataclass(frozen=True)
class Phase:
    """A stretch of the plan: steps `first` to `last`, both included."""

    name: str
    first: int
    last: int

    @property
    def steps(self) -> int:
        """How many steps the phase lasts."""
        return self.last - self.first + 1


PHASES = (
    Phase("hover", 0, 24),
    Phase("descend", 25, 39),
    Phase("settle", 40, 42),
    Phase("close", 43, 52),
    Phase("lift", 53, 74),
)
STEPS = 75


def plan(start: np.ndarray, cube_xy: np.ndarray, cube_yaw: float) -> np.ndarray:
    """The expert's joint targets for a whole episode, `(75, 6)`, in degrees and gripper percent.

    Open loop: a smooth path through the joint positions that the inverse kinematics gives for each
    phase's end. It grasps where the cube was at the start and does not notice if it moves.

    Args:
        start: joint positions at the start, `(6,)`, in degrees and gripper percent.
        cube_xy: the cube's position in metres from the base.
        cube_yaw: the cube's rotation about the vertical in radians; the jaws align with it.
    """
    x, y = (float(value) for value in cube_xy)
    hover = joints_for_tip(x, y, HOVER_HEIGHT, yaw=cube_yaw, gripper=OPEN)
    above = joints_for_tip(x, y, GRASP_HEIGHT, yaw=cube_yaw, gripper=OPEN)
    grasp = joints_for_tip(x, y, GRASP_HEIGHT, yaw=cube_yaw, gripper=CLOSED)
    lifted = joints_for_tip(x, y, LIFT_HEIGHT, yaw=cube_yaw, gripper=CLOSED)
    targets = np.empty((STEPS, 6), dtype=np.float32)
    here = np.asarray(start, dtype=np.float64)
    for phase, goal in zip(PHASES, (hover, above, above, grasp, lifted), strict=True):
        share = np.arange(1, phase.steps + 1)[:, None] / phase.steps
        targets[phase.first : phase.last + 1] = here + (goal - here) * _smooth_step(share)
        here = goal
    return targets


def expert_chunk(
    start: np.ndarray, cube_xy: np.ndarray, cube_yaw: float, *, first: int = 0, size: int
) -> np.ndarray:
    """What the expert would do in a scene: `size` joint targets from step `first` on, `(size, 6)`.

    Args:
        start: joint positions at the start of the episode, `(6,)`, not at step `first`.
        cube_xy: the cube's position in metres at the start.
        cube_yaw: the cube's rotation about the vertical in radians at the start.
        first: step of the plan at which the chunk begins; past the end, the last target repeats.
        size: length of the chunk in steps.
    """
    steps = np.minimum(np.arange(first, first + size), STEPS - 1)
    return plan(start, cube_xy, cube_yaw)[steps]


def _smooth_step(share: np.ndarray) -> np.ndarray:
    return share * share * (3.0 - 2.0 * share)
