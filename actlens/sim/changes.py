"""What a counterfactual changes: one thing in the simulated world, or in what one camera shows.

A change takes two worlds that differ in everything and says which two values its one thing takes.
Put into each of the worlds in turn they make a pair and its unrelated donors.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

import numpy as np

from actlens.config import IMAGE_PREFIX, STATE_KEY
from actlens.interventions.corruptions import Blackout, Corruption, Occlusion
from actlens.scenes.alignment import Differs
from actlens.sim.environment import CAMERAS, YAW_RANGE, PickCube
from actlens.sim.look import AS_DEMONSTRATED, Look

_PICTURES = frozenset(f"{IMAGE_PREFIX}{camera}" for camera in CAMERAS)


class SimulatedCamera(StrEnum):
    """The simulator's cameras."""

    TOP = "top"
    LATERAL = "lateral"


@dataclass(frozen=True, eq=False)
class World:
    """Everything about the start of an episode."""

    arm: np.ndarray
    """Six joint positions, degrees and gripper percent."""
    cube_xy: np.ndarray
    """Metres from the base."""
    cube_yaw: float
    """Radians."""
    look: Look = AS_DEMONSTRATED
    shown_at: tuple[str, np.ndarray] | None = None
    """A camera that shows the cube somewhere else, and where."""
    corruptions: tuple[Corruption, ...] = ()
    """Of what the cameras show."""


Setting = Mapping[str, Any]
"""Fields of a `World` and the values they take."""


@dataclass(frozen=True)
class Change(ABC):
    """One thing that differs between the two scenes of a pair."""

    differs_in: ClassVar[str]
    """As reports say it."""

    @property
    @abstractmethod
    def differs(self) -> Differs:
        """What of the scenes may and must differ."""

    @abstractmethod
    def settings(
        self, env: PickCube, worlds: tuple[World, World], rng: np.random.Generator
    ) -> tuple[Setting, Setting]:
        """The clean and the corrupt value.

        Args:
            env: at the start of the first world; to look at.
            worlds: the pair's world, and its donors'; they differ in arm, cube position, heading.
            rng: for what has to be drawn beside them.
        """


@dataclass(frozen=True)
class MovedCube(Change):
    """The cube stands elsewhere on the table."""

    differs_in = "the cube's position"

    @property
    def differs(self) -> Differs:
        """Both pictures, the position, and what the expert would do."""
        return Differs(_PICTURES, frozenset({"cube_x", "cube_y"}), action=True)

    def settings(
        self, env: PickCube, worlds: tuple[World, World], rng: np.random.Generator
    ) -> tuple[Setting, Setting]:
        """The positions of the two worlds."""
        here, there = worlds
        return {"cube_xy": here.cube_xy}, {"cube_xy": there.cube_xy}


@dataclass(frozen=True)
class TurnedCube(Change):
    """The cube stands at the same place under another heading."""

    least_turn: float = 0.25
    """Radians; headings lie within 0.25 of the x axis on either side."""
    differs_in = "the cube's heading"

    def __post_init__(self) -> None:
        if not 0 < self.least_turn < 2 * YAW_RANGE:
            raise ValueError(f"{self}: least_turn lies between 0 and {2 * YAW_RANGE} radians.")

    @property
    def differs(self) -> Differs:
        """Both pictures, the heading, and what the expert would do."""
        return Differs(_PICTURES, frozenset({"cube_yaw"}), action=True)

    def settings(
        self, env: PickCube, worlds: tuple[World, World], rng: np.random.Generator
    ) -> tuple[Setting, Setting]:
        """Two headings, uniform over all that are far enough apart."""
        low = high = 0.0
        while abs(high - low) < self.least_turn:
            low, high = rng.uniform(-YAW_RANGE, YAW_RANGE, 2)
        return {"cube_yaw": low}, {"cube_yaw": high}


@dataclass(frozen=True)
class ChangedLook(Change):
    """The world looks otherwise; nothing in it stands elsewhere, so the expert does not care."""

    @property
    @abstractmethod
    def look(self) -> Look:
        """The corrupt scene's; the clean one's is that of the demonstrations."""

    @property
    def differs(self) -> Differs:
        """Both pictures, and the labels that tell the two looks apart."""
        usual = AS_DEMONSTRATED.labels
        changed = {name for name, value in self.look.labels.items() if value != usual[name]}
        return Differs(_PICTURES, frozenset(changed))

    def settings(
        self, env: PickCube, worlds: tuple[World, World], rng: np.random.Generator
    ) -> tuple[Setting, Setting]:
        """The demonstrated look, and the other."""
        return {"look": AS_DEMONSTRATED}, {"look": self.look}


