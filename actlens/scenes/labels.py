"""What labels say of the world: places on the table, and headings of an object like a cube."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from actlens.scene import Scene

QUARTER = 90.0
"""Degrees that turn a cube into itself."""


def common_labels(scenes: Sequence[Scene]) -> dict[str, Float[np.ndarray, " scene"]]:
    """Labels that are known, and finite, in every scene."""
    known = dict.fromkeys(name for scene in scenes for name in scene.labels)
    of = {
        name: np.array([scene.labels.get(name, np.nan) for scene in scenes], np.float64)
        for name in known
    }
    return {name: values for name, values in of.items() if np.isfinite(values).all()}


def places(
    labels: Mapping[str, Float[np.ndarray, " scene"]],
) -> Iterator[tuple[str, Float[np.ndarray, "scene 2"]]]:
    """What is labelled by `NAME_x` and `NAME_y` in metres: its name, and x and y in mm."""
    for label, x in labels.items():
        name = label.removesuffix("_x")
        if label.endswith("_x") and f"{name}_y" in labels:
            yield name, 1000 * np.stack([x, labels[f"{name}_y"]], 1)


def quarter_turns(yaw: Float[np.ndarray, " scene"]) -> Float[np.ndarray, "scene 2"]:
    """Radians as cosine and sine of four times the angle, which a quarter turn leaves alone."""
    return np.stack([np.cos(4 * yaw), np.sin(4 * yaw)], 1)


def degrees_apart(
    predicted: Float[np.ndarray, "scene 2"],
    true: Float[np.ndarray, "scene 2"],
    period: float = QUARTER,
) -> Float[np.ndarray, " scene"]:
    """The angle between what cosines and sines say, of angles that come again after `period`."""
    turn = lambda x: np.arctan2(x[:, 1], x[:, 0])
    apart = np.angle(np.exp(1j * (turn(predicted) - turn(true))))
    return np.abs(apart) / (2 * np.pi) * period
