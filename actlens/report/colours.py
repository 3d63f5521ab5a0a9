"""Numbers as colours over a camera's picture, with one scale for a whole film."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from actlens.report.tiles import BACKGROUND, QUIET, TEXT, Picture, fitting, font

_LEVELS = 256
_DIM = 0.6
"""How bright the grey picture under a map is."""
_CLEAREST, _DENSEST = 0.1, 0.85
"""Opacity of a cell at nothing and at the scale's end."""


@dataclass(frozen=True)
class Scale:
    """From 0 to `limit`, or from `-limit` to `limit` if diverging; beyond, the end's colour.

    Colours go with the square root: a film has one scale, and most of its cells are far below its
    largest. They are matplotlib's `magma` and `PuOr_r`, which colour-blind readers can tell apart.
    """

    limit: float
    label: str
    """What is shown, with its unit: `share of the attention`."""
    diverging: bool = False

    def levels(self, values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """From -1 (or 0) to 1, as colours go."""
        share = np.clip(values / self.limit, -1 if self.diverging else 0, 1)
        return np.sign(share) * np.sqrt(np.abs(share))

    @property
    def ticks(self) -> tuple[float, ...]:
        """Values to write beside the scale: its ends, its middle, and a quarter of the limit."""
        above = (0.0, self.limit / 4, self.limit)
        return (-self.limit, -self.limit / 4, *above) if self.diverging else above

    def place(self, value: float) -> float:
        """Where a value is along the scale, from 0 to 1."""
        level = float(self.levels(np.array(value)))
        return (level + 1) / 2 if self.diverging else level

    def colours(self, values: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "... 3"]:
        """Of each value; black where there is none."""
        level = self.levels(np.nan_to_num(values))
        share = (level + 1) / 2 if self.diverging else level
        # The darkest quarter of magma would not be seen over a dark picture.
        share = share if self.diverging else 0.25 + 0.75 * share
        entry = np.rint(share * (_LEVELS - 1)).astype(int)
        return _table("PuOr_r" if self.diverging else "magma")[entry]

    def over(
        self, values: Float[np.ndarray, "row col"], grey: Float[np.ndarray, "row col"]
    ) -> Float[np.ndarray, "row col 3"]:
        """The values' colours laid over grey ones, the denser the larger; grey where undefined."""
        share = np.abs(self.levels(np.nan_to_num(values)))
        dense = _CLEAREST + (_DENSEST - _CLEAREST) * share
        dense = np.where(np.isnan(values), 0.0, dense)[..., None]
        return dense * self.colours(values) + (1 - dense) * _DIM * grey[..., None]


def overlaid(
    picture: Picture, values: Float[np.ndarray, "row col"], scale: Scale, stride: int
) -> Picture:
    """A camera's picture in grey with its tokens' values over it, each over its cell.

    Args:
        values: in the camera's grid; NaN leaves a cell as it is.
        stride: pixels of the picture between neighbouring tokens; the last cells of a row or
            column may reach out of the picture.
    """
    mixed = scale.over(cells(values, stride, picture.shape[:2]), picture.mean(2))
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


def cells(
    values: Float[np.ndarray, "row col"], stride: int, size: tuple[int, ...]
) -> Float[np.ndarray, "height width"]:
    """A token grid's values, each at all pixels of its cell, for a picture of that size."""
    height, width = size
    return np.kron(values, np.ones((stride, stride)))[:height, :width]


def legend(scale: Scale, width: int, *, size: int) -> Picture:
    """A bar of the scale's colours as they look over mid-grey, its ends in numbers, its label."""
    picture = Image.new("RGB", (width, 3 * size + size // 2 + 4), BACKGROUND)
    draw, letters = ImageDraw.Draw(picture), font(size)
    draw.text((0, 0), fitting(scale.label, width, size), TEXT, letters)
    levels = np.linspace(-1.0 if scale.diverging else 0.0, 1.0, width)[None]
    values = scale.limit * np.sign(levels) * levels**2
    bar = np.rint(scale.over(values, np.full_like(values, 128.0))).clip(0, 255).astype(np.uint8)
    top, bottom = size + size // 2, 2 * size
    picture.paste(Image.fromarray(bar.repeat(bottom - top, axis=0)), (0, top))
    for value in scale.ticks:
        text, at = f"{value:.2g}", scale.place(value) * (width - 1)
        draw.line((at, bottom, at, bottom + 3), QUIET)
        long = letters.getlength(text)
        left = min(max(at - long / 2, 0), width - long)
        draw.text((left, bottom + 4), text, QUIET, letters)
    return np.asarray(picture)


@cache
def _table(name: str) -> UInt8[np.ndarray, "level 3"]:
    from matplotlib import colormaps

    return colormaps[name](np.arange(_LEVELS), bytes=True)[:, :3]
