"""A page as one HTML file, and blocks as a fragment for notebooks."""

import json
import os
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from actlens.page.blocks import Block, Lines, Page, Run, Styled
from actlens.page.packing import pack
from actlens.page.pictures import film_uri, picture_uri
from actlens.text import clean_text

_FILES = Path(__file__).with_name("templates")
_LONGEST = 20_000
_COMMAND = "python -m "


def render(page: Page) -> str:
    """The page as HTML: everything inside, nothing fetched, every string shown as text.

    Raises:
        ConfigError: if a picture is neither PNG nor JPEG, or a film no MP4.
    """
    script, style = _file("page.js"), _file("page.css")
    policy = (
        "default-src 'none'; img-src data:; media-src data:; "
        f"style-src 'sha256-{_hash(style)}'; script-src 'sha256-{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template("page.html")
        .render(
            page=page,
            script=Markup(script),
            style=Markup(style),
            policy=Markup(policy),
            provenance=_json(page.provenance),
        )
    )


def write_page(path: Path, page: Page) -> Path:
    """Write the page beside its place and move it there: a reader never meets half a page."""
    content = render(page)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def blocks_html(blocks: Sequence[Block]) -> str:
    """Blocks as a fragment of HTML for a notebook's `_repr_html_`.

    Notebooks that were not run here show no scripts: maps are pictures of what a page shows first,
    tables plain.
    """
    template = _environment().get_template("fragment.html")
    return template.render(blocks=tuple(blocks), style=Markup(_file("page.css")))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FILES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    environment.tests |= {
        kind.__name__.lower(): lambda block, kind=kind: isinstance(block, kind)
        for kind in get_args(Block)
    }
    environment.filters |= {
        "runs": runs_of,
        "pack": pack,
        "picture": picture_uri,
        "film": film_uri,
        "lines": lines_of,
        "number": digits,
    }
    return environment


def _clean(value: Any) -> Any:
    """What the template prints: text loses control characters, what was built here stays."""
    if isinstance(value, Markup):
        return value
    return clean_text(value, limit=_LONGEST, keep_lines=True) if isinstance(value, str) else value


def runs_of(text: Styled) -> tuple[Run, ...]:
    """Text as stretches of one look."""
    return (Run(text),) if isinstance(text, str) else text


def digits(value: float) -> str:
    """Three digits, as the page's script writes them."""
    if not np.isfinite(value):
        return "\N{EN DASH}"
    if value == 0:
        return "0"
    text = f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    return text if "e" in text else text.replace("-", "\N{MINUS SIGN}")


def lines_of(lines: Lines) -> list[tuple[str, str, bool]]:
    """Each line, what explains it, and whether it is a command."""
    parts = [line.strip().partition("   ") for line in lines.lines]
    return [(line, about.strip(), line.startswith(_COMMAND)) for line, _, about in parts]


def _json(provenance: Any) -> str:
    cleaned = _cleaned(provenance)
    return json.dumps(cleaned, indent=2, ensure_ascii=False, default=str) if cleaned else ""


def _cleaned(value: Any) -> Any:
    """Strings cleaned before JSON escapes what is in them."""
    match value:
        case str():
            return clean_text(value, limit=2000, keep_lines=True)
        case dict():
            return {clean_text(key): _cleaned(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_cleaned(entry) for entry in value]
        case _:
            return value


def _file(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    return b64encode(sha256(text.encode()).digest()).decode()
