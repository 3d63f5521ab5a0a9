"""`PickCube`: a simulated SO-101-like arm, a red cube, two cameras, in Gymnasium's interface."""

import weakref
from importlib import resources
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np

from actlens.sim import graphics
from actlens.sim.kinematics import JOINT_HIGH, JOINT_LOW, JOINTS, to_degrees, to_radians
from actlens.sim.look import AS_DEMONSTRATED, Look, painter
from actlens.sim.regions import Region, sample

graphics.choose_backend()
import mujoco  # noqa: E402  (reads MUJOCO_GL when imported)

FPS = 25
CAMERAS = ("top", "lateral")
TASK = "Grasp the red cube and lift it."

HOME = np.array([0.0, -60.0, 60.0, 70.0, 0.0, 30.0])
"""The arm's pose at the start, before its per-seed jitter: degrees and gripper percent."""
HOME_JITTER = np.array([2.5, 2.5, 2.5, 2.5, 2.5, 3.0])
"""Standard deviation of that jitter."""
YAW_RANGE = 0.25
"""The cube's heading at the start is uniform within this many radians of the x axis."""
CUBE_HALF = 0.0125
LIFTED = 0.04
"""Metres above its resting height from which the cube counts as lifted."""

_STATE = "observation.state"


class PickCube(gymnasium.Env):
    """Lift the cube: six joint targets in, joint positions and two pictures out, at 25 Hz.

    Joints are in degrees, the gripper from 0 (closed) to 100 (open), as LeRobot's SO-101. The
    episode never ends by itself: the caller decides how many steps it lasts, and `info["success"]`
    tells whether the cube is in the air now.

    Args:
        render: whether observations hold pictures; without, no OpenGL is needed and a step is fast.
        height: height of the pictures in pixels, at most 480.
        width: width of the pictures in pixels, at most 640.
        look: colours and light of every episode that asks for no others.
    """

    # Gymnasium declares it an instance variable, so it cannot be a ClassVar here.
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012

    def __init__(
        self,
        *,
        render: bool = True,
        height: int = 240,
        width: int = 320,
        look: Look = AS_DEMONSTRATED,
    ) -> None:
        self.render_mode = "rgb_array" if render else None
        self.height, self.width = height, width
        self.look = self._present_look = look
        scene = resources.files("actlens.sim").joinpath("arm.xml").read_text(encoding="utf-8")
        self._model = mujoco.MjModel.from_xml_string(scene)
        self._data = mujoco.MjData(self._model)
        self._paint = painter(self._model)
        self._substeps = round(1.0 / FPS / self._model.opt.timestep)
        self._qpos = [self._model.joint(name.removesuffix(".pos")).qposadr[0] for name in JOINTS]
        self._cube_qpos = self._model.joint("cube").qposadr[0]
        self._renderer: mujoco.Renderer | None = None
        self.action_space = gymnasium.spaces.Box(JOINT_LOW, JOINT_HIGH, dtype=np.float32)
        spaces: dict[str, gymnasium.Space] = {}
        if render:
            picture = gymnasium.spaces.Box(0, 255, (height, width, 3), dtype=np.uint8)
            spaces = {f"observation.images.{camera}": picture for camera in CAMERAS}
        # Wider than the targets' limits: a joint may overshoot its target, or be pushed.
        spaces[_STATE] = gymnasium.spaces.Box(-360.0, 360.0, (len(JOINTS),), dtype=np.float32)
        self.observation_space = gymnasium.spaces.Dict(spaces)

    def reset(
        self, *, seed: int | None = None, options: dict | None = None
    ) -> tuple[dict[str, np.ndarray], dict]:
        """Puts the arm near home and the cube on the table.

        Args:
            seed: of the arm's jitter and the cube's place and heading; the same seed gives the same
                episode.
            options: any of `cube_xy` (metres from the base), `cube_yaw` (radians), `arm` (six joint
                positions, degrees and gripper percent), in place of what the seed would draw; and
                `look` in place of the environment's own, for this episode. The seed's other draws
                stay the same.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        arm = HOME + HOME_JITTER * self.np_random.standard_normal(len(JOINTS))
        cube_yaw = self.np_random.uniform(-YAW_RANGE, YAW_RANGE)
        cube_xy = sample(Region.TRAIN, self.np_random)
        arm = np.asarray(options.pop("arm", arm), dtype=np.float64)
        cube_yaw = float(options.pop("cube_yaw", cube_yaw))
        cube_xy = np.asarray(options.pop("cube_xy", cube_xy), dtype=np.float64)
        look = options.pop("look", self.look)
        if options or arm.shape != (len(JOINTS),) or cube_xy.shape != (2,):
            raise ValueError(
                "reset takes options cube_xy (two metres), cube_yaw (radians), arm (six joint "
                f"positions) and look; given: unknown {sorted(options)}, cube_xy of shape "
                f"{cube_xy.shape}, arm of shape {arm.shape}."
            )
        mujoco.mj_resetData(self._model, self._data)
        angles = to_radians(np.clip(arm, JOINT_LOW, JOINT_HIGH))
        self._data.qpos[self._qpos] = angles
        self._data.ctrl[:] = angles
        heading = [np.cos(cube_yaw / 2), 0.0, 0.0, np.sin(cube_yaw / 2)]
        self._data.qpos[self._cube_qpos : self._cube_qpos + 7] = [*cube_xy, CUBE_HALF, *heading]
        self._present_look = look
        self._paint(look)
        mujoco.mj_forward(self._model, self._data)
        return self._observation(), self._facts()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict]:
        """Moves the joint targets and advances 40 ms; targets beyond the limits are clipped."""
        targets = np.clip(np.asarray(action, dtype=np.float64), JOINT_LOW, JOINT_HIGH)
        self._data.ctrl[:] = to_radians(targets)
        mujoco.mj_step(self._model, self._data, nstep=self._substeps)
        # mj_step leaves positions new and everything derived from them (contacts, sites) old.
        mujoco.mj_forward(self._model, self._data)
        facts = self._facts()
        return self._observation(), float(facts["success"]), False, False, facts

    @property
    def cube(self) -> np.ndarray:
        """Where the cube is now: x, y and z in metres, heading in radians."""
        return self._facts()["cube"]

    def render(self) -> np.ndarray | None:
        """Both cameras side by side, `(height, 2 * width, 3)`; None if made without pictures."""
        if self.render_mode is None:
            return None
        return np.concatenate([self.picture(camera) for camera in CAMERAS], axis=1)

    def picture(self, camera: str) -> np.ndarray:
        """What a camera sees now, uint8 `(height, width, 3)`; works with `render=False` too.

        Raises:
            RenderingError: if no OpenGL library starts on this machine.
        """
        if self._renderer is None:
            self._renderer = self._start_renderer()
        self._renderer.update_scene(self._data, camera=camera)
        return self._renderer.render().copy()

    def seen_as(self, look: Look) -> dict[str, np.ndarray]:
        """What would be observed now under another look; the episode goes on under its own."""
        self._wear(look)
        try:
            return self._observation()
        finally:
            self._wear(self._present_look)

    def cube_outline(self, camera: str) -> tuple[float, float, float, float]:
        """Top, bottom, left and right of the cube in a camera's picture, as shares of its height
        and width from the top left; whether anything hides it, or it leaves the picture, is not
        asked."""
        cube, view = self._data.geom("cube"), self._data.camera(camera)
        signs = np.stack(np.meshgrid(*[[-1, 1]] * 3), axis=-1).reshape(-1, 3)
        corners = cube.xpos + CUBE_HALF * signs @ cube.xmat.reshape(3, 3).T
        # A camera looks along its negative z axis, x to the right and y up.
        right, up, depth = ((corners - view.xpos) @ view.xmat.reshape(3, 3)).T * [[1], [1], [-1]]
        half = np.tan(np.deg2rad(self._model.camera(camera).fovy[0]) / 2)
        rows = (1 - up / (depth * half)) / 2
        columns = (1 + right / (depth * half) * self.height / self.width) / 2
        return float(rows.min()), float(rows.max()), float(columns.min()), float(columns.max())

    def close(self) -> None:
        """Frees the renderer, if one was started."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _wear(self, look: Look) -> None:
        self._paint(look)
        # Lights alone: a whole mj_forward would start its solver from elsewhere afterwards.
        mujoco.mj_camlight(self._model, self._data)

    def _start_renderer(self) -> mujoco.Renderer:
        if not hasattr(mujoco, "GLContext") or not hasattr(mujoco, "Renderer"):
            raise graphics.missing_libraries("MuJoCo was imported without OpenGL")
        if find_spec("triton") is not None:
            # torchvision loads Triton, whose LLVM crashes the process if it comes after Mesa's.
            import triton  # noqa: F401
        try:
            renderer = mujoco.Renderer(self._model, self.height, self.width)
        except (ImportError, RuntimeError, AttributeError, mujoco.FatalError) as error:
            raise graphics.missing_libraries(str(error)) from error
        # Also at exit: left to the interpreter's teardown, OSMesa would complain on the console.
        weakref.finalize(self, renderer.close)
        return renderer

    def _observation(self) -> dict[str, np.ndarray]:
        observation: dict[str, np.ndarray] = {}
        if self.render_mode is not None:
            observation = {f"observation.images.{c}": self.picture(c) for c in CAMERAS}
        observation[_STATE] = to_degrees(self._data.qpos[self._qpos]).astype(np.float32)
        return observation

    def _facts(self) -> dict:
        """What is true of the world now: positions in metres, headings in radians."""
        position = self._data.qpos[self._cube_qpos : self._cube_qpos + 3]
        w, x, y, z = self._data.qpos[self._cube_qpos + 3 : self._cube_qpos + 7]
        yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        touched = self._jaws_on_cube()
        return {
            "success": bool(position[2] > CUBE_HALF + LIFTED),
            "cube": np.append(position, yaw),
            "tip": self._data.site("tip").xpos.copy(),
            "fixed_jaw_touches": "fixed_jaw" in touched,
            "moving_jaw_touches": "moving_jaw" in touched,
            "is_grasped": len(touched) == 2,
        }

    def _jaws_on_cube(self) -> set[str]:
        cube = self._model.geom("cube").id
        jaws = {self._model.geom(name).id: name for name in ("fixed_jaw", "moving_jaw")}
        pairs = self._data.contact.geom[: self._data.ncon]
        others = {int(a if b == cube else b) for a, b in pairs if cube in (a, b)}
        return {jaws[other] for other in others if other in jaws}
