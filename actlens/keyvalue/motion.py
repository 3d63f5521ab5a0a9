"""What a neuron does to the gripper: millimetres, and an arrow on a camera's picture."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.cameras import PinholeCamera, known_cameras
from actlens.config import ACTION_KEY
from actlens.kinematics import Arm, known_arm
from actlens.model.act import HookedACT


def arm_of(model: HookedACT) -> Arm | None:
    """The arm that a policy moves; None where it is not certain, as for any user's policy."""
    origin = "" if model.checkpoint is None else model.checkpoint.source
    return known_arm(model.config.joints, origin)


def gripper_shift(
    model: HookedACT,
    actions: Float[Tensor, "*batch joint"],
    effect: Float[Tensor, "*batch joint"],
    *,
    arm: Arm | None = None,
) -> Float[Tensor, "*batch 3"] | None:
    """By how many mm the point between the jaws moves if the actions move so; None without an arm.

    x forward, y left, z up. The positions that are commanded, as if the arm reached them; neither
    roll nor the jaws move that point, so an effect on these alone is none here.

    Args:
        actions: normalised, without the effect.
        effect: what is added to them, normalised units; broadcast against them.
        arm: the arm, if it is known better than by the checkpoint's origin.
    """
    arm = arm or arm_of(model)
    if arm is None:
        return None
    before, after = _tips(model, arm, actions, effect)
    return 1000 * (after - before)


@dataclass(frozen=True)
class Arrow:
    """A motion of the gripper on one camera's picture, pixels from its top left corner."""

    camera: str
    start: tuple[float, float]
    """Column and row of the gripper as the action commands it."""
    end: tuple[float, float]
    """Where it would be after `factor` times the motion."""
    factor: float
    """By how much the motion is exaggerated; to be stated beside the picture."""
    millimetres: float
    """Length of the motion itself."""


def arrows(
    model: HookedACT,
    action: Float[Tensor, " joint"],
    effect: Float[Tensor, " joint"],
    *,
    factor: float,
    arm: Arm | None = None,
) -> tuple[Arrow, ...] | None:
    """The motion that an effect makes, on the picture of every camera whose pose is known.

    None where the arm or no camera is known. A camera that the arrow's ends lie behind is left out.

    Args:
        action: normalised, without the effect, at one chunk position.
        effect: what is added to it, normalised units.
        factor: exaggerates the motion, a straight line in the world.
        arm: the arm, if it is known better than by the checkpoint's origin.
    """
    arm = arm or arm_of(model)
    cameras = known_cameras(model.config.cameras, arm)
    if arm is None or not cameras:
        return None
    before, after = _tips(model, arm, action, effect)
    ends = torch.stack([before, before + factor * (after - before)])
    length = 1000 * float((after - before).norm())
    drawn = (_arrow(camera, ends, factor, length) for camera in cameras)
    return tuple(arrow for arrow in drawn if arrow is not None)


def _arrow(
    camera: PinholeCamera, ends: Float[Tensor, "2 3"], factor: float, length: float
) -> Arrow | None:
    pixels = camera.project(ends)
    if not pixels.isfinite().all():
        return None
    (x0, y0), (x1, y1) = pixels.tolist()
    return Arrow(camera.name, (x0, y0), (x1, y1), factor, length)


def exaggeration(shifts: Float[Tensor, "*batch 3"], *, longest: float = 60.0) -> float:
    """A round factor (1, 2 or 5 times a power of ten) that draws motions visibly, for all alike.

    Args:
        shifts: the motions in mm.
        longest: how many mm the longest of them may become.
    """
    largest = float(shifts.norm(dim=-1).max())
    if not largest > 0:
        return 1.0
    wanted = longest / largest
    power = 10.0 ** math.floor(math.log10(wanted) + 1e-6)
    return max(step * power for step in (1, 2, 5) if step * power <= wanted * (1 + 1e-6))


def _tips(
    model: HookedACT, arm: Arm, actions: Tensor, effect: Tensor
) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch 3"]]:
    """Where the gripper is without and with the effect, metres, on the CPU."""
    place = lambda x: arm.tip(model.normalizer.unnormalize(ACTION_KEY, x)).cpu()
    return place(actions.double()), place(actions.double() + effect.double())