@dataclass(frozen=True)
class RecolouredCube(ChangedLook):
    """The cube has another colour."""

    rgb: tuple[float, float, float] = (0.10, 0.60, 0.15)
    """Red, green and blue from 0 to 1."""
    differs_in = "the cube's colour"

    @property
    def look(self) -> Look:
        """The colour."""
        return Look(cube_rgb=self.rgb)


@dataclass(frozen=True)
class LightLevel(ChangedLook):
    """All light is weaker or stronger."""

    brightness: float = 0.5
    """Factor of all light."""
    differs_in = "the brightness of the light"

    @property
    def look(self) -> Look:
        """The brightness."""
        return Look(brightness=self.brightness)


@dataclass(frozen=True)
class LightDirection(ChangedLook):
    """The lamp stands elsewhere about the table, as far and as high."""

    turn: float = 2.0
    """Radians about the vertical."""
    differs_in = "the direction of the light"

    @property
    def look(self) -> Look:
        """The direction."""
        return Look(light_turn=self.turn)


@dataclass(frozen=True)
class MovedArm(Change):
    """The arm stands in another pose: in what is seen and in what is felt."""

    differs_in = "the arm's pose"

    @property
    def differs(self) -> Differs:
        """Both pictures, the state, and the way that the expert would take."""
        return Differs(_PICTURES | {STATE_KEY}, action=True)

    def settings(
        self, env: PickCube, worlds: tuple[World, World], rng: np.random.Generator
    ) -> tuple[Setting, Setting]:
        """The poses of the two worlds: a usual one and an unusual one."""
        here, there = worlds
        return {"arm": here.arm}, {"arm": there.arm}


@dataclass(frozen=True)
class ChangedCamera(Change):
    """One camera shows something else; the world, the other camera and the state are the same."""

    camera: SimulatedCamera = SimulatedCamera.TOP

    @property
    def differs(self) -> Differs:
        """One picture."""
        return Differs(frozenset({f"{IMAGE_PREFIX}{self.camera.value}"}))


@dataclass(frozen=True)
class MovedCubeInOneCamera(ChangedCamera):
    """One camera shows the cube elsewhere, the other where it stands: which does the policy trust?

    The corrupt scene contradicts itself, which no demonstration does.
    """

    differs_in = "where one camera shows the cube"

    def settings(
        self, env: PickCube, worlds: tuple[World, World], rng: np.random.Generator
    ) -> tuple[Setting, Setting]:
        """The positions of the two worlds, the first of which is also that of the cube."""
        here, there = ((self.camera.value, world.cube_xy) for world in worlds)
        return {"shown_at": here}, {"shown_at": there}


@dataclass(frozen=True)
class OccludedCamera(ChangedCamera):
    """A grey card hides the cube from one camera; nothing else is seen less."""

    margin: float = 0.5
    """How far the card reaches over the cube on every side, in cube widths."""
    differs_in = "what a card hides from one camera"

    def settings(
        self, env: PickCube, worlds: tuple[World, World], rng: np.random.Generator
    ) -> tuple[Setting, Setting]:
        """No card, and a card at the cube of the first world (elsewhere than the donors' cube)."""
        top, bottom, left, right = env.cube_outline(self.camera.value)
        card = Occlusion(
            _stretched(top, bottom, self.margin),
            _stretched(left, right, self.margin),
            cameras=(self.camera.value,),
        )
        return {"corruptions": ()}, {"corruptions": (card,)}


@dataclass(frozen=True)
class BlackedOutCamera(ChangedCamera):
    """One camera shows nothing."""

    differs_in = "whether one camera shows anything"

    def settings(
        self, env: PickCube, worlds: tuple[World, World], rng: np.random.Generator
    ) -> tuple[Setting, Setting]:
        """With the camera and without."""
        return {"corruptions": ()}, {"corruptions": (Blackout(cameras=(self.camera.value,)),)}


AnyChange = (
    MovedCube
    | TurnedCube
    | RecolouredCube
    | LightLevel
    | LightDirection
    | MovedArm
    | MovedCubeInOneCamera
    | OccludedCamera
    | BlackedOutCamera
)


def _stretched(low: float, high: float, margin: float) -> tuple[float, float]:
    """An interval made longer on both sides, within 0..1."""
    more = margin * (high - low)
    return max(0.0, low - more), min(1.0, high + more)
