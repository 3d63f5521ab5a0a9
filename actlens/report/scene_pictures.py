"""What the cameras saw, as bytes to draw on."""

import numpy as np

from actlens.report.tiles import Picture
from actlens.scene import Scene


def scene_picture(scene: Scene, key: str) -> Picture:
    """What a camera saw in a scene, as bytes."""
    image = scene.observation[key]
    image = (image * 255).round() if image.dtype.is_floating_point else image
    return image.to("cpu").numpy().astype(np.uint8).transpose(1, 2, 0)
