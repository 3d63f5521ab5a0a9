"""Captions, rows and grids of pictures, in pixels: what films and panels are put together of."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from actlens.text import clean_text

Picture = UInt8[np.ndarray, "height width 3"]
Colour = tuple[int, int, int]

BACKGROUND: Colour = (24, 24, 24)
TEXT: Colour = (235, 235, 235)
QUIET: Colour = (165, 165, 165)
GAP = 8
"""Pixels between two tiles."""


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's sans serif, which has the letters of most languages."""
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def fitting(text: str, width: float, size: int) -> str:
    """One line of the text at a font size, cut where it would be wider than `width` pixels."""
    kept = clean_text(text)
    while kept and font(size).getlength(kept) > width:
        kept = kept[:-2].rstrip() + "…"
    return kept


def caption(width: int, lines: Sequence[str], *, size: int) -> Picture:
    """Lines of text on the background: the first bright, the others quiet; cut where too long."""
    step = size + size // 2
    picture = Image.new("RGB", (width, step * len(lines) + size // 3), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        colour = QUIET if number else TEXT
        draw.text((4, 2 + number * step), fitting(line, width - 8, size), colour, font(size))
    return np.asarray(picture)


def resized(picture: Picture, height: int, width: int) -> Picture:
    """The picture at another size."""
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def above(*pictures: Picture, gap: int = 0) -> Picture:
    """One above the other, left-aligned, on the background."""
    width = max(picture.shape[1] for picture in pictures)
    height = sum(picture.shape[0] for picture in pictures) + gap * (len(pictures) - 1)
    sheet, top = _sheet(height, width), 0
    for picture in pictures:
        sheet[top : top + picture.shape[0], : picture.shape[1]] = picture
        top += picture.shape[0] + gap
    return sheet


def beside(*pictures: Picture, gap: int = GAP) -> Picture:
    """One beside the other, aligned at the top, on the background."""
    height = max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] for picture in pictures) + gap * (len(pictures) - 1)
    sheet, left = _sheet(height, width), 0
    for picture in pictures:
        sheet[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1] + gap
    return sheet


def grid(tiles: Sequence[Picture], columns: int) -> Picture:
    """Tiles of one size in rows of `columns`."""
    rows = [beside(*tiles[at : at + columns]) for at in range(0, len(tiles), columns)]
    return above(*rows, gap=GAP)


def framed(picture: Picture, margin: int = GAP) -> Picture:
    """The picture within a margin; height and width even, as 4:2:0 video needs them."""
    height, width = (size + 2 * margin for size in picture.shape[:2])
    sheet = _sheet(height + height % 2, width + width % 2)
    sheet[margin : margin + picture.shape[0], margin : margin + picture.shape[1]] = picture
    return sheet


def _sheet(height: int, width: int) -> Picture:
    return np.full((height, width, 3), BACKGROUND, dtype=np.uint8)
