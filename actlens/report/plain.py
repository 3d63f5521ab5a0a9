"""Text from files made safe to show."""

from actlens.text import clean_text


def plain(text: object, limit: int = 2000) -> str:
    """The text without control and formatting characters, at most `limit` characters long.

    Line breaks stay: a finding's advice may have several lines.
    """
    return clean_text(text, limit=limit, keep_lines=True)
