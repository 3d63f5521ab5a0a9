"""Forward kinematics: where a known arm's gripper is, from its joint positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Arm:
    """An arm laid out as an SO-100's or SO-101's, with its link lengths in metres.

    The pan axis is vertical; lift, elbow and wrist flex turn in the vertical plane that pan heads;
    the roll axis runs through the tip, so that neither roll nor the jaws move it. All joints at
    zero: upper arm upright, forearm and gripper level. Joints are in degrees.
    """

    name: str
    """LeRobot's `robot_type`, or another name of its own."""
    joints: tuple[str, ...]
    """Names of the six joints, in the order of states and actions."""
    shoulder_offset: float
    """From the pan axis to the lift axis, outwards."""
    shoulder_height: float
    """From the table to the lift axis."""
    upper_arm: float
    forearm: float
    wrist_to_tip: float
    """From the wrist's flex axis to the point between the jaws."""

    @overload
    def tip(self, joints: Float[Tensor, "*batch joint"]) -> Float[Tensor, "*batch 3"]: ...
    @overload
    def tip(self, joints: Float[np.ndarray, "*batch joint"]) -> Float[np.ndarray, "*batch 3"]: ...
    def tip(
        self, joints: Float[Tensor, "*batch joint"] | Float[np.ndarray, "*batch joint"]
    ) -> Float[Tensor, "*batch 3"] | Float[np.ndarray, "*batch 3"]:
        """The point between the jaws, in metres: x forward, y left, z up from the table; float64.

        Args:
            joints: positions in degrees (the gripper's in percent), in the order of `self.joints`.

        Raises:
            ValueError: if the last axis does not hold one number for each joint.
        """
        if joints.shape[-1] != len(self.joints):
            raise ValueError(
                f"{self.name} has {len(self.joints)} joints ({', '.join(self.joints)}); the "
                f"positions have shape {tuple(joints.shape)}."
            )
        if not isinstance(joints, Tensor):
            return self.tip(torch.from_numpy(np.array(joints, dtype=np.float64))).numpy()
        pan, lift, elbow, flex, *_ = torch.deg2rad(joints.double()).unbind(-1)
        forearm = lift + elbow + torch.pi / 2  # angles from the vertical
        gripper = forearm + flex
        radius = (
            self.shoulder_offset
            + self.upper_arm * lift.sin()
            + self.forearm * forearm.sin()
            + self.wrist_to_tip * gripper.sin()
        )
        height = (
            self.shoulder_height
            + self.upper_arm * lift.cos()
            + self.forearm * forearm.cos()
            + self.wrist_to_tip * gripper.cos()
        )
        return torch.stack([radius * pan.cos(), radius * pan.sin(), height], -1)


SO101_SIMULATED = Arm(
    name="so101_simulated",
    joints=(
        "shoulder_pan.pos",
        "shoulder_lift.pos",
        "elbow_flex.pos",
        "wrist_flex.pos",
        "wrist_roll.pos",
        "gripper.pos",
    ),
    shoulder_offset=0.03,
    shoulder_height=0.115,
    upper_arm=0.12,
    forearm=0.14,
    wrist_to_tip=0.113,
)
"""The simulator's arm, an SO-101 in layout and joint names but not in its link lengths."""

_TRAINED_ON_IT = ("bundled:so101-pick-cube", "bundled:so101-pick-cube-5pos")


def known_arm(joints: Sequence[str], origin: str) -> Arm | None:
    """The arm whose joints these are; None if that is not certain.

    Joint names do not tell an arm: a real SO-101 has the simulated one's, and other links.

    Args:
        joints: names of the action's dimensions.
        origin: a dataset's `robot_type`, or a checkpoint's `source` if it is a bundled policy's.
    """
    arm = SO101_SIMULATED
    known = origin == arm.name or origin in _TRAINED_ON_IT
    return arm if known and tuple(joints) == arm.joints else None
