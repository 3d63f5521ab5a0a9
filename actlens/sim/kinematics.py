"""The arm's joints, their units, and the closed-form inverse kinematics of a downward gripper."""

import numpy as np

from actlens.kinematics import SO101_SIMULATED

JOINTS = SO101_SIMULATED.joints
"""LeRobot's names of an SO-101's joints, in the order of every state and action."""

JOINT_LOW = np.rad2deg([-1.92, -1.75, -1.70, -1.75, -2.79, 0.0]).astype(np.float32)
JOINT_HIGH = np.rad2deg([1.92, 1.75, 1.70, 1.75, 2.79, 0.0]).astype(np.float32)
JOINT_HIGH[5] = 100.0
"""Limits of the joint targets: degrees; the gripper from 0 (closed) to 100 (open)."""

GRIPPER_CLOSED, GRIPPER_OPEN = -0.40, 1.10
"""Angles of the moving jaw in radians at gripper positions 0 and 100."""

SHOULDER_OFFSET = SO101_SIMULATED.shoulder_offset
SHOULDER_HEIGHT = SO101_SIMULATED.shoulder_height
UPPER_ARM, FOREARM = SO101_SIMULATED.upper_arm, SO101_SIMULATED.forearm
WRIST_TO_TIP = SO101_SIMULATED.wrist_to_tip


def to_radians(joints: np.ndarray) -> np.ndarray:
    """Joint positions in degrees and gripper percent as MuJoCo's radians, `(..., 6)`."""
    joints = np.asarray(joints, dtype=np.float64)
    jaw = GRIPPER_CLOSED + joints[..., 5:] / 100.0 * (GRIPPER_OPEN - GRIPPER_CLOSED)
    return np.concatenate([np.deg2rad(joints[..., :5]), jaw], axis=-1)


def to_degrees(angles: np.ndarray) -> np.ndarray:
    """MuJoCo's radians as degrees and gripper percent, `(..., 6)`; inverts `to_radians`."""
    angles = np.asarray(angles, dtype=np.float64)
    opening = (angles[..., 5:] - GRIPPER_CLOSED) / (GRIPPER_OPEN - GRIPPER_CLOSED) * 100.0
    return np.concatenate([np.rad2deg(angles[..., :5]), opening], axis=-1)


def reach(x: float, y: float, z: float) -> float:
    """Metres from the shoulder's lift axis to the wrist when the gripper points straight down."""
    radius = np.hypot(x, y) - SHOULDER_OFFSET
    return float(np.hypot(radius, z + WRIST_TO_TIP - SHOULDER_HEIGHT))


def joints_for_tip(x: float, y: float, z: float, *, yaw: float, gripper: float) -> np.ndarray:
    """Joint positions, `(6,)`, that put the tip at a point with the gripper straight down.

    Args:
        x: forward from the base, in metres, as `y` (left) and `z` (up from the table).
        yaw: heading of the gripper about the vertical, in radians; the jaws close across it.
        gripper: opening from 0 (closed) to 100 (open).

    Raises:
        ValueError: if the point lies beyond the stretched arm, or inside its folded reach.
    """
    radius = np.hypot(x, y) - SHOULDER_OFFSET
    height = z + WRIST_TO_TIP - SHOULDER_HEIGHT
    distance = np.hypot(radius, height)
    cosine = (distance**2 - UPPER_ARM**2 - FOREARM**2) / (2 * UPPER_ARM * FOREARM)
    if not -1.0 <= cosine <= 1.0:
        raise ValueError(
            f"The tip cannot reach ({x:.3f}, {y:.3f}, {z:.3f}) m pointing down: the wrist would be "
            f"{distance:.3f} m from the shoulder, which reaches {UPPER_ARM + FOREARM:.3f} m."
        )
    bend = np.arccos(cosine)
    lift = np.arctan2(radius, height) - np.arctan2(
        FOREARM * np.sin(bend), UPPER_ARM + FOREARM * np.cos(bend)
    )
    pan = np.arctan2(y, x)
    # With the gripper down, its roll axis is the downward vertical: heading = pan - roll.
    angles = np.array([pan, lift, bend - np.pi / 2, np.pi - lift - bend, pan - yaw])
    return np.append(np.rad2deg(angles), gripper)
