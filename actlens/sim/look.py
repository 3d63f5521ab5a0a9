"""How the simulated world looks while nothing in it moves: the cube's colour and the light."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import mujoco

CUBE_RGB = (0.85, 0.10, 0.10)
"""The demonstrated cube's red."""


@dataclass(frozen=True)
class Look:
    """Colours and light; without arguments those of every demonstration.

    Raises:
        ValueError: on construction, if a number is not finite or leaves its range.
    """

    cube_rgb: tuple[float, float, float] = CUBE_RGB
    """Red, green and blue from 0 to 1."""
    brightness: float = 1.0
    """Factor of all light, the ambient one included; above 1 bright surfaces saturate."""
    light_turn: float = 0.0
    """Radians by which the lamp is turned about the vertical; other faces are then lit."""

    def __post_init__(self) -> None:
        in_range = (0 <= value <= 1 for value in self.cube_rgb)
        finite = np.isfinite([self.brightness, self.light_turn]).all()
        if len(self.cube_rgb) != 3 or not all(in_range) or not finite or self.brightness < 0:
            raise ValueError(
                f"{self} cannot be: cube_rgb takes three numbers in 0..1, brightness one of at "
                "least 0, light_turn radians."
            )

    @property
    def labels(self) -> dict[str, float]:
        """The numbers under the names that a scene's labels have."""
        red, green, blue = map(float, self.cube_rgb)
        return {
            "cube_red": red,
            "cube_green": green,
            "cube_blue": blue,
            "brightness": float(self.brightness),
            "light_turn": float(self.light_turn),
        }


AS_DEMONSTRATED = Look()


def painter(model: "mujoco.MjModel") -> Callable[[Look], None]:
    """A function that gives the model a look.

    It always starts from the lights that the model has now, never from the look before: nothing
    adds up. What MuJoCo derives from them (`mj_camlight`) is the caller's to renew.
    """
    headlight, colour = model.vis.headlight, model.mat_rgba[model.material("cube").id]
    ambient, diffuse = headlight.ambient.copy(), model.light_diffuse.copy()
    direction = model.light_dir.copy()

    def paint(look: Look) -> None:
        colour[:3] = look.cube_rgb
        headlight.ambient[:] = look.brightness * ambient
        model.light_diffuse[:] = look.brightness * diffuse
        cos, sin = np.cos(look.light_turn), np.sin(look.light_turn)
        model.light_dir[:] = direction @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])

    return paint
