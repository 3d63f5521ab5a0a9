"""Where a picture shows a coloured object, and where on the table that is."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage

from actlens.cameras import PinholeCamera

_SEEN = 0.1
"""Redness of the reddest pixel, of at most 1, below which nothing red is shown."""
_ORDER = 6


@dataclass(frozen=True)
class Found:
    """A red object's centre."""

    column: float
    """In pixels from the picture's left border; a pixel's own middle lies half a pixel in."""
    row: float
    redness: float
    """Of its reddest pixel."""


def redness(picture: Float[np.ndarray, "3 h w"]) -> Float[np.ndarray, "h w"]:
    """How red every pixel is, 0 to 1: not grey, not yellow, not blue.

    Args:
        picture: RGB, 0 to 1.
    """
    red, green, blue = np.clip(picture, 0, 1)
    # Yellow is red and green without blue: the distance between these two takes it out.
    return np.clip(red - np.maximum(green, blue) - np.abs(green - blue) / 2, 0, 1)


def find_red(picture: Float[np.ndarray, "3 h w"]) -> Found | None:
    """The centre of the reddest spot, weighted by redness; None where nothing is red enough.

    A spot is what hangs together around the reddest pixel and has half its redness or more, so that
    a faint, blurred drawing of an object is found as the object itself is.
    """
    weights = _spot(picture)
    if weights is None:
        return None
    rows, columns = np.indices(weights.shape) + 0.5
    total = weights.sum()
    return Found(
        float((weights * columns).sum() / total),
        float((weights * rows).sum() / total),
        float(weights.max()),
    )


def outline(picture: Float[np.ndarray, "3 h w"]) -> Float[np.ndarray, " moment"]:
    """The reddest spot's centre, size and shape: moments that tell how a cube lies.

    Centre in pixels, redness summed over pixels, then the real and imaginary parts of the central
    moments of z = column + i row up to order 6, for a spot of one pixel (Hu 1962 has the idea; a
    square turns with the fourth). Zeros where nothing is red.
    """
    weights = _spot(picture)
    powers = [(p - q, q) for p in range(2, _ORDER + 1) for q in range(p // 2 + 1)]
    found = np.zeros(3 + 2 * len(powers))
    if weights is None:
        return found
    total = float(weights.sum())
    rows, columns = np.indices(weights.shape) + 0.5
    row, column = (float((weights * x).sum() / total) for x in (rows, columns))
    z = (columns - column) + 1j * (rows - row)
    found[:3] = column, row, total
    for i, (p, q) in enumerate(powers):
        moment = (weights * z**p * z.conj() ** q).sum() / total ** (1 + (p + q) / 2)
        found[3 + 2 * i : 5 + 2 * i] = moment.real, moment.imag
    return found


def _spot(picture: Float[np.ndarray, "3 h w"]) -> Float[np.ndarray, "h w"] | None:
    """Redness within the reddest spot, 0 elsewhere; None where nothing is red enough."""
    values = redness(picture)
    peak = np.unravel_index(values.argmax(), values.shape)
    if values[peak] < _SEEN:
        return None
    spots = np.asarray(ndimage.label(values >= values[peak] / 2)[0])
    return np.where(spots == spots[peak], values, 0)


def place_of(found: Found, camera: PinholeCamera, height: float) -> Float[np.ndarray, " 2"]:
    """The object's x and y in metres, if its centre is `height` metres above the table.

    Args:
        camera: of the picture that it was found in, at that picture's size.
    """
    pixel = torch.tensor([found.column, found.row], dtype=torch.float64)
    return camera.at_height(pixel, height)[:2].numpy()
