"""A chunk of joint positions as the gripper's path over a camera's picture."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from actlens.cameras import PinholeCamera
from actlens.kinematics import Arm
from actlens.report.tiles import Colour, Picture, resized

EVERY = 10
"""Chunk positions between two dots on a path."""
DASH = (6.0, 5.0)
"""Pixels drawn and left out of a dashed line."""
_FINE = 2
"""Lines are drawn this many times larger and made smaller again: smooth edges."""
_OUTLINE: Colour = (0, 0, 0)
_WHITE: Colour = (255, 255, 255)

Points = Float[np.ndarray, "point 2"]
"""Columns and rows in pixels; NaN where a point is not in front of the camera."""


def tip_pixels(camera: PinholeCamera, arm: Arm, joints: Float[np.ndarray, "chunk joint"]) -> Points:
    """Where a camera sees the gripper's tip at each position of a chunk, in dataset units."""
    return camera.project(torch.from_numpy(arm.tip(np.asarray(joints)))).numpy()


def point_pixels(camera: PinholeCamera, point: Sequence[float]) -> Float[np.ndarray, " 2"]:
    """Where a camera sees one point, metres in the arm's coordinates."""
    return camera.project(torch.tensor(point, dtype=torch.float64)).numpy()


@cache
def time_colours(n: int) -> UInt8[np.ndarray, "n 3"]:
    """From a chunk's first position to its last: matplotlib's `plasma`, without its dark end."""
    from matplotlib import colormaps

    return colormaps["plasma"](np.linspace(0.15, 1.0, n), bytes=True)[:, :3]


def draw_path(picture: Picture, points: Points, *, zoom: float = 1.0) -> Picture:
    """A path that goes from violet to yellow with time, a dot every ten positions and at its end.

    Args:
        picture: the camera's, already `zoom` times as large as the camera's own.
        points: in the camera's own pixels.
    """
    canvas, draw, at = _canvas(picture, points, zoom)
    colours = [tuple(map(int, colour)) for colour in time_colours(len(points))]
    width = _FINE * 3
    steps = [(a, b, c) for a, b, c in zip(at, at[1:], colours[1:], strict=False) if a and b]
    for a, b, _ in steps:
        draw.line((*a, *b), _OUTLINE, width + 2 * _FINE)
    for a, b, colour in steps:
        draw.line((*a, *b), colour, width)
    for position, (point, colour) in enumerate(zip(at, colours, strict=True)):
        last = position == len(at) - 1
        if point and (last or position % EVERY == 0):
            _dot(draw, point, colour, _FINE * (4 if last else 3))
    return _finished(canvas, picture)


def draw_dashed(picture: Picture, points: Points, *, zoom: float = 1.0) -> Picture:
    """A white dashed path, for what a path is compared with."""
    canvas, draw, at = _canvas(picture, points, zoom)
    pieces = list(_dashes(at, *(_FINE * length for length in DASH)))
    for a, b in pieces:
        draw.line((*a, *b), _OUTLINE, _FINE * 4)
    for a, b in pieces:
        draw.line((*a, *b), _WHITE, _FINE * 2)
    return _finished(canvas, picture)


def draw_place(picture: Picture, point: Float[np.ndarray, " 2"], *, zoom: float = 1.0) -> Picture:
    """A white ring around a point: where the cube is."""
    canvas, draw, (at,) = _canvas(picture, point[None], zoom)
    if at:
        for radius, colour, width in ((9, _OUTLINE, 4), (8, _WHITE, 2)):
            reach = _FINE * radius
            box = (at[0] - reach, at[1] - reach, at[0] + reach, at[1] + reach)
            draw.ellipse(box, outline=colour, width=_FINE * width)
    return _finished(canvas, picture)


def _canvas(picture: Picture, points: Points, zoom: float):
    """A larger picture, what draws on it, and the points there; None for those without a place."""
    height, width = picture.shape[:2]
    canvas = Image.fromarray(resized(picture, _FINE * height, _FINE * width))
    at = [None if np.isnan(p).any() else tuple((_FINE * zoom * p).tolist()) for p in points]
    return canvas, ImageDraw.Draw(canvas), at


def _finished(canvas: Image.Image, picture: Picture) -> Picture:
    """The canvas at the picture's size, and beside the drawing the picture as it was."""
    height, width = picture.shape[:2]
    plain = resized(picture, _FINE * height, _FINE * width)
    drawn = (np.asarray(canvas) != plain).any(2)
    drawn = drawn.reshape(height, _FINE, width, _FINE).any((1, 3))[..., None]
    small = np.asarray(canvas.resize((width, height), Image.Resampling.BOX))
    return np.where(drawn, small, picture)


def _dot(draw: ImageDraw.ImageDraw, at: tuple[float, float], colour, radius: float) -> None:
    for reach, fill in ((radius + _FINE, _OUTLINE), (radius, colour)):
        draw.ellipse((at[0] - reach, at[1] - reach, at[0] + reach, at[1] + reach), fill)


def _dashes(at: Sequence[tuple[float, float] | None], on: float, off: float):
    """The drawn pieces of a dashed line along the points, without the points that have no place."""
    gone = 0.0
    for start, end in pairwise(at):
        if start is None or end is None or start == end:
            continue
        a, b = np.array(start), np.array(end)
        length = float(np.linalg.norm(b - a))
        cuts = np.arange(0.0, length, 1.0)
        for low, high in zip(cuts, [*cuts[1:], length], strict=True):
            if (gone + low) % (on + off) < on:
                yield tuple(a + (b - a) * low / length), tuple(a + (b - a) * high / length)
        gone += length
