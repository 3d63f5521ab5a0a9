"""Frames and console reports as blocks, values as they are packed, and the file that is written."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from page_parts import HOSTILE, camera_picture, overlays, page_of
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table as RichTable
from rich.text import Text
from rich.tree import Tree

from actlens.errors import ConfigError
from actlens.page import (
    Axis,
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
    blocks_html,
    from_rich,
    jpeg,
    render,
    table_of,
    write_page,
)
from actlens.page.packing import MISSING, pack
from actlens.report.styles import BAD, GOOD, NOTE, WARNING

# ── frames ───────────────────────────────────────────────────────────────────────────────────────


def test_an_interval_stands_behind_its_figure():
    frame = pd.DataFrame(
        {"hook": ["a", "b"], "share": [0.5, np.nan], "share_low": [0.25, np.nan],
         "share_high": [0.75, np.nan], "n_low": [3, 4]}
    )  # fmt: skip
    table = table_of(frame, names={"share": "restored"}, about={"share": "of the difference"})
    assert [column.name for column in table.columns] == ["hook", "restored", "n_low"]
    assert [column.numeric for column in table.columns] == [False, True, True]
    assert table.columns[1].about == "of the difference"
    assert table.groups[0].rows == (("a", "0.500 (0.250…0.750)", "3"), ("b", "", "4"))


def test_a_long_frame_is_cut_and_says_so():
    table = table_of(pd.DataFrame({"n": range(1200)}), caption="All.", most=10)
    assert table.n_rows == 10
    assert table.caption == "All. The first 10 of 1,200 rows."


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.1234, 1.5], ["0.123", "1.500"]),
        ([123.4567, 0.5], ["123", "0"]),
        ([1e-5, 2e-5], ["1e-05", "2e-05"]),
        (pd.array([1, None], dtype="Int64"), ["1", ""]),
        ([True, False], ["True", "False"]),
        (["x", None], ["x", ""]),
    ],
    ids=["shares", "large", "tiny", "whole", "truth", "words"],
)
def test_how_numbers_are_written(values, wanted):
    table = table_of(pd.DataFrame({"value": values}))
    assert [row[0] for row in table.groups[0].rows] == wanted


def test_an_empty_frame_is_a_table_without_rows():
    assert table_of(pd.DataFrame({"a": []})).n_rows == 0


# ── console reports ──────────────────────────────────────────────────────────────────────────────


def test_a_console_report_becomes_blocks_in_its_order():
    table = RichTable(title=Text("Ranked"), caption=Text("all of them"))
    table.add_column("hook")
    table.add_column("share", justify="right")
    table.add_column("q", justify="right")
    table.add_row(Text("[top] is no markup"), "0.5", "")
    table.add_row(Text("others", style="bold"))
    table.add_row("x", "1", "2", style="dim")
    table.add_row(Text("  and more of x", style="dim"))
    grid = RichTable.grid()
    grid.add_column()
    grid.add_column()
    grid.add_row("policy", Text("so101"))
    report = Group(
        Panel(grid, title="a title"), table, Text(), Text("words"), Text("  runs/a.csv"),
        Text("  python -m experiments.x   again"), "last",
    )  # fmt: skip
    section, found, words, lines, last = from_rich(report)
    assert section == Section("a title", (Facts((("policy", "so101"),)),))
    assert found == Table(
        (Column("hook"), Column("share", numeric=True), Column("q", numeric=True)),
        (
            Rows((("[top] is no markup", "0.5", ""),)),
            Rows(
                (
                    (
                        (Run("x", Tone.DIM), Run("\n"), Run("  and more of x", Tone.DIM)),
                        (Run("1", Tone.DIM),),
                        (Run("2", Tone.DIM),),
                    ),
                ),
                (Run("others", strong=True),),
            ),
        ),
        title="Ranked",
        caption="all of them",
    )
    assert words == Words("words")
    assert lines == Lines(("runs/a.csv", "python -m experiments.x   again"))
    assert last == Words("last")


@pytest.mark.parametrize(
    ("style", "tone"),
    [
        pytest.param(style, tone, id=tone.value)
        for style, tone in (
            (GOOD, Tone.GOOD), (BAD, Tone.BAD), (WARNING, Tone.WARNING), (NOTE, Tone.NOTE),
            ("dim", Tone.DIM),
        )
    ],
)  # fmt: skip
def test_the_consoles_colours_keep_their_meaning(style, tone):
    (whole,) = from_rich(Text("x", style=style))
    assert whole == Words((Run("x", tone),))
    (part,) = from_rich(Text.assemble("a ", ("x", f"bold {style}")))
    assert part == Words((Run("a "), Run("x", tone, strong=True)))


def test_what_is_unknown_is_shown_as_printed():
    tree = Tree("root")
    tree.add("leaf")
    (words,) = from_rich(tree)
    console = Console(width=100)
    with console.capture() as printed:
        console.print(tree)
    assert words.text == "\n".join(line.rstrip() for line in printed.get().strip().splitlines())


# ── maps ─────────────────────────────────────────────────────────────────────────────────────────


def test_packed_values_are_the_values_to_a_thirty_thousandth_of_the_largest():
    block = overlays()
    packed = pack(block)
    about = json.loads(packed.about)
    whole = np.frombuffer(base64.b64decode(packed.values), "<i2")
    for view, told in zip(block.views, about["views"], strict=True):
        found = whole[told["offset"] :][: view.values.size].reshape(view.values.shape)
        assert ((found == MISSING) == np.isnan(view.values)).all()
        values = np.where(found == MISSING, np.nan, found / 32767 * about["peak"])
        assert np.allclose(values, view.values, atol=about["peak"] / 60_000, equal_nan=True)
    bars = whole[about["bars"]["offset"] :] / 32767 * about["peak"]
    assert np.allclose(bars, block.bars.values.ravel(), atol=about["peak"] / 60_000)


def test_the_scale_is_that_of_the_pictures_or_as_asked():
    assert pack(overlays()).ticks == pytest.approx((-1.65, -0.4125, 0, 0.4125, 1.65))
    assert not pack(overlays()).clipped
    assert pack(replace(overlays(), limit=0.5)).clipped
    values = np.zeros((1, 2))
    flat = Overlays("nothing", (View("top", values, (camera_picture(),)),))
    assert pack(flat).ticks == (0, 0.25, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.zeros((2, 1, 2))}, "leading dimensions"),
        ({"values": np.zeros((1, 2))}, "leading dimensions"),
        ({"pictures": ()}, "0 pictures"),
        ({"along": ("depth",)}, "takes 3"),
        ({"along": ("joint",)}, "follow"),
    ],
    ids=["another length", "an axis missing", "no picture", "pictures missing", "unknown axis"],
)
def test_views_that_do_not_fit_are_refused(changes, message):
    view = {"name": "top", "values": np.zeros((3, 1, 2)), "pictures": (camera_picture(),)} | changes
    with pytest.raises(ConfigError, match=message):
        Overlays("maps", (View(**view),), axes=(Axis("depth", ("a", "b", "c")),))


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="2 columns; a row has 1"):
        Table((Column("a"), Column("b")), (Rows((("x",),)),))


@pytest.mark.parametrize("block", [Picture(b"GIF89a", "x"), Film(b"RIFF0000", "x")], ids=type)
def test_files_of_another_kind_are_refused(block):
    with pytest.raises(ConfigError, match="files; this one starts"):
        render(Page("x", blocks=(block,)))


def test_pictures_are_scaled_down():
    import io

    from PIL import Image

    picture = jpeg(np.zeros((480, 640, 3), np.uint8))
    assert Image.open(io.BytesIO(picture)).size == (320, 240)


# ── the file ─────────────────────────────────────────────────────────────────────────────────────


class Seen(HTMLParser):
    """The tags of a page and the values of attributes that fetch."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.fetched = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        names = ("src", "href", "data-pictures", "poster", "action", "srcset")
        self.fetched += [v for name, value in attrs if name in names for v in (value or "").split()]


