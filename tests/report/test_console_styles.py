"""Reports are readable on light and on dark terminals: contrast by WCAG 2.2's formula."""

import re
from pathlib import Path

import pytest
from rich.color import ANSI_COLOR_NAMES, Color

from actlens.report import styles

ROOT = Path(__file__).parents[2]
COLOURS = {name: value for name, value in vars(styles).items() if name.isupper()}
LEAST = 3.8


def luminance(rgb):
    """WCAG 2.2, relative luminance of sRGB."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    lighter, darker = sorted((luminance(a), luminance(b)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_is_the_formulas():
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)) == 1


@pytest.mark.parametrize("name", sorted(COLOURS))
def test_every_colour_stands_out_from_black_and_from_white(name):
    rgb = [channel / 255 for channel in Color.parse(COLOURS[name]).get_truecolor()]
    assert contrast(rgb, (0, 0, 0)) >= LEAST
    assert contrast(rgb, (1, 1, 1)) >= LEAST


def test_a_terminals_own_yellow_would_not():
    assert contrast((205 / 255, 205 / 255, 0), (1, 1, 1)) < 3


def test_no_report_names_a_colour_of_its_own():
    names = "|".join(sorted(ANSI_COLOR_NAMES, key=len, reverse=True))
    used = re.compile(rf'style=f?"(?:[a-z ]*\b)?(?:{names})\b[^"]*"')
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for folder in ("actlens", "experiments")
        for path in (ROOT / folder).rglob("*.py")
        for match in used.finditer(path.read_text())
    ]
    assert found == []
