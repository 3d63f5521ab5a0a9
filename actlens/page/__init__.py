"""Self-contained HTML reports: one file, no network, every string shown as text.

page = Page(
    "Activation patching",
    question="which tokens carry the cube's position?",
    blocks=(Section("Where it sits", (Overlays(...), table_of(frame, title="all sites"))),),
    command="python -m experiments.patching",
)
write_page(folder / "report.html", page)

The page opens from a disk or an e-mail: pictures and films are inside, its content security policy
forbids every request and every script but its own, and it can be read without the script.
"""

from actlens.page.blocks import (
    Beside,
    Block,
    Column,
    Facts,
    Film,
    Lines,
    Page,
    Picture,
    Rows,
    Run,
    Section,
    Styled,
    Table,
    Tone,
    Words,
)
from actlens.page.frames import table_of
from actlens.page.from_rich import from_rich
from actlens.page.overlays import Axis, Bars, Overlays, View
from actlens.page.pictures import jpeg, png
from actlens.page.rendering import blocks_html, render, write_page

__all__ = [
    "Axis",
    "Bars",
    "Beside",
    "Block",
    "Column",
    "Facts",
    "Film",
    "Lines",
    "Overlays",
    "Page",
    "Picture",
    "Rows",
    "Run",
    "Section",
    "Styled",
    "Table",
    "Tone",
    "View",
    "Words",
    "blocks_html",
    "from_rich",
    "jpeg",
    "png",
    "render",
    "table_of",
    "write_page",
]
