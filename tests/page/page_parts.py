"""Pages with everything in them, and strings that attack a page."""

import numpy as np

from actlens.page import (
    Axis,
    Bars,
    Beside,
    Column,
    Facts,
    Film,
    Lines,
    Overlays,
    Page,
    Picture,
    Rows,
    Run,
    Section,
    Table,
    Tone,
    View,
    Words,
    jpeg,
)

HOSTILE = {
    "script": "<script>window.ran = 1</script>",
    "image": "<img src=x onerror='window.ran = 1'>",
    "svg": "<svg onload='window.ran = 1'>",
    "out of an attribute": '"><img src=x onerror="window.ran = 1">',
    "out of single quotes": "'><img src=x onerror=window.ran=1>",
    "a handler": '" autofocus tabindex="1" onfocus="window.ran = 1" x="',
    "out of a script": "</script><script>window.ran = 1</script>",
    "out of the title": "</title><script>window.ran = 1</script>",
    "out of a style": "</style><script>window.ran = 1</script>",
    "out of a comment": "--><script>window.ran = 1</script>",
    "an address": "javascript:window.ran=1",
    "template code": "{{ 7 * 191 }}{% raw %}${7 * 191}",
    "reversed": "abc\u202e<script>window.ran = 1</script>",
    "a null": "<scr\0ipt>window.ran = 1</scr\0ipt>",
    "a terminal's": "\x1b]0;ran\x07\x1b[2J<script>window.ran = 1</script>",
    "refresh": '<meta http-equiv="refresh" content="0; url=https://example.invalid/">',
    "base": '<base href="https://example.invalid/">',
}


def film_bytes():
    """The start of an MP4 file; no browser plays it, and none needs to."""
    return b"\0\0\0\x18ftypisom\0\0\0\0isomiso2"


def camera_picture(seed=0, height=64, width=96):
    """A camera's picture with a red square somewhere."""
    pixels = np.full((height, width, 3), 120, np.uint8)
    top, left = np.random.default_rng(seed).integers(0, height - 16, 2)
    pixels[top : top + 12, left : left + 12] = (220, 40, 30)
    return jpeg(pixels)


def overlays(name="top", label="first", *, signed=True):
    """Two cameras of 2x3 and 2x2 tokens, a slider of three depths, a list of two directions.

    The values of the first camera are 100 * depth + 10 * direction + cell, in hundredths.
    """
    depth, direction, cell = np.arange(3), np.arange(2), np.arange(6)
    values = depth[:, None, None] * 100 + direction[:, None] * 10 + cell
    values = values.reshape(3, 2, 2, 3) / 100 - (0.5 if signed else 0)
    other = np.zeros((1, 1, 2, 2))
    other[..., 0, 1] = np.nan
    return Overlays(
        title=f"Share of {name}",
        axes=(
            Axis("depth", (label, "second", "third")),
            Axis("direction", ("denoise", "noise"), ordered=False),
        ),
        views=(
            View(name, values, (camera_picture(0),), first_token=2),
            View("side", other, tuple(map(camera_picture, range(3))), along=("depth",)),
        ),
        bars=Bars((label, "state"), np.array([0.25, -0.5]).reshape(1, 1, 2)),
        unit="share",
        signed=signed,
    )


def page_of(text="plain"):
    """A page with every kind of block, and the text wherever a text can stand."""
    table = Table(
        (Column(text, about=text), Column("share", numeric=True)),
        (Rows(((text, "0.1"), ((Run(text, Tone.BAD, strong=True),), "0.2")), heading=text),),
        title=text,
        caption=text,
    )
    return Page(
        title=text,
        question=text,
        facts=((text, text), ("colour", (Run(text, Tone.GOOD),))),
        blocks=(
            Section(text, (Words(text), overlays(text, text), table)),
            Section(text, (Lines((text, f"python -m {text}   {text}")),), folded=True),
            Facts(((text, text),)),
            Beside((Picture(camera_picture(), text, text), Film(film_bytes(), text))),
        ),
        command=f"python -m experiments.x {text}",
        methods=(Words(text),),
        provenance={text: text, "deeper": {text: [text, 1, None]}},
    )
