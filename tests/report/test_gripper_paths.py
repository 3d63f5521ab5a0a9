"""Drawn paths against MuJoCo's own kinematics and cameras, and against what it renders."""

import os
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from actlens.cameras import known_cameras
from actlens.config import IMAGE_PREFIX, ACTConfig, Camera
from actlens.kinematics import SO101_SIMULATED as ARM
from actlens.report.path_panels import Decoded, columns_of, draw_decoded
from actlens.report.paths import (
    draw_dashed,
    draw_path,
    draw_place,
    point_pixels,
    time_colours,
    tip_pixels,
)
from actlens.scene import Scene
from actlens.sim.environment import HOME, PickCube
from actlens.sim.expert import plan
from actlens.sim.graphics import RenderingError

NAMES = ("top", "lateral")
HEIGHT, WIDTH = 240, 320
GREY = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
CUBE = (0.2, 0.05)


@pytest.fixture(scope="module")
def graphics():
    """Asserts that pictures can be drawn here."""
    env = PickCube(height=24, width=32)
    try:
        env.reset(seed=0)
    except RenderingError as error:
        if os.environ.get("CI"):
            pytest.fail(f"nothing may be skipped in CI: {error}")
        pytest.skip(str(error))
    finally:
        env.close()


def camera_called(name):
    shape = Camera(f"{IMAGE_PREFIX}{name}", HEIGHT, WIDTH)
    return known_cameras((shape,), ARM)[0]


def demonstration():
    return plan(HOME, np.array(CUBE), 0.0)


def seen_by_mujoco(name, joints):
    """Column and row of the tip of every pose: MuJoCo's site through MuJoCo's camera."""
    env = PickCube(render=False, height=HEIGHT, width=WIDTH)
    pixels = []
    for pose in joints:
        _, facts = env.reset(seed=0, options={"arm": pose, "cube_xy": np.array([0.2, -0.2])})
        view = env._data.camera(name)
        x, y, z = view.xmat.reshape(3, 3).T @ (facts["tip"] - view.xpos)
        focal = HEIGHT / 2 / np.tan(np.deg2rad(env._model.camera(name).fovy[0]) / 2)
        pixels.append((WIDTH / 2 + focal * x / -z, HEIGHT / 2 - focal * y / -z))
    return np.array(pixels)


def changed(drawn, picture):
    rows, columns = (drawn != picture).any(2).nonzero()
    return np.stack([columns, rows], 1) + 0.5


def distance_to_path(pixels, points):
    """Of each pixel to the polyline, in pixels."""
    nearest = np.full(len(pixels), np.inf)
    for a, b in pairwise(points):
        along = (b - a) / max(1e-12, float((b - a) @ (b - a)))
        share = np.clip((pixels - a) @ along, 0, 1)[:, None]
        nearest = np.minimum(nearest, np.linalg.norm(pixels - a - share * (b - a), axis=1))
    return nearest


@pytest.mark.parametrize("name", NAMES)
def test_a_path_lies_where_mujocos_camera_sees_mujocos_tip(name):
    joints = demonstration()
    drawn = draw_path(GREY, tip_pixels(camera_called(name), ARM, joints))
    expected = seen_by_mujoco(name, joints)
    pixels = changed(drawn, GREY)
    assert distance_to_path(pixels, expected).max() < 6.5  # a dot's radius and its outline
    covered = [np.abs(pixels - point).sum(1).min() for point in expected]
    assert max(covered) < 2


@pytest.mark.parametrize("name", NAMES)
def test_the_demonstrated_path_keeps_to_its_points_and_has_gaps(name):
    points = tip_pixels(camera_called(name), ARM, demonstration())
    pixels = changed(draw_dashed(GREY, points), GREY)
    assert distance_to_path(pixels, seen_by_mujoco(name, demonstration())).max() < 4
    gone = np.append(0, np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum())
    steps = np.arange(0, gone[-1], 0.5)
    line = np.stack([np.interp(steps, gone, points[:, axis]) for axis in (0, 1)], 1)
    far = np.array([np.linalg.norm(pixels - point, axis=1).min() for point in line]) > 1.2
    assert 3 < np.count_nonzero(far[1:] & ~far[:-1]) < gone[-1] / 8  # so many gaps


def test_a_chunk_that_stands_still_is_a_point():
    joints = np.tile(HOME, (50, 1))
    points = tip_pixels(camera_called("top"), ARM, joints)
    pixels = changed(draw_path(GREY, points), GREY)
    assert np.ptp(pixels, axis=0).max() <= 12
    np.testing.assert_allclose(pixels.mean(0), seen_by_mujoco("top", HOME[None])[0], atol=0.5)


