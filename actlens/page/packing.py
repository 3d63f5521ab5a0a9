"""Maps packed for the page's script, and as one picture for those who read without it."""

import io
import json
from base64 import b64encode
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from actlens.page.colours import colour_table, coloured, ticks
from actlens.page.overlays import Overlays, View
from actlens.page.pictures import jpeg, picture_uri, png
from actlens.text import clean_text

MISSING = -32768
"""Stands for NaN among the packed 16-bit values."""
_OPACITY = 0.75


@dataclass(frozen=True)
class PackedOverlays:
    """What the template needs of overlays: all of it text, the numbers in base64."""

    about: str
    """JSON: axes, views, scale; every name in it is clean."""
    values: Markup
    """All values, 16 bit, little endian, as shares of the largest."""
    colours: Markup
    """256 colours of 3 bytes."""
    first: tuple[Markup, ...]
    """A picture of each view under its first map."""
    pictures: tuple[Markup, ...]
    """Each view's picture files, data URIs parted by spaces."""
    bars: tuple[float, ...]
    """The first values of tokens that are no pixels."""
    ticks: tuple[float, ...]
    """Values at equal distances along the colours."""
    clipped: bool
    """Some values are beyond the last."""
    colour_bar: Markup
    """The colours from the smallest value to the largest, as a data URI."""


def limit_of(overlays: Overlays) -> float:
    """The value of the strongest colour."""
    if overlays.limit is not None:
        return overlays.limit
    return max(_largest(view.values) for view in overlays.views) or 1.0


def _first(overlays: Overlays, values: Float[np.ndarray, "*axes x"]) -> np.ndarray:
    """What is shown before anything is chosen."""
    lengths = values.shape[: len(overlays.axes)]
    at = (min(axis.start, n - 1) for axis, n in zip(overlays.axes, lengths, strict=True))
    return values[tuple(at)]


def pack(overlays: Overlays) -> PackedOverlays:
    """Pack what the page's script draws."""
    arrays = [view.values for view in overlays.views]
    arrays += [] if overlays.bars is None else [overlays.bars.values]
    peak = max(map(_largest, arrays), default=0) or 1.0
    offsets = np.cumsum([0, *(array.size for array in arrays)]).tolist()
    names = [axis.name for axis in overlays.axes]
    n_axes = len(names)
    about = {
        "title": clean_text(overlays.title),
        "unit": clean_text(overlays.unit),
        "signed": overlays.signed,
        "limit": limit_of(overlays),
        "clipped": _is_clipped(overlays),
        "peak": peak,
        "lengths": [len(axis.labels) for axis in overlays.axes],
        "labels": [[clean_text(label) for label in axis.labels] for axis in overlays.axes],
        "views": [
            {
                "name": clean_text(view.name),
                "offset": offset,
                "shape": view.values.shape[:n_axes],
                "rows": view.values.shape[-2],
                "cols": view.values.shape[-1],
                "along": [names.index(name) for name in view.along],
                "reach": view.reach,
                "first": view.first_token,
            }
            for view, offset in zip(overlays.views, offsets, strict=False)
        ],
        "bars": None
        if overlays.bars is None
        else {
            "offset": offsets[len(overlays.views)],
            "shape": overlays.bars.values.shape[:n_axes],
            "names": [clean_text(name) for name in overlays.bars.names],
        },
    }
    quantised = [_quantised(array, peak).tobytes() for array in arrays]
    return PackedOverlays(
        about=json.dumps(about, ensure_ascii=False),
        values=Markup(b64encode(b"".join(quantised)).decode()),
        colours=Markup(b64encode(colour_table(signed=overlays.signed).tobytes()).decode()),
        first=tuple(picture_uri(under_first_map(overlays, view)) for view in overlays.views),
        pictures=tuple(
            Markup(" ").join(picture_uri(picture) for picture in view.pictures)
            for view in overlays.views
        ),
        bars=()
        if overlays.bars is None
        else tuple(_first(overlays, overlays.bars.values).tolist()),
        ticks=ticks(limit_of(overlays), signed=overlays.signed),
        clipped=_is_clipped(overlays),
        colour_bar=picture_uri(png(colour_table(signed=overlays.signed)[None])),
    )


def under_first_map(overlays: Overlays, view: View) -> bytes:
    """The view's first picture, grey, under its first map: a JPEG file."""
    from PIL import Image

    lengths = {axis.name: axis for axis in overlays.axes}
    number = 0
    for name in view.along:
        number = number * len(lengths[name].labels) + lengths[name].start
    with Image.open(io.BytesIO(view.pictures[number])) as file:
        picture = file.convert("L").convert("RGBA")
    colours = coloured(_first(overlays, view.values), limit_of(overlays), signed=overlays.signed)
    colours[..., 3] = (colours[..., 3] * _OPACITY).astype(np.uint8)
    size = (round(picture.width * view.reach[1]), round(picture.height * view.reach[0]))
    layer = Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)
    picture.alpha_composite(layer.crop((0, 0, *picture.size)))
    return jpeg(np.asarray(picture.convert("RGB")), largest=max(picture.size), quality=88)


def _is_clipped(overlays: Overlays) -> bool:
    return max(_largest(view.values) for view in overlays.views) > limit_of(overlays)


def _largest(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.abs(finite).max()) if finite.size else 0.0


def _quantised(values: np.ndarray, peak: float) -> np.ndarray:
    finite = np.isfinite(values)
    whole = np.round(np.where(finite, values, 0) / peak * 32767)
    return np.where(finite, whole, MISSING).astype("<i2")
