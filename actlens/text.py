"""Words for messages and reports: what files say made fit to show, and names that were meant."""

import difflib
import unicodedata
from collections.abc import Iterable


def clean_text(text: object, *, limit: int = 200, keep_lines: bool = False) -> str:
    """The text without control, formatting and unassigned characters, cut to `limit`.

    Whatever a file says in words (tasks, joint names, a checkpoint's keys) passes through here
    before it is shown: a terminal then meets no escape sequence and a report no reversed text.

    Args:
        text: anything; what is no text is shown as `str` shows it.
        limit: the largest number of characters, an ellipsis for the rest included.
        keep_lines: leave line breaks and runs of spaces; otherwise the text becomes one line.
    """
    kept: list[str] = []
    for character in str(text):
        if character.isspace():
            character = "\n" if keep_lines and character == "\n" else " "
            if not keep_lines and kept[-1:] in ([], [" "]):
                continue
        elif unicodedata.category(character)[0] == "C":
            continue
        kept.append(character)
        if len(kept) == limit + 2:  # enough to know that it must be cut; files may say megabytes
            break
    short = "".join(kept) if keep_lines else "".join(kept).rstrip()
    return short if len(short) <= limit else short[: limit - 1] + "…"


def quoted(text: object, limit: int = 120) -> str:
    """The text in quotes, with control characters escaped and at most `limit` characters long.

    For everything that a file says and a message repeats: a key may hold terminal commands.
    """
    text = str(text)
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def listed(names: Iterable[object], limit: int = 5) -> str:
    """The names quoted and joined by commas, the rest of a long list counted."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(quoted(name) for name in names[:limit]) + rest


def did_you_mean(name: str, known: Iterable[str], *, most: int = 3) -> str:
    """` Did you mean 'a' or 'b'?` for the `most` closest known names, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=most, cutoff=0.5)
    return f" Did you mean {' or '.join(map(quoted, close))}?" if close else ""