@pytest.mark.usefixtures("graphics")
@pytest.mark.parametrize("name", NAMES)
def test_the_ring_is_around_the_rendered_cube_and_the_paths_end_on_the_lifted_one(name):
    env = PickCube(height=HEIGHT, width=WIDTH)
    env.reset(seed=0, options={"arm": HOME, "cube_xy": np.array(CUBE), "cube_yaw": 0.0})
    camera = camera_called(name)
    start = env.picture(name).astype(int)
    centre = changed(draw_place(GREY, point_pixels(camera, env.cube[:3])), GREY).mean(0)
    red = (start[..., 0] > 90) & (start[..., 0] > 2 * start[..., 1])
    rows, columns = red.nonzero()
    assert np.abs(centre - (columns.mean() + 0.5, rows.mean() + 0.5)).max() < 4
    actions = demonstration()
    for action in actions:
        seen, *_ = env.step(action)
    assert env.cube[2] > 0.05
    if name == "lateral":  # from above the gripper hides what it holds
        end = tip_pixels(camera, ARM, seen["observation.state"][None])[0]
        column, row = end.astype(int)
        around = env.picture(name)[row - 4 : row + 5, column - 4 : column + 5].astype(int)
        assert ((around[..., 0] > 90) & (around[..., 0] > 2 * around[..., 1])).any()
    env.close()


def test_time_goes_from_the_first_colour_to_the_last():
    points = np.stack([np.linspace(40, 280, 31), np.full(31, 100.0)], 1)
    drawn = draw_path(GREY, points).astype(int)
    colours = time_colours(31).astype(int)
    for position in (0, 10, 20, 30):
        column = int(points[position, 0])
        assert np.abs(drawn[100, column] - colours[position]).max() <= 3
    halfway = int(points[15, 0])
    assert np.abs(drawn[100, halfway - 2] - colours[15]).max() <= 12


def test_points_behind_the_camera_are_left_out():
    points = np.stack([np.linspace(40, 280, 31), np.full(31, 100.0)], 1)
    points[10:20] = np.nan
    for draw in (draw_path, draw_dashed):
        columns = changed(draw(GREY, points), GREY)[:, 0]
        gap = (columns > points[9, 0] + 8) & (columns < points[20, 0] - 8)
        assert len(columns)
        assert not gap.any()
    nothing = np.full((4, 2), np.nan)
    assert np.array_equal(draw_path(GREY, nothing), GREY)
    assert np.array_equal(draw_place(GREY, nothing[0]), GREY)


def test_a_picture_of_another_size_has_the_path_in_the_same_place():
    points = tip_pixels(camera_called("top"), ARM, demonstration())
    large = np.full((2 * HEIGHT, 2 * WIDTH, 3), 120, np.uint8)
    pixels = changed(draw_path(large, points, zoom=2.0), large)
    assert distance_to_path(pixels / 2, points).max() < 6.5


# ── panels ───────────────────────────────────────────────────────────────────────────────────────


def config(cameras=NAMES, joints=ARM.joints):
    return ACTConfig(
        cameras=tuple(Camera(f"{IMAGE_PREFIX}{name}", HEIGHT, WIDTH) for name in cameras),
        action_dim=6, state_dim=6, chunk=50, n_action_steps=10, d_model=16, n_heads=2, d_mlp=16,
        n_encoder_layers=1, use_vae=False, joints=joints,
    )  # fmt: skip


@pytest.fixture
def decoded():
    chunk = demonstration()[:50]
    picture = torch.full((3, HEIGHT, WIDTH), 120, dtype=torch.uint8)
    scene = Scene(
        {f"{IMAGE_PREFIX}{name}": picture for name in (*NAMES, "wrist")},
        action=torch.from_numpy(chunk),
        action_is_pad=torch.arange(50) > 39,
        labels={"cube_x": CUBE[0], "cube_y": CUBE[1], "cube_z": 0.0125},
    )
    still = np.tile(chunk[:1], (50, 1))
    return Decoded(scene, {"encoder 0": still, "encoder 1": chunk, "the policy": chunk})


def test_only_the_demonstrated_part_of_a_padded_chunk_is_the_experts(decoded):
    np.testing.assert_array_equal(decoded.expert, demonstration()[:40])
    bare = replace(decoded, scene=Scene(decoded.scene.observation))
    assert bare.expert is None
    assert bare.cube is None
    assert draw_decoded(bare, config(), ARM).shape[2] == 3


def test_panels_stand_side_by_side_and_differ_where_their_chunks_do(decoded):
    picture = draw_decoded(decoded, config(), ARM)
    assert all(size % 2 == 0 for size in picture.shape[:2])
    panels = [picture[30:520, 8 + 328 * i : 328 + 328 * i] for i in range(3)]
    assert not np.array_equal(panels[0], panels[1])
    assert np.array_equal(panels[1][10:], panels[2][10:])  # below their captions


def test_without_known_cameras_the_path_is_in_plain_axes_and_without_an_arm_joints_are(decoded):
    over = draw_decoded(decoded, config(), ARM)
    plain = draw_decoded(decoded, config(cameras=("wrist",)), ARM)
    curves = draw_decoded(
        decoded, config(joints=("$\\frac{", "b\x1b[31m", "c", "d", "e", "f")), None
    )
    assert len({picture.shape for picture in (over, plain, curves)}) == 3
    for picture in (plain, curves):
        assert picture.dtype == np.uint8
        assert picture.std() > 10


@pytest.mark.parametrize(
    ("n", "columns"), [(1, 1), (4, 4), (5, 5), (6, 3), (7, 4), (8, 4), (10, 5), (11, 4)]
)
def test_rows_of_tiles_are_as_even_as_they_come(n, columns):
    assert columns_of(n) == columns
