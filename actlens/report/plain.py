"""Text from files made safe to show."""

import unicodedata

_LIMIT = 2000


def plain(text: str, limit: int = _LIMIT) -> str:
    """The text without control and formatting characters, at most `limit` characters long.

    A checkpoint's key may hold terminal commands or direction overrides; line breaks stay.
    """
    kept = "".join(
        character
        for character in text[: limit + 1]
        if character == "\n" or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co"}
    )
    return kept if len(text) <= limit else kept[: limit - 1] + "…"
