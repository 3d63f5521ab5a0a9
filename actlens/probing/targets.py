"""What a probe should read off an activation, by scene."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from actlens.config import STATE_KEY
from actlens.errors import SceneError
from actlens.scene import Scene
from actlens.scenes.labels import (
    QUARTER,
    common_labels,
    degrees_apart,
    places,
    quarter_turns,
)


@dataclass(frozen=True)
class Target:
    """A quantity of the world, perhaps of several dimensions that belong together."""

    name: str
    unit: str
    values: Float[np.ndarray, "scene dim"]
    period: float | None = None
    """Of an angle in degrees: `values` are then its cosine and sine, and errors are angles."""

    def error(self, predicted: Float[np.ndarray, "scene dim"]) -> Float[np.ndarray, " scene"]:
        """How far predictions are off, in the target's unit: a distance, or an angle."""
        if self.period is None:
            return np.linalg.norm(predicted - self.values, axis=1)
        return degrees_apart(predicted, self.values, self.period)


def targets_of(scenes: Sequence[Scene], joints: Sequence[str]) -> tuple[Target, ...]:
    """All that labels, states and frame numbers offer.

    Labels that end in `_x` and `_y` become a place in mm, those that end in `_yaw` (radians) an
    angle that a quarter turn leaves as it is, as it does a cube; other labels stay as they are.

    Args:
        joints: names of the state's dimensions.

    Raises:
        SceneError: if there is no scene.
    """
    if not scenes:
        raise SceneError("There is no scene to take targets from.")
    of = common_labels(scenes)
    found, used = [], set()
    for name, place in places(of):
        found.append(Target(f"{name} place", "mm", place))
        used |= {f"{name}_x", f"{name}_y"}
    for name in of:
        if name.endswith("_yaw"):
            turned = quarter_turns(of[name])
            found.append(Target(f"{name.removesuffix('_yaw')} yaw", "deg", turned, QUARTER))
            used.add(name)
    found += [Target(name, "", of[name][:, None]) for name in of if name not in used]
    if all(STATE_KEY in scene.observation for scene in scenes):
        state = np.stack([scene.observation[STATE_KEY].double().numpy() for scene in scenes])
        if state.shape[1] == len(joints):
            found += [Target(joint, "units", state[:, [i]]) for i, joint in enumerate(joints)]
    frame = np.array([[float(scene.frame)] for scene in scenes])
    return tuple(one for one in (*found, Target("frame", "frames", frame)) if _varies(one))


def _varies(target: Target) -> bool:
    return bool((target.values.std(0) > 1e-9).all())
