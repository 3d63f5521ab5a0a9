"""Pixels -> small picture files, and files -> data URIs."""

import io
from base64 import b64encode

import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup

from actlens.errors import ConfigError

_KINDS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


def jpeg(pixels: UInt8[np.ndarray, "h w 3"], *, largest: int = 320, quality: int = 82) -> bytes:
    """A picture as a JPEG file, for a report.

    Args:
        largest: longer sides are scaled down to it.
        quality: of JPEG, 1 to 95.
    """
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=quality, optimize=True)
    return stream.getvalue()


def png(pixels: UInt8[np.ndarray, "h w channel"]) -> bytes:
    """A picture (RGB or RGBA) as a PNG file, without loss."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def picture_uri(image: bytes) -> Markup:
    """A PNG or JPEG file as a data URI.

    Raises:
        ConfigError: if the bytes are neither.
    """
    for start, kind in _KINDS.items():
        if image.startswith(start):
            return _uri(kind, image)
    raise ConfigError(f"A page's pictures are PNG or JPEG files; this one starts {image[:8]!r}.")


def film_uri(mp4: bytes) -> Markup:
    """An MP4 file as a data URI.

    Raises:
        ConfigError: if the bytes are none.
    """
    if mp4[4:8] != b"ftyp":
        raise ConfigError(f"A page's films are MP4 files; this one starts {mp4[:8]!r}.")
    return _uri("video/mp4", mp4)


def _uri(kind: str, content: bytes) -> Markup:
    # Base64 has no character that HTML could take for anything else.
    return Markup(f"data:{kind};base64,{b64encode(content).decode()}")
