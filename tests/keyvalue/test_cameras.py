"""Projection against MuJoCo's cameras, and against where the cube is in recorded pictures."""

import numpy as np
import pytest
import torch

from actlens.cameras import PinholeCamera, known_cameras
from actlens.config import IMAGE_PREFIX, Camera
from actlens.kinematics import SO101_SIMULATED
from actlens.scenes.dataset import open_dataset
from actlens.sim.environment import CUBE_HALF, PickCube

import mujoco  # isort: skip  (after the environment, which chooses its OpenGL)

NAMES = ("top", "lateral")


def cameras(height, width, names=NAMES):
    shapes = tuple(Camera(f"{IMAGE_PREFIX}{name}", height, width) for name in names)
    return known_cameras(shapes, SO101_SIMULATED)


@pytest.mark.parametrize(("height", "width"), [(240, 320), (480, 640), (100, 60)])
@pytest.mark.parametrize("name", NAMES)
def test_points_fall_where_mujocos_cameras_see_them(name, height, width):
    """The referee is the compiled model: cam_xpos, cam_xmat and fovy, as a projection matrix."""
    env = PickCube(render=False, height=height, width=width)
    env.reset(seed=0)
    mujoco.mj_forward(env._model, env._data)
    view, half = env._data.camera(name), np.tan(np.deg2rad(env._model.camera(name).fovy[0]) / 2)
    focal = height / 2 / half
    intrinsic = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    to_image = np.diag([1.0, -1.0, -1.0])  # MuJoCo looks along -z with y up, pictures have y down
    rotation = to_image @ view.xmat.reshape(3, 3).T
    points = np.random.default_rng(0).uniform([0, -0.2, 0], [0.3, 0.2, 0.2], (50, 3))
    seen = (intrinsic @ rotation @ (points - view.xpos).T).T
    expected = seen[:, :2] / seen[:, 2:]
    (camera,) = cameras(height, width, (name,))
    np.testing.assert_allclose(camera.project(torch.from_numpy(points)), expected, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_cubes_outline_is_the_environments(name):
    env = PickCube(render=False, height=240, width=320)
    env.reset(seed=0, options={"cube_xy": (0.2, 0.05), "cube_yaw": 0.0})
    (camera,) = cameras(240, 320, (name,))
    signs = np.stack(np.meshgrid(*[[-1, 1]] * 3), -1).reshape(-1, 3)
    pixels = camera.project(torch.tensor([0.2, 0.05, CUBE_HALF]) + CUBE_HALF * torch.tensor(signs))
    columns, rows = pixels.T
    top, bottom, left, right = env.cube_outline(name)
    assert rows.aminmax() == pytest.approx((top * 240, bottom * 240), abs=1e-3)
    assert columns.aminmax() == pytest.approx((left * 320, right * 320), abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_red_cube_is_where_it_is_projected_in_recorded_pictures(name):
    """Pixels against labels: what the dataset shows, not what we think the simulator does."""
    (camera,) = cameras(240, 320, (name,))
    scenes = list(open_dataset("so101-pick-cube").scenes(chunk=1, episodes=[3, 50], frames=[0]))
    for scene in scenes:
        red, green, blue = scene.observation[f"{IMAGE_PREFIX}{name}"].float()
        rows, columns = ((red > 90) & (red > 2 * green) & (red > 2 * blue)).nonzero().T
        assert len(rows) > 30
        centre = torch.stack([columns.double().mean(), rows.double().mean()]) + 0.5
        point = torch.tensor([scene.labels[f"cube_{axis}"] for axis in "xyz"])
        assert (camera.project(point) - centre).abs().max() < 4


def test_points_behind_the_camera_have_no_pixel():
    top, _ = cameras(240, 320)
    above = torch.tensor([[0.155, 0.0, 0.7], [0.155, 0.0, 0.6]])
    assert top.project(above).isnan().all()


def test_the_middle_of_the_picture_is_straight_ahead():
    camera = PinholeCamera(
        "ahead", (1.0, 2.0, 3.0), (0.0, -2.0, 0.0), (0.0, 0.5, 4.0), 60.0, 50, 80
    )
    ahead = torch.tensor([5.0, 2.0, 3.0])
    torch.testing.assert_close(camera.project(ahead), torch.tensor([40.0, 25.0]).double())
    assert camera.shows(camera.project(ahead))
    # Half the field of view upwards is the upper edge, which is in the picture; more is not.
    edge = torch.tensor([5.0, 2.0, 3.0 + 4 * np.tan(np.pi / 6)])
    assert camera.project(edge)[1] == pytest.approx(0, abs=1e-4)
    assert not camera.shows(camera.project(edge + torch.tensor([0, 0, 0.01])))
    # To the right of somebody who looks forward is negative y.
    focal = 25 / np.tan(np.pi / 6)
    column, row = camera.project(ahead - torch.tensor([0.0, 0.1, 0.0])).tolist()
    assert (column, row) == pytest.approx((40 + focal * 0.1 / 4, 25), abs=1e-4)


def test_only_the_simulators_cameras_are_known():
    assert known_cameras((Camera(f"{IMAGE_PREFIX}top", 240, 320),), None) == ()
    assert cameras(240, 320, ("top", "wrist"))[0].name == "top"
    assert len(cameras(240, 320, ("top", "wrist"))) == 1
