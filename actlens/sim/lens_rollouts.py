"""A chunk of actions carried out in the simulator from a recorded scene, without looking again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from actlens.config import STATE_KEY
from actlens.errors import SceneError
from actlens.scene import Scene
from actlens.sim.environment import CUBE_HALF, LIFTED, PickCube
from actlens.sim.kinematics import JOINTS
from actlens.sim.rollout import RolloutResult, rollout
from actlens.statistics import wilson

Chunk = Float[np.ndarray, "chunk joint"]
"""Joint targets in dataset units."""

_LABELS = ("cube_x", "cube_y", "cube_z", "cube_yaw")
_HELD = 0.005
"""Metres above its resting height from which the cube does not stand on the table any more."""


@dataclass(frozen=True, eq=False)
class Placed:
    """The world at a scene's moment: the arm at rest where it was, the cube where it stood."""

    arm: Float[np.ndarray, " joint"]
    """Degrees and gripper percent."""
    cube_xy: tuple[float, float]
    """Metres from the base."""
    cube_yaw: float
    """Radians."""


def placed(scene: Scene) -> Placed:
    """What the simulator needs to stand as a scene of its own recordings did.

    The recorded arm moved and this one is at rest, so in the middle of an episode the first steps
    differ by what the arm's momentum does.

    Raises:
        SceneError: if the scene is not one of the simulator's (an arm of six joints, the cube's
            pose as labels), or holds the cube in the air, where the simulator cannot put it.
    """
    state = scene.observation.get(STATE_KEY)
    missing = [label for label in _LABELS if label not in scene.labels]
    if state is None or state.shape != (len(JOINTS),) or missing:
        raise SceneError(
            f"Scene {scene.address} of {scene.source or 'unknown source'} cannot be put into the "
            f"simulator: that takes {STATE_KEY} of {len(JOINTS)} joints and the labels "
            f"{', '.join(_LABELS)}; missing: {', '.join(missing) or STATE_KEY}."
        )
    x, y, z, yaw = (float(scene.labels[label]) for label in _LABELS)
    if z > CUBE_HALF + _HELD:
        raise SceneError(
            f"In scene {scene.address} the cube is {1000 * (z - CUBE_HALF):.0f} mm above the "
            "table, and the simulator starts with it on the table: take an earlier frame."
        )
    return Placed(state.double().numpy(force=True), (x, y), yaw)


def carry_out(
    env: PickCube, where: Placed, chunk: Chunk, *, keep_frames: bool = False
) -> RolloutResult:
    """All of a chunk's actions one after the other, whatever happens on the way.

    Raises:
        SceneError: if the chunk has another number of joints, or holds no finite numbers.
    """
    chunk = np.asarray(chunk, dtype=np.float32)
    if chunk.ndim != 2 or chunk.shape[1] != len(JOINTS) or not np.isfinite(chunk).all():
        raise SceneError(
            f"The simulator's arm takes finite targets of {len(JOINTS)} joints, one row a step; "
            f"this chunk has the shape {chunk.shape}."
        )
    actions = iter(chunk)
    return rollout(
        env,
        lambda seen: next(actions),
        lambda: None,
        cube_xy=where.cube_xy,
        seed=0,
        steps=len(chunk),
        keep_frames=keep_frames,
        options={"arm": where.arm, "cube_yaw": where.cube_yaw},
    )


@dataclass(frozen=True)
class Outcome:
    """What came of a chunk that was carried out."""

    steps: int
    lifted: bool
    """Whether the cube was ever more than 4 cm above where it began."""
    raised_mm: float
    """How far at most."""
    grasped: bool
    """Whether both jaws ever touched the cube at once."""
    nearest_mm: float
    """Smallest distance between tip and cube, in space."""
    nearest_step: int
    end_mm: float
    """Distance between tip and cube after the last step."""

    @property
    def words(self) -> str:
        """For a caption."""
        if self.lifted:
            return f"lifted {self.raised_mm:.0f} mm"
        return f"{'grasped' if self.grasped else 'no grasp'}; nearest {self.nearest_mm:.0f} mm"


def outcome(result: RolloutResult) -> Outcome:
    """How near the tip came to the cube, and what became of that."""
    apart = 1000 * np.linalg.norm(result.tip - result.cube[:, :3], axis=1)
    raised = float((result.cube[:, 2] - result.cube[0, 2]).max())
    nearest = int(apart.argmin())
    return Outcome(
        steps=len(result.actions),
        lifted=raised > LIFTED,
        raised_mm=1000 * raised,
        grasped=bool(result.grasped.any()),
        nearest_mm=float(apart[nearest]),
        nearest_step=nearest,
        end_mm=float(apart[-1]),
    )


def outcome_table(scenes: Sequence[Scene], found: Sequence[Mapping[str, Outcome]]) -> pd.DataFrame:
    """One row for each scene and each chunk that was carried out from it."""
    return pd.DataFrame(
        [
            {"episode": scene.episode, "frame": scene.frame, "chunk": name} | vars(one)
            for scene, outcomes in zip(scenes, found, strict=True)
            for name, one in outcomes.items()
        ]
    )


def outcome_summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row a chunk: how often it lifted the cube, with Wilson's interval over scenes."""
    rows = []
    for name, part in table.groupby("chunk", sort=False):
        low, high = wilson(int(part.lifted.sum()), len(part))
        rows.append(
            {
                "chunk": name,
                "scenes": len(part),
                "lifted": part.lifted.mean(),
                "lifted_low": low,
                "lifted_high": high,
                "grasped": part.grasped.mean(),
                "nearest_mm": part.nearest_mm.median(),
                "end_mm": part.end_mm.median(),
            }
        )
    return pd.DataFrame(rows)
