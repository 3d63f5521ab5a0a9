"""Reports in a real browser: quiet, alone, alive, readable on a telephone, and safe."""

import re

import numpy as np
import pytest
from page_parts import HOSTILE, overlays, page_of

from actlens.page import Page, blocks_html, render, rendering, table_of
from actlens.page.colours import coloured

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
PIXELS = """canvas => [...canvas.getContext('2d')
    .getImageData(0, 0, canvas.width, canvas.height).data]"""


def canvas(tab, number=0):
    """The colours of a map as they are drawn, `row col 4`."""
    found = tab.locator("canvas").nth(number)
    rows, cols = int(found.get_attribute("height")), int(found.get_attribute("width"))
    return np.array(found.evaluate(PIXELS)).reshape(rows, cols, 4)


def set_axis(tab, number, value):
    """Move a slider to a value as a user's hand does."""
    tab.locator(".axis input").nth(number).fill(str(value))


@pytest.fixture
def shown(open_page):
    return open_page(render(page_of("plain")))


def test_a_page_opens_without_errors_and_asks_for_nothing(shown):
    tab, seen = shown
    tab.wait_for_load_state("networkidle")
    assert seen.errors == []
    assert seen.outside() == []
    broken = "() => [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert tab.evaluate(broken) == 0


def test_its_policy_forbids_requests_even_to_its_own_script(shown):
    tab, seen = shown
    tab.evaluate("""() => { const image = new Image(); image.src = 'https://example.invalid/x.png';
        document.body.append(image); }""")
    assert any("Content Security Policy" in text for text in seen.errors)


@pytest.mark.parametrize("signed", [False, True], ids=["positive", "signed"])
def test_the_script_draws_the_colours_that_python_computes(open_page, signed):
    block = overlays(signed=signed)
    tab, _ = open_page(render(Page("maps", blocks=(block,))))
    limit = float(np.abs(block.views[0].values).max())
    for depth in range(3):
        set_axis(tab, 0, depth)
        wanted = coloured(block.views[0].values[depth, 0], limit, signed=signed)
        apart = np.abs(canvas(tab) - wanted)
        assert apart[..., 3].max() <= 1
        # A canvas keeps colours multiplied by their opacity: faint ones come back coarsely.
        assert (apart[..., :3] * wanted[..., 3:]).max() <= 2 * 255


def test_a_slider_changes_the_map_and_a_list_too(shown):
    tab, _ = shown
    first = canvas(tab)
    set_axis(tab, 0, 2)
    second = canvas(tab)
    assert (first != second).any()
    assert tab.locator(".axis output").first.text_content() == "third"
    tab.locator(".axis select").select_option(label="noise")
    assert (canvas(tab) != second).any()
    tab.locator(".axis select").select_option(label="denoise")
    set_axis(tab, 0, 0)
    assert (canvas(tab) == first).all()


def test_pictures_follow_their_axis_and_no_other(shown):
    tab, _ = shown
    source = lambda i: tab.locator(".stage img").nth(i).get_attribute("src")
    before = source(0), source(1)
    set_axis(tab, 0, 1)
    assert source(0) == before[0]
    assert source(1) != before[1]
    tab.locator(".axis select").select_option(label="noise")
    after = source(1)
    set_axis(tab, 0, 0)
    assert source(1) == before[1] != after


def test_a_missing_value_is_drawn_as_nothing(shown):
    tab, _ = shown
    assert canvas(tab, 1)[0, 1, 3] == 0
    tab.locator(".stage").nth(1).hover(position={"x": 350, "y": 5})
    assert tab.locator(".readout").text_content().strip().startswith(f"side[0,1] · {DASH}")


def test_the_pointer_shows_the_tokens_name_and_value(shown):
    tab, _ = shown
    stage = tab.locator(".stage").first
    box = stage.bounding_box()
    stage.hover(position={"x": box["width"] * 0.5, "y": box["height"] * 0.75})
    readout = lambda: tab.locator(".readout").text_content().strip()
    assert readout() == f"plain[1,1] · token 6 · {MINUS}0.460 share"
    set_axis(tab, 0, 1)  # the pointed token stays, its value follows the slider
    assert readout() == "plain[1,1] · token 6 · 0.540 share"
    assert tab.locator(".profile").count() == 1


