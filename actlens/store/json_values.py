"""Values of JSON files that anybody may have written, refused where they are not what is due."""

import re

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST = 2**53


def integer(value: object) -> int:
    """An integer that JSON holds without loss."""
    if type(value) is not int or abs(value) > _LARGEST:
        raise ValueError(f"{value!r} is not an integer")
    return value


def count(value: object) -> int:
    """A positive integer."""
    if integer(value) < 1:
        raise ValueError(f"{value!r} is not positive")
    return integer(value)


def sha256(value: object) -> str:
    """A SHA-256 in hexadecimal."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"{value!r} is not a SHA-256")
    return value


def text(value: object) -> str:
    """Text, refused if it holds anything that could not be shown."""
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{value!r} is not plain text")
    return value
