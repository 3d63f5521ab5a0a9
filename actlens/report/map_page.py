"""A film of maps as an HTML report: the film, and maps to look into with a slider over frames."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from actlens.page import Axis, Bars, Block, Film, Overlays, Page, Section, View, Words, jpeg
from actlens.report.map_film import MapFilm
from actlens.scene import Scene

MOST = 20
"""Frames whose maps can be looked into: each adds one small picture a camera to the page."""

_READING = {
    False: "Attention is where the network looks, not what it acts on: a token can be looked at "
    "and bring nothing. Hold it against the film that `python -m experiments.film patching` makes.",
    True: "A token's share is what it alone brings back of this frame's action in the other "
    "scene's run. Tokens matter where the two scenes differ: where the cube is, and where it is "
    "in the other scene. Shares need not add up; where the two actions are alike none is defined.",
}


def looked_into(film: MapFilm, most: int = MOST) -> tuple[int, ...]:
    """Positions in `film.frames` of those that the page has a slider over, evenly apart."""
    n = len(film.frames)
    return tuple(sorted({round(at) for at in np.linspace(0, n - 1, min(n, most))}))


def map_page(
    film: MapFilm,
    mp4: bytes,
    scenes: Iterable[Scene],
    *,
    facts: Sequence[tuple[str, str]],
    origin: Mapping[str, Any],
) -> Page:
    """The report of one film.

    Args:
        mp4: the film's file.
        scenes: of the frames that are `looked_into`, in their order.
        facts: the lines that identify the run.
        origin: its provenance.
    """
    chosen = [film.frames[at] for at in looked_into(film)]
    seen = list(scenes)
    blocks: list[Block] = [Film(mp4, f"{film.title}; one scale of colours in all pictures")]
    config, stride = film.tokens.config, film.tokens.stride
    views = []
    for camera in config.cameras:
        rows, columns = config.grid(camera)
        views.append(
            View(
                camera.name,
                np.stack([film.grid(one, camera.name) for one in chosen]),
                tuple(jpeg(scene.picture(camera.key)) for scene in seen),
                along=("frame",),
                reach=(rows * stride / camera.height, columns * stride / camera.width),
                first_token=film.tokens.camera(camera.name).start,
            )
        )
    if views:
        names = tuple(film.frames[0].bars)
        overlays = Overlays(
            "Frame by frame",
            tuple(views),
            (Axis("frame", tuple(str(one.frame) for one in chosen)),),
            Bars(names, np.array([[one.bars[name] for name in names] for one in chosen])),
            unit=film.label,
            signed=film.diverging,
            limit=film.scale.limit,
        )
        blocks.append(Section("Look into it", (overlays,)))
    return Page(
        "Maps over an episode",
        question=film.title,
        facts=tuple(facts),
        blocks=tuple(blocks),
        command=str(origin.get("command", "")),
        methods=(Words(_READING[film.diverging]),),
        provenance=origin,
    )
