"""Closed-loop episodes of any policy, and how close its gripper came to the cube."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from actlens.sim.environment import PickCube
from actlens.sim.kinematics import JOINTS

_GRIPPER = JOINTS.index("gripper.pos")
HALF_CLOSED = 50.0
"""Gripper percent below which an open gripper counts as closing; the jaw is still 8 mm off."""


def as_observation(seen: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The environment's observation in LeRobot's form: images channel first, memory of its own."""
    return {
        key: torch.from_numpy((value.transpose(2, 0, 1) if value.ndim == 3 else value).copy())
        for key, value in seen.items()
    }


@dataclass(frozen=True, eq=False)
class RolloutResult:
    """One closed-loop episode. Arrays over time hold the start and the state after each step."""

    success: bool
    """Whether the cube was more than 4 cm up after the last step."""
    tip_error_mm: float
    """Horizontal distance from tip to cube at `closing_step`, in millimetres. It misleads where the
    gripper never closed: then it is taken at the lowest point of the tip."""
    closing_step: int
    """When the open gripper closed past half, else when the tip was lowest; index into the
    arrays over time."""
    closed: bool
    """Whether the gripper closed at all."""
    states: np.ndarray
    """Joint positions, float32 `(steps + 1, 6)`, degrees and gripper percent."""
    actions: np.ndarray
    """The policy's joint targets, float32 `(steps, 6)`."""
    tip: np.ndarray
    """The point between the jaws, `(steps + 1, 3)`, metres."""
    cube: np.ndarray
    """The cube's x, y, z in metres and yaw in radians, `(steps + 1, 4)`."""
    grasped: np.ndarray
    """Whether both jaws touch the cube, bool `(steps + 1,)`."""
    frames: np.ndarray | None
    """Both cameras side by side, uint8 `(steps + 1, height, 2 * width, 3)`, if asked for."""


def rollout(
    env: PickCube,
    select_action: Callable[[dict[str, np.ndarray]], np.ndarray],
    reset: Callable[[], None],
    *,
    cube_xy: np.ndarray | tuple[float, float],
    seed: int,
    steps: int = 90,
    keep_frames: bool = False,
    options: Mapping[str, Any] | None = None,
) -> RolloutResult:
    """Plays one episode of a policy from the given start.

    Args:
        env: the environment; with pictures if the policy looks at them.
        select_action: an observation of `env` to six joint targets, degrees and gripper percent.
        reset: called once before the first action, for policies that keep a queue of actions.
        cube_xy: where the cube starts, in metres from the base.
        seed: of the arm's start and the cube's heading.
        steps: actions to execute, 40 ms each; a demonstration has 75.
        keep_frames: whether to keep the pictures for a film.
        options: what else `PickCube.reset` shall not draw from the seed: `arm`, `cube_yaw`, `look`.
    """
    placed = {**(options or {}), "cube_xy": np.asarray(cube_xy)}
    observation, facts = env.reset(seed=seed, options=placed)
    reset()
    observations, world, actions = [observation], [facts], []
    for _ in range(steps):
        action = np.asarray(select_action(observation), dtype=np.float32)
        observation, _, _, _, facts = env.step(action)
        observations.append(observation if keep_frames else _without_pictures(observation))
        world.append(facts)
        actions.append(action)
    states = np.stack([seen["observation.state"] for seen in observations])
    tip = np.stack([facts["tip"] for facts in world])
    cube = np.stack([facts["cube"] for facts in world])
    closing = _closing_step(states[:, _GRIPPER])
    step = int(tip[:, 2].argmin()) if closing is None else closing
    return RolloutResult(
        success=world[-1]["success"],
        tip_error_mm=float(1000 * np.linalg.norm(tip[step, :2] - cube[step, :2])),
        closing_step=step,
        closed=closing is not None,
        states=states,
        actions=np.stack(actions),
        tip=tip,
        cube=cube,
        grasped=np.array([facts["is_grasped"] for facts in world]),
        frames=_side_by_side(observations) if keep_frames else None,
    )


def _without_pictures(observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"observation.state": observation["observation.state"]}


def _closing_step(gripper: np.ndarray) -> int | None:
    closing = np.flatnonzero((gripper[:-1] > HALF_CLOSED) & (gripper[1:] <= HALF_CLOSED))
    return int(closing[0]) + 1 if len(closing) else None


def _side_by_side(observations: list[dict[str, np.ndarray]]) -> np.ndarray:
    cameras = [key for key in observations[0] if key.startswith("observation.images.")]
    if not cameras:
        raise ValueError("keep_frames needs an environment with pictures: PickCube(render=True).")
    return np.stack(
        [np.concatenate([seen[camera] for camera in cameras], axis=1) for seen in observations]
    )
