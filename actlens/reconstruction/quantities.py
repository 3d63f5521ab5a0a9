"""What a scene consists of, in numbers: where the object is and how it lies, where the arm is."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Bool, Float

from actlens.config import STATE_KEY
from actlens.scene import Scene
from actlens.scenes.labels import common_labels, degrees_apart, places, quarter_turns


class Part(StrEnum):
    """Of a scene."""

    PLACE = "place"
    """Of an object on the table: x and y in mm."""
    HEADING = "heading"
    """Of an object: degrees, up to the quarter turns that leave a cube as it is."""
    ARM = "arm"
    """The joints but the gripper, in the dataset's units."""
    GRIPPER = "gripper"


@dataclass(frozen=True)
class Quantity:
    """A part of some scenes; headings are the cosine and sine of the angle times four."""

    name: str
    unit: str
    part: Part
    values: Float[np.ndarray, "scene dim"]

    def error(
        self, predicted: Float[np.ndarray, "some dim"], true: Float[np.ndarray, "some dim"]
    ) -> Float[np.ndarray, " some"]:
        """How far off, in the unit: a distance, an angle, or the mean over joints."""
        match self.part:
            case Part.PLACE:
                return np.linalg.norm(predicted - true, axis=1)
            case Part.HEADING:
                return degrees_apart(predicted, true)
            case Part.ARM | Part.GRIPPER:
                return np.abs(predicted - true).mean(1)

    def squared(
        self,
        predicted: Float[np.ndarray, "some dim"],
        true: Float[np.ndarray, "some dim"],
        fitted: Float[np.ndarray, "fitted dim"],
    ) -> Float[np.ndarray, " some"]:
        """Squared error; joints by their spread over the fitted scenes, so that all count alike."""
        scale = np.ones(true.shape[1])
        if self.part is Part.ARM:
            scale = np.maximum(fitted.std(0), 1e-9)
        return (((predicted - true) / scale) ** 2).sum(1)


def quantities_of(scenes: Sequence[Scene], joints: Sequence[str]) -> tuple[Quantity, ...]:
    """All that labels and states offer and that differs between the scenes.

    Labels that end in `_x` and `_y` (metres) are a place, those that end in `_yaw` (radians) a
    heading; a joint with `gripper` in its name is the gripper.

    Args:
        joints: names of the state's dimensions; without them all are the arm.
    """
    labels = common_labels(scenes)
    found = [Quantity(f"{name} place", "mm", Part.PLACE, place) for name, place in places(labels)]
    for name, values in labels.items():
        if name.endswith("_yaw"):
            stem = name.removesuffix("_yaw")
            found.append(Quantity(f"{stem} heading", "deg", Part.HEADING, quarter_turns(values)))
    if scenes and all(STATE_KEY in scene.observation for scene in scenes):
        state = np.stack([scene.observation[STATE_KEY].double().numpy() for scene in scenes])
        names = list(joints) if len(joints) == state.shape[1] else [""] * state.shape[1]
        grips = np.array(["gripper" in name for name in names])
        for part, own, name in (
            (Part.ARM, ~grips, "arm's joints"),
            (Part.GRIPPER, grips, "gripper"),
        ):
            # LeRobot's joints are degrees and percent; a state without names may be anything.
            unit = {Part.ARM: "deg", Part.GRIPPER: "%"}[part] if any(names) else "units"
            if (moving := own & _varies(state)).any():
                found.append(Quantity(name, unit, part, state[:, moving]))
    return tuple(one for one in found if _varies(one.values).all())


def _varies(values: Float[np.ndarray, "scene dim"]) -> Bool[np.ndarray, " dim"]:
    """Rounding and the play of a closed gripper are no variation."""
    return values.std(0) > 1e-3 * np.abs(values).max(0, initial=1e-6)
