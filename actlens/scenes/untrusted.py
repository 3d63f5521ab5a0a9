"""What a dataset's files may say: plain text, and paths that stay inside the dataset's folder."""

import json
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from actlens.errors import SceneError, UnsafeFileError
from actlens.text import clean_text

MAX_JSON_BYTES = 64 * 2**20

_INTEGER_FORMAT = re.compile(r"(0?[1-9])?d?")


def checked_key(key: object, *, where: Path) -> str:
    """The key of a feature, refused rather than mended: checkpoints know it by this exact name.

    Raises:
        SceneError: if the key is no text, is empty, or holds characters that `clean_text` removes.
    """
    if not isinstance(key, str) or not key or clean_text(key) != key:
        raise SceneError(f"{where}: {clean_text(repr(key))} cannot name a feature; use plain text.")
    return key


def read_json(path: Path) -> dict[str, object]:
    """The object that a JSON file holds.

    Raises:
        SceneError: if the file is above 64 MiB, not JSON, or not an object.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise SceneError(f"{path} is larger than {MAX_JSON_BYTES} bytes: not a description.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise SceneError(f"{path} cannot be read as JSON: {clean_text(problem)}.") from problem
    if not isinstance(content, dict):
        raise SceneError(f"{path} holds a {type(content).__name__}, an object was expected.")
    return content


def fill_template(template: object, values: Mapping[str, int | str], *, where: Path) -> str:
    """A path template of `info.json` with its fields filled in.

    A template is data from whoever made the dataset. Only the plain fields in `values` are known:
    no attribute, no index, no conversion, and no format but that of an integer's width.

    Raises:
        UnsafeFileError: if the template asks for anything else.
    """
    shown = clean_text(repr(template))
    if not isinstance(template, str):
        raise UnsafeFileError(f"{where}: a path template must be text, got {shown}.")
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as problem:
        raise UnsafeFileError(f"{where}: {shown} is no path template: {problem}.") from None
    filled: list[str] = []
    for literal, field, spec, conversion in pieces:
        filled.append(literal)
        if field is None:
            continue
        if field not in values or conversion or not _INTEGER_FORMAT.fullmatch(spec or ""):
            raise UnsafeFileError(
                f"{where}: the path template {shown} asks for more than the fields "
                f"{', '.join(values)} as plain text or zero-padded integers; it was not used."
            )
        value = values[field]
        if spec and not isinstance(value, int):
            raise UnsafeFileError(f"{where}: the template {shown} formats text as an integer.")
        filled.append(format(value, spec or ""))
    return "".join(filled)


@dataclass(frozen=True)
class Folder:
    """A dataset's folder, out of which no file is read."""

    root: Path

    def file(self, relative: str) -> Path:
        """The existing file at a path that the dataset names, links followed.

        A snapshot in Hugging Face's cache is made of links into its repository's `blobs` folder,
        which therefore counts as inside.

        Raises:
            UnsafeFileError: if the path is absolute, climbs, or leads out of the folder by a link.
            SceneError: if there is no such file.
        """
        shown = clean_text(repr(relative))
        windows, posix = PureWindowsPath(relative), PurePosixPath(relative)
        if (
            posix.is_absolute()
            or windows.drive
            or windows.root
            or ".." in windows.parts
            or ".." in posix.parts
            or clean_text(relative, limit=4096) != relative
        ):
            raise UnsafeFileError(
                f"{self.root} names the file {shown}, which lies outside it; it was not opened."
            )
        try:
            path = (self.root / relative).resolve()
            inside = any(path.is_relative_to(home) for home in self._homes())
            exists = inside and path.is_file()
        except (OSError, RuntimeError) as problem:
            raise UnsafeFileError(
                f"{self.root}: {shown} cannot be followed: {clean_text(problem)}."
            ) from problem
        if not inside:
            raise UnsafeFileError(
                f"{self.root / relative} is a link that leads out of the dataset's folder; "
                "it was not opened."
            )
        if not exists:
            raise SceneError(f"{self.root / relative} is missing, though the dataset names it.")
        return path

    def _homes(self) -> tuple[Path, ...]:
        root = self.root.resolve()
        blobs = root.parent.parent / "blobs"
        # A `blobs` that is itself a link would open another door.
        if root.parent.name == "snapshots" and blobs.is_dir() and not blobs.is_symlink():
            return root, blobs
        return (root,)
