"""Reconstructed scenes as an HTML report: pictures, the console's tables, all rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import RenderableType

from actlens.page import Block, Page, Picture, Section, from_rich, table_of

_ALT = (
    "Rows of pictures by both cameras: real scenes, then what was drawn of them from each site; "
    "left by decoders fitted on demonstrations, right by decoders taught at other unseen places."
)
_ALL = {
    "state": "Quantities, every source",
    "pictures": "Pictures, every source",
    "cubes": "The cube in the drawings",
    "paired": "Beside each control",
}


def reconstruction_page(
    report: RenderableType,
    frames: Mapping[str, pd.DataFrame],
    *,
    picture: Path | None,
    origin: Mapping[str, Any],
) -> Page:
    """The report of one run.

    Args:
        report: `render_reconstruction`'s.
        frames: `Reconstruction.frames()`.
        picture: the file that `save_reconstructions` wrote; None if there is none.
        origin: the run's provenance.
    """
    blocks: list[Block] = []
    if picture is not None:
        shown = Picture(picture.read_bytes(), _ALT, "Scenes that the policy was not trained on.")
        blocks.append(Section("What is drawn", (shown,)))
    blocks.append(Section("What is held", from_rich(report)))
    tables = tuple(
        table_of(frames[name], title=title, folded=True)
        for name, title in _ALL.items()
        if len(frames[name])
    )
    return Page(
        "Reconstruction",
        question="what does the action vector hold?",
        blocks=tuple(blocks),
        command=str(origin.get("command", "")),
        methods=tables,
        provenance=origin,
    )
