"""Files that are whole or absent, whatever happens to the process that writes them."""

import os
import secrets
import time
from pathlib import Path

_SCRAP = ".part"
_OLD = 3600.0
"""Seconds after which a file that was never finished is nobody's any more."""


def write_whole(path: Path, content: bytes) -> None:
    """Put content at a path: the old file, or none, stays there until all of it is on the disk.

    Raises:
        OSError: if the disk is full or the folder cannot be written; the old file is untouched.
    """
    scrap = _written_beside(path, content)
    try:
        scrap.replace(path)
    except BaseException:
        scrap.unlink(missing_ok=True)
        raise


def write_first(path: Path, content: bytes) -> bool:
    """Put content at a path unless somebody else was first; whether it is ours that lies there.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """
    scrap = _written_beside(path, content)
    try:
        os.link(scrap, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links: two at once would both write the same run
        if path.exists():
            return False
        scrap.replace(path)
        return True
    finally:
        scrap.unlink(missing_ok=True)
    return True


def remove_scraps(folder: Path) -> None:
    """Remove what killed processes left half written, but nothing that may still be in writing."""
    for scrap in folder.glob(f".*{_SCRAP}"):
        try:
            if time.time() - scrap.stat().st_mtime > _OLD:
                scrap.unlink()
        except FileNotFoundError:  # finished or removed by another process meanwhile
            continue


def _written_beside(path: Path, content: bytes) -> Path:
    """A new file in the same folder (so that moving it is one step), on the disk and not only in
    memory: else a power cut could leave the name without the content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scrap = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_SCRAP}")
    try:
        with scrap.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        scrap.unlink(missing_ok=True)
        raise
    return scrap