def test_arrow_keys_reach_every_token(shown):
    tab, _ = shown
    tab.locator(".stage").first.focus()
    readout = tab.locator(".readout")
    assert readout.text_content().strip().startswith("plain[0,0]")
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown"):
        tab.keyboard.press(key)
    assert readout.text_content().strip().startswith("plain[1,2]")
    tab.keyboard.press("Escape")
    assert "arrow keys" in readout.text_content()


def test_a_finger_reaches_a_token(open_page):
    tab, _ = open_page(render(page_of()), width=390, has_touch=True)
    stage = tab.locator(".stage").first
    stage.scroll_into_view_if_needed()
    stage.tap(position={"x": 5, "y": 5})
    assert tab.locator(".readout").text_content().strip().startswith("plain[0,0]")


def test_the_map_can_fade_and_take_its_own_scale(shown):
    tab, _ = shown
    tab.locator(".opacity").fill("10")
    assert tab.locator("canvas").first.evaluate("c => getComputedStyle(c).opacity") == "0.1"
    high = tab.locator(".ticks span").last
    assert high.text_content() == "1.65"
    tab.locator(".own").check()
    assert high.text_content() == "0.500"


def test_bars_of_tokens_that_are_no_pixels(shown):
    tab, _ = shown
    rows = tab.locator(".bars tr")
    assert rows.all_text_contents() == ["plain0.250", f"state{MINUS}0.500"]
    width = lambda i: float(rows.nth(i).locator("rect").get_attribute("width"))
    assert width(1) == pytest.approx(2 * width(0), rel=1e-3)


def cells(tab, column, table=0):
    found = tab.locator("table.sortable").nth(table).locator(f"tbody td:nth-child({column + 1})")
    return found.all_text_contents()


def sorted_page():
    import pandas as pd

    frame = pd.DataFrame(
        {
            "name": ["head 10", "head 9", "a", "b", "c"],
            "share": ["0.84 (0.82…0.86)", "-0.30 (-0.4…-0.2)", "1,024", f"{MINUS}7", "12 %"],
            "p": [".002", "<.001", "", "-", ".5"],
        }
    )
    return render(Page("tables", blocks=(table_of(frame, title="all"),)))


def test_a_click_sorts_numbers_as_numbers_and_missing_ones_last(open_page):
    tab, _ = open_page(sorted_page())
    button = lambda name: tab.get_by_role("button", name=name, exact=True)
    head = lambda name: tab.get_by_role("columnheader", name=name)
    original = cells(tab, 1)
    button("share").click()
    assert head("share").get_attribute("aria-sort") == "descending"
    assert cells(tab, 1) == ["1,024", "12 %", "0.84 (0.82…0.86)", "-0.30 (-0.4…-0.2)", f"{MINUS}7"]
    button("share").click()
    assert cells(tab, 1)[0] == f"{MINUS}7"
    button("share").click()
    assert head("share").get_attribute("aria-sort") == "none"
    assert cells(tab, 1) == original
    for wanted in ([".5", ".002", "<.001"], ["<.001", ".002", ".5"]):
        button("p").click()
        assert cells(tab, 2)[:3] == wanted
        assert {*cells(tab, 2)[3:]} == {"", "-"}


def test_the_keyboard_sorts_words_with_their_numbers(open_page):
    tab, _ = open_page(sorted_page())
    tab.get_by_role("button", name="name", exact=True).focus()
    tab.keyboard.press("Enter")
    assert cells(tab, 0) == ["a", "b", "c", "head 9", "head 10"]


def test_rows_stay_under_their_heading(open_page):
    from actlens.page import Column, Rows, Table

    groups = (Rows((("a", "1"), ("b", "2")), "first"), Rows((("c", "0"), ("d", "3")), "second"))
    table = Table((Column("name"), Column("n", numeric=True)), groups)
    tab, _ = open_page(render(Page("groups", blocks=(table,))))
    tab.get_by_role("button", name="n", exact=True).click()
    assert tab.locator("tbody tr").all_text_contents() == [
        "first",
        "b2",
        "a1",
        "second",
        "d3",
        "c0",
    ]


