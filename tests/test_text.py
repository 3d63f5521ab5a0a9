"""What files say is shown as plain text, and a misspelt name as the one that was meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlens.text import clean_text, did_you_mean, listed, quoted


@given(st.text(), st.integers(1, 30), st.booleans())
def test_clean_text_is_short_printable_and_settled(text, limit, keep_lines):
    cleaned = clean_text(text, limit=limit, keep_lines=keep_lines)
    assert len(cleaned) <= limit
    assert all(line == "" or line.isprintable() for line in cleaned.split("\n"))
    assert clean_text(cleaned, limit=limit, keep_lines=keep_lines) == cleaned
    assert keep_lines or "\n" not in cleaned


def test_clean_text_keeps_words():
    assert clean_text(" lift \n the\tcube: 立方体 ") == "lift the cube: 立方体"
    assert clean_text("x" * 300) == "x" * 199 + "…"
    assert clean_text(ValueError("no\x1b[31m such\u202e file")) == "no[31m such file"


def test_clean_text_keeps_lines_where_asked():
    assert clean_text("two\n  lines\tof\r\x1b text", keep_lines=True) == "two\n  lines of  text"


def test_clean_text_does_not_read_on_after_the_cut():
    class Endless(str):
        def __iter__(self):
            while True:
                yield "x"

        def __str__(self):
            return self

    assert clean_text(Endless(), limit=5) == "xxxx…"


@pytest.mark.parametrize(
    ("name", "most", "hint"),
    [
        ("hook_in", 3, " Did you mean 'hook_inn' or 'hook_input' or 'hook_out'?"),
        ("hook_in", 1, " Did you mean 'hook_inn'?"),
        ("elbow", 3, ""),
    ],
)
def test_the_closest_names_are_suggested(name, most, hint):
    known = ["hook_out", "hook_inn", "hook_input", "embed.pos"]
    assert did_you_mean(name, known, most=most) == hint


def test_suggestions_and_lists_quote_what_they_repeat():
    assert did_you_mean("state", ["state\x1b[0m"]) == r" Did you mean 'state\x1b[0m'?"
    assert quoted("x" * 99, limit=5) == "'xxxx…'"
    assert listed(["a\n", "b", "c"], limit=2) == r"'a\n', 'b' and 1 more"
