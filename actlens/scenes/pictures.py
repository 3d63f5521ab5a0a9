"""PNG and JPEG bytes -> pixels, without trusting their headers."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from actlens.errors import SceneError
from actlens.text import clean_text

if TYPE_CHECKING:
    from PIL.Image import Image


def picture_size(content: bytes, *, where: str) -> tuple[int, int]:
    """Height and width that a PNG or JPEG claims; nothing is decoded.

    Raises:
        SceneError: if the bytes are no such picture.
    """
    with _opened(content, where) as image:
        return image.height, image.width


def decode_picture(
    content: bytes, *, height: int, width: int, where: str
) -> UInt8[np.ndarray, "3 {height} {width}"]:
    """The RGB pixels of a PNG or JPEG picture of the given size.

    Raises:
        SceneError: if the bytes are no such picture; a wrong size is refused before decoding.
    """
    with _opened(content, where) as image:
        if image.size != (width, height) or image.mode != "RGB":
            raise SceneError(
                f"{where} holds a picture of {image.height}x{image.width} pixels in mode "
                f"{image.mode}; {height}x{width} in RGB were expected."
            )
        return np.array(np.asarray(image).transpose(2, 0, 1), order="C")


def encode_png(pixels: UInt8[np.ndarray, "3 h w"]) -> bytes:
    """The pixels as a PNG file, without loss."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(
        stream, format="PNG", optimize=True
    )
    return stream.getvalue()


@contextmanager
def _opened(content: bytes, where: str) -> Iterator["Image"]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            yield image
    except SceneError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as problem:
        raise SceneError(
            f"{where} holds a picture that cannot be decoded: {clean_text(problem)}."
        ) from problem
