"""Pinhole cameras: where a point of the world is in a known camera's picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.config import Camera
from actlens.kinematics import SO101_SIMULATED, Arm

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class PinholeCamera:
    """A camera without distortion, with square pixels and its centre in the picture's middle.

    In the arm's coordinates, metres: x forward, y left, z up from the table.
    """

    name: str
    position: Vector
    right: Vector
    """What points to the right in the picture."""
    up: Vector
    """What points upwards in the picture, perpendicular to `right` or made so."""
    fovy: float
    """Vertical field of view in degrees."""
    height: int
    width: int

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return self.height / 2 / math.tan(math.radians(self.fovy / 2))

    @property
    def axes(self) -> Float[Tensor, "3 3"]:
        """Unit vectors to the right, upwards and towards the viewer, one a row, float64."""
        right, up = (torch.tensor(v, dtype=torch.float64) for v in (self.right, self.up))
        right = right / right.norm()
        up = up - (up @ right) * right
        up = up / up.norm()
        return torch.stack([right, up, torch.linalg.cross(right, up)])

    def project(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 2"]:
        """Column and row in pixels from the picture's top left corner, float64.

        They may lie outside of the picture; NaN for points that are not in front of the camera.
        """
        centre = torch.tensor(self.position, dtype=torch.float64)
        right, up, back = ((points.double().cpu() - centre) @ self.axes.T).unbind(-1)
        half, focal = self.height / 2, self.focal
        depth = torch.where(back < 0, -back, torch.nan)
        return torch.stack(
            [self.width / 2 + focal * right / depth, half - focal * up / depth], dim=-1
        )

    def at_height(
        self, pixels: Float[Tensor, "*batch 2"], height: float
    ) -> Float[Tensor, "*batch 3"]:
        """The points at a height above the table, metres, that are seen at some pixels; float64.

        NaN where the line of sight does not meet that height in front of the camera.
        """
        column, row = pixels.double().cpu().unbind(-1)
        right, up = (column - self.width / 2) / self.focal, (self.height / 2 - row) / self.focal
        rays = torch.stack([right, up, -torch.ones_like(up)], -1) @ self.axes
        centre = torch.tensor(self.position, dtype=torch.float64)
        distance = (height - centre[2]) / rays[..., 2]
        distance = torch.where(distance > 0, distance, torch.nan)
        return centre + distance[..., None] * rays

    def shows(self, pixel: Float[Tensor, " 2"]) -> bool:
        """Whether a projected point lies in the picture."""
        column, row = pixel.tolist()
        return 0 <= column < self.width and 0 <= row < self.height


_SIMULATED: dict[str, tuple[Vector, Vector, Vector, float]] = {
    "top": ((0.155, 0.0, 0.60), (0.0, -1.0, 0.0), (1.0, 0.0, 0.0), 38.0),
    "lateral": ((0.15, -0.50, 0.26), (1.0, 0.0, 0.0), (0.0, 0.342, 0.940), 41.0),
}
"""Position, right, up and field of view of the simulator's cameras."""


def known_cameras(cameras: Sequence[Camera], arm: Arm | None) -> tuple[PinholeCamera, ...]:
    """Those of a policy's cameras whose poses are known: the simulator's, and nobody else's.

    A camera's name tells nothing: every robot has a `top` camera somewhere else.

    Args:
        arm: whose the cameras look at (`known_arm`).
    """
    if arm is not SO101_SIMULATED:
        return ()
    return tuple(
        PinholeCamera(camera.name, *_SIMULATED[camera.name], camera.height, camera.width)
        for camera in cameras
        if camera.name in _SIMULATED
    )
