"""Colour maps that colour-blind readers can tell apart."""

from functools import cache

import numpy as np
from jaxtyping import Float, UInt8

POSITIVE, SIGNED = "magma", "PuOr_r"
"""From zero up; and diverging from zero, orange above and purple below."""


@cache
def colour_table(*, signed: bool) -> UInt8[np.ndarray, "256 3"]:
    """The map's 256 colours, from the smallest value to the largest."""
    from matplotlib import colormaps

    # Nearly black colours would not be seen over a grey picture.
    where = np.linspace(0.07, 0.93, 256) if signed else np.linspace(0.2, 1, 256)
    table = colormaps[SIGNED if signed else POSITIVE](where, bytes=True)
    return table[:, :3].astype(np.uint8)


def coloured(
    values: Float[np.ndarray, "row col"], limit: float, *, signed: bool
) -> UInt8[np.ndarray, "row col 4"]:
    """A map as colours with transparency: what is near zero lets the picture through.

    Colours go with the square root: maps have one scale, and most of their values are far below
    the largest. The page's script does the same; the tests hold the two together.
    """
    share = np.clip(np.nan_to_num(values) / limit, -1 if signed else 0, 1)
    level = np.sign(share) * np.sqrt(np.abs(share))
    index = np.floor((level + 1) * 127.5 + 0.5 if signed else level * 255 + 0.5)
    opaque = np.where(np.isfinite(values), 255 * np.abs(level) ** 1.5, 0)
    rgb = colour_table(signed=signed)[index.astype(int)]
    return np.concatenate([rgb, np.floor(opaque + 0.5)[..., None].astype(np.uint8)], -1)


def ticks(limit: float, *, signed: bool) -> tuple[float, ...]:
    """Values at equal distances along the colours, from one end to the other."""
    above = (0.0, limit / 4, limit)
    return (-limit, -limit / 4, *above) if signed else above