def test_a_telephone_need_not_scroll_sideways(open_page):
    long = "encoder.2.hook_resid_post[front_camera[12,19]]" * 3
    tab, _ = open_page(render(page_of(long)), width=390)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    tab.locator(".stage").first.focus()  # with a readout
    assert tab.evaluate("document.documentElement.scrollWidth") == 390


def test_the_command_is_copied(open_page):
    tab, seen = open_page(render(page_of()), permissions=["clipboard-read", "clipboard-write"])
    tab.get_by_role("button", name="copy").first.click()
    tab.get_by_role("button", name="copied").wait_for(timeout=2000)
    assert tab.evaluate("navigator.clipboard.readText()") == "python -m experiments.x plain"
    assert seen.errors == []


def test_light_and_dark(open_page):
    background = "getComputedStyle(document.body).backgroundColor"
    colours = {
        scheme: tuple(map(int, re.findall(r"\d+", tab.evaluate(background))))
        for scheme in ("light", "dark")
        for tab, _ in [open_page(render(page_of()), color_scheme=scheme)]
    }
    assert min(colours["light"]) > 200
    assert max(colours["dark"]) < 60


def test_a_page_can_be_read_without_scripts(open_page):
    tab, _ = open_page(render(page_of()), java_script_enabled=False)
    image = tab.locator(".stage img").first
    assert image.get_attribute("src").startswith("data:image/jpeg;base64,")
    assert "0.250" in tab.locator(".bars").text_content()


def test_a_notebooks_fragment_shows_the_first_map_as_a_picture(open_page):
    tab, seen = open_page(f"<!doctype html><body>{blocks_html([overlays(), *page_of().blocks])}")
    assert seen.errors == []
    assert seen.outside() == []
    assert tab.locator("script").count() == tab.locator("input").count() == 0
    assert tab.locator(".stage img").count() == 4


# ── hostile strings ──────────────────────────────────────────────────────────────────────────────


def rendered(text, *, escaped, policy):
    """The page as it would be without one of its two defences."""
    environment = rendering._environment()
    original, before = environment, rendering._environment
    if not escaped:
        environment = original.overlay(autoescape=False)
        environment.finalize = None
        rendering._environment = lambda: environment
    try:
        html = render(page_of(text))
    finally:
        rendering._environment = before
    if not policy:
        html, n = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
        assert n == 1
    return html


def ran(tab):
    tab.wait_for_timeout(50)
    return tab.evaluate("window.ran") == 1


RUNS = ["script", "image", "svg", "out of the title", "reversed", "a terminal's"]


@pytest.mark.parametrize("name", RUNS)
def test_without_defences_the_attack_works(open_page, name):
    tab, _ = open_page(rendered(HOSTILE[name], escaped=False, policy=False))
    assert ran(tab)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("defence", ["escaped", "policy"])
def test_each_defence_suffices_alone(open_page, name, defence):
    html = rendered(HOSTILE[name], escaped=defence == "escaped", policy=defence == "policy")
    tab, _ = open_page(html)
    assert not ran(tab)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_text(open_page, name):
    text = HOSTILE[name]
    tab, seen = open_page(render(page_of(text)))
    tab.locator(".stage").first.focus()
    set_axis(tab, 0, 1)
    set_axis(tab, 0, 0)
    assert not ran(tab)
    assert seen.errors == []
    assert seen.outside() == []
    visible = rendering._clean(text)
    assert tab.locator("h1").text_content() == visible
    assert tab.title() == f"{visible} · actlens".strip()
    assert tab.locator(".axis output").first.text_content() == visible[:200]
    assert visible in tab.locator(".readout").text_content()
    assert tab.locator(".sortable td").first.text_content() == visible
    assert "1337" not in tab.locator("body").inner_text()
    assert tab.locator("script").count() == 1
