"""The red spot of pictures whose pixels are known, and of the simulator's."""

import numpy as np
import pytest
import torch

from actlens.cameras import known_cameras
from actlens.config import Camera
from actlens.kernel_ridge import Fold
from actlens.kinematics import SO101_SIMULATED
from actlens.reconstruction import Judge, find_red, outline, place_of, small_pictures
from actlens.reconstruction.pictures import at_size
from actlens.reconstruction.smoothers import mixtures
from actlens.scenes.dataset import open_dataset

RED, YELLOW, BLUE = (0.85, 0.10, 0.10), (0.96, 0.77, 0.22), (0.20, 0.45, 0.75)
CAMERAS = tuple(Camera(f"observation.images.{name}", 240, 320) for name in ("top", "lateral"))


def picture(**patches):
    """Grey, with rectangles (rows, columns) of colours."""
    found = np.full((3, 40, 60), 0.5)
    for colour, (rows, columns) in patches.items():
        value = {"red": RED, "yellow": YELLOW, "blue": BLUE}[colour]
        found[:, rows, columns] = np.array(value)[:, None, None]
    return found


def test_the_red_patch_is_found_among_other_colours():
    one = picture(
        yellow=(slice(0, 30), slice(0, 20)),
        blue=(slice(30, 40), slice(0, 60)),
        red=(slice(10, 14), slice(40, 46)),
    )
    found = find_red(one)
    assert (found.row, found.column) == pytest.approx((12, 43))
    assert found.redness == pytest.approx(0.75)


def test_grey_yellow_and_blue_are_not_red():
    assert find_red(picture()) is None
    assert find_red(picture(yellow=(slice(5, 9), slice(5, 9)))) is None
    assert find_red(picture(blue=(slice(5, 9), slice(5, 9)))) is None
    assert not outline(picture()).any()


def test_a_faint_blurred_drawing_is_found_and_a_fainter_one_is_missed():
    mixed = lambda share: (
        (1 - share) * picture() + share * picture(red=(slice(10, 14), slice(40, 46)))
    )
    assert find_red(mixed(0.2)).column == pytest.approx(43)
    assert find_red(mixed(0.1)) is None


def test_the_line_of_sight_is_the_projection_backwards():
    points = torch.tensor([[0.2, 0.05, 0.0125], [0.15, -0.1, 0.0125]], dtype=torch.float64)
    for camera in known_cameras(CAMERAS, SO101_SIMULATED):
        back = camera.at_height(camera.project(points), 0.0125)
        torch.testing.assert_close(back, points)
    up = torch.tensor([160.0, -500.0], dtype=torch.float64)  # over the horizon
    assert camera.at_height(up, 0.0125).isnan().all()


def test_a_place_is_the_same_at_every_size_of_picture():
    camera = known_cameras(CAMERAS, SO101_SIMULATED)[0]
    small = at_size(CAMERAS, [camera], (60, 80))
    assert small[1] is None
    column, row = camera.project(torch.tensor([0.2, 0.05, 0.0125])).tolist()
    from actlens.reconstruction import Found

    there = place_of(Found(column / 4, row / 4, 1.0), small[0], 0.0125)
    np.testing.assert_allclose(there, [0.2, 0.05], atol=1e-9)
    assert at_size(CAMERAS, [camera], (60, 60)) == (None, None)  # pixels would not be square


@pytest.fixture(scope="module")
def simulated():
    episodes = [0, 10, 20, 35, 45, 55, 62, 70, 80]
    return list(open_dataset("so101-pick-cube-unseen").scenes(chunk=1, episodes=episodes,
                                                              frames=[0]))  # fmt: skip


def judge(scenes):
    pictures = small_pictures(scenes, CAMERAS, (60, 80))
    cameras = at_size(CAMERAS, known_cameras(CAMERAS, SO101_SIMULATED), (60, 80))
    names = ("cube_x", "cube_y", "cube_z")
    places = np.array([[scene.labels[name] for name in names] for scene in scenes])
    return Judge(pictures, np.median(pictures, 0), cameras, places)


def test_real_pictures_show_the_simulators_cube_to_a_few_millimetres(simulated):
    one = judge(simulated)
    errors = one.errors(one.real)
    top, lateral = errors.off.T
    assert top.max() < 4
    assert lateral.max() < 8
    assert not errors.squared.any()
    np.testing.assert_array_equal(errors.overlap, errors.union)


def test_misses_and_wrong_places_count(simulated):
    one = judge(simulated)
    empty = np.full_like(one.real, 0.5)
    assert np.isinf(one.errors(empty).off).all()
    swapped = one.errors(one.real[::-1])
    middle = len(simulated) // 2
    others = [i for i in range(len(simulated)) if i != middle]
    apart = 1000 * np.linalg.norm(one.places - one.places[::-1], axis=1)
    np.testing.assert_allclose(swapped.off[others, 0], apart[others], atol=4)
    assert (swapped.overlap <= swapped.union).all()
    hidden = Judge(empty, one.usual, one.cameras, one.places)
    assert np.isnan(hidden.errors(one.real).off).all()


def test_the_outline_tells_how_a_square_lies():
    """By the fourth moment of a square that is turned in steps, read off other turns."""
    rows, columns = np.indices((60, 60)) - 30.0
    turns = np.linspace(-40, 40, 33)
    values = []
    for turn in np.deg2rad(turns):
        u = np.cos(turn) * columns + np.sin(turn) * rows
        v = np.cos(turn) * rows - np.sin(turn) * columns
        inside = (np.abs(u) < 10) & (np.abs(v) < 10)
        values.append(outline(np.where(inside, np.array(RED)[:, None, None], 0.5)))
    x = np.array(values)
    angle = np.stack([np.cos(4 * np.deg2rad(turns)), np.sin(4 * np.deg2rad(turns))], 1)
    train, test = np.arange(0, 33, 2), np.arange(1, 33, 2)
    (found,) = mixtures(x, [angle[train]], np.arange(33), Fold(train, test))
    read = found.of(angle[train])
    off = np.angle(np.exp(1j * (np.arctan2(read[:, 1], read[:, 0]) - np.deg2rad(4 * turns[test]))))
    assert np.rad2deg(np.abs(off) / 4).max() < 3