def test_nothing_is_fetched():
    seen = Seen(render(page_of()))
    assert seen.fetched
    assert all(address.startswith("data:") for address in seen.fetched)
    assert "link" not in seen.tags
    assert "iframe" not in seen.tags


def test_the_policy_names_the_script_and_the_style_by_their_hashes():
    html = render(page_of())
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, flags=re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in html
    assert "default-src 'none'" in html
    assert "unsafe" not in html


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_adds_no_tag_and_leaves_no_control_character(name):
    tags = lambda html: sorted(Seen(html).tags)
    assert tags(render(page_of(HOSTILE[name]))) == tags(render(page_of("plain")))
    fragments = (blocks_html(page_of(text).blocks) for text in (HOSTILE[name], "plain"))
    assert tags(next(fragments)) == tags(next(fragments))
    html = render(page_of(HOSTILE[name]))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)
    assert not re.search(r"\\u00[01]|\\u202e", html)  # nor hidden in JSON


def test_a_page_of_64_pairs_stays_small(tmp_path):
    n, generator = 64, np.random.default_rng(0)
    noisy = lambda: jpeg(generator.integers(60, 200, (240, 320, 3)).astype(np.uint8), largest=160)
    views = tuple(
        View(name, generator.normal(size=(n, 1, 4, 2, 8, 10)),
             tuple(noisy() for _ in range(2 * n)), along=("pair", "picture"))
        for name in ("top", "side")
    )  # fmt: skip
    axes = (
        Axis("pair", tuple(map(str, range(n)))),
        Axis("picture", ("clean", "corrupt"), ordered=False),
        Axis("depth", tuple("0123")),
        Axis("direction", ("denoise", "noise"), ordered=False),
    )
    page = Page("64 pairs", blocks=(Overlays("shares", views, axes),))
    assert write_page(tmp_path / "report.html", page).stat().st_size < 5e6


def test_a_page_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "runs" / "report.html"
    write_page(path, Page("first"))

    def full_disk(self, target):
        raise OSError("no space left")

    monkeypatch.setattr(type(path), "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_page(path, Page("second"))
    assert "first" in path.read_text()
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_fragment_has_no_script():
    html = blocks_html([overlays(), table_of(pd.DataFrame({"a": [1]}))])
    assert "<script" not in html
    assert "data-values" not in html
    assert html.count("data:image/jpeg") == 2
