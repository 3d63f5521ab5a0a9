"""Names for what is computed: the same question has the same key, on every machine and any day."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any


def canonical(content: Any) -> str:
    """JSON with sorted keys and no spaces: equal contents give equal text.

    Raises:
        ValueError: if a number is not finite.
        TypeError: if the content is not made of JSON's types.
    """
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def key_of(content: Any) -> str:
    """The SHA-256 of JSON content, in hexadecimal."""
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def source_hash(package: Path, *, without: Collection[str] = ()) -> str:
    """The SHA-256 of a package's Python source: what an installed version really computes.

    Args:
        package: its folder.
        without: modules and sub-packages of it that have no part in the computation.
    """
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[0] not in without:
            digest.update("/".join(parts).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def differences(ours: Any, theirs: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """(path, ours, theirs) of everything in which two JSON contents differ."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        found: list[tuple[str, Any, Any]] = []
        for key in sorted(ours.keys() | theirs.keys()):
            path = f"{where}.{key}" if where else str(key)
            found += differences(ours.get(key), theirs.get(key), path)
        return found
    return [] if ours == theirs else [(where, ours, theirs)]
