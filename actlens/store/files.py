"""Writing that no crash can tear: a file has its name only once its content is on the disk.

Everything that this package changes on a disk, it changes here.
"""

import os
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from actlens.checkpoints.weights import sha256_of
from actlens.store.errors import StoreError

LOCK = ".lock"
_UNFINISHED = ".unfinished"
# A store may come from somebody else: a link in it must not lead writing out of the folder.
_OURS = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW


@contextmanager
def _naming(path: Path) -> Generator[None]:
    """Turn what the system refuses into a StoreError that names the file."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror or error}).") from error


def unfinished(path: Path) -> Path:
    """Where a file is written before it gets its name; the next attempt writes over it."""
    return path.with_name(f".{path.name}{_UNFINISHED}")


def holds_nothing(folder: Path) -> bool:
    """Whether there is no folder, or nothing in it but what an attempt leaves that was cut off."""
    if not folder.is_dir():
        return not folder.exists()
    return all(p.name == LOCK or p.name.endswith(_UNFINISHED) for p in folder.iterdir())


def make_folder(folder: Path) -> None:
    """The folder, and those above it.

    Raises:
        StoreError: if it cannot be made.
    """
    with _naming(folder):
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103  through `os`, as everything here


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Keep other writers out of the folder; the system ends the lock with the process.

    Raises:
        StoreError: if another process is writing.
    """
    import fcntl

    with _naming(folder / LOCK):
        descriptor = os.open(folder / LOCK, _OURS, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"{folder}: another process is writing to this store; wait, or write to another "
                "folder."
            ) from None
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class NewFile:
    """A file being written, under its unfinished name."""

    path: Path
    """The name that it will have."""
    descriptor: int

    def write(self, content: memoryview | bytes, offset: int) -> None:
        """Put bytes at an offset.

        Raises:
            StoreError: if the disk is full or fails.
        """
        with _naming(self.path):
            left = memoryview(content)
            while left.nbytes:
                written = os.pwrite(self.descriptor, left, offset)
                left, offset = left[written:], offset + written


@contextmanager
def new_file(path: Path) -> Generator[NewFile]:
    """A file that an exception in the block removes; `settle` and `publish` come after it."""
    with _naming(path):
        descriptor = os.open(unfinished(path), _OURS | os.O_TRUNC, 0o644)
    try:
        yield NewFile(path, descriptor)
    except BaseException:
        os.unlink(unfinished(path))  # noqa: PTH108
        raise
    finally:
        os.close(descriptor)


def settle(path: Path) -> str:
    """Wait until the content of a new file is on the disk; its SHA-256.

    Raises:
        StoreError: if the disk is full or fails.
    """
    with _naming(path), ThreadPoolExecutor(1) as pool:
        digest = pool.submit(sha256_of, unfinished(path))  # while the disk works
        descriptor = os.open(unfinished(path), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return digest.result()


def discard(path: Path) -> None:
    """Remove a file that was written and is not to be published."""
    with _naming(path):
        os.unlink(unfinished(path))  # noqa: PTH108


def publish(path: Path) -> None:
    """Give a settled file its name, in one step, for good.

    Raises:
        StoreError: if the disk fails.
    """
    with _naming(path):
        os.replace(unfinished(path), path)  # noqa: PTH105
        _settle_folder(path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """A file of this content, whole or not at all.

    Raises:
        StoreError: if it cannot be written.
    """
    with new_file(path) as file:
        file.write(content, 0)
    settle(path)
    publish(path)


def append_line(path: Path, line: bytes) -> None:
    """Add a line to a file; what a crash left of an unfinished one is cut off first.

    Raises:
        StoreError: if it cannot be written.
    """
    with _naming(path):
        is_new = not path.exists()
        descriptor = os.open(path, _OURS, 0o644)
        try:
            end = _end_of_last_line(descriptor)
            os.ftruncate(descriptor, end)
            left = memoryview(line + b"\n")
            while left.nbytes:
                written = os.pwrite(descriptor, left, end)
                left, end = left[written:], end + written
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            _settle_folder(path.parent)


def _end_of_last_line(descriptor: int, step: int = 2**16) -> int:
    """The length of the file without a last line that has no end."""
    end = os.lseek(descriptor, 0, os.SEEK_END)
    while end:
        start = max(0, end - step)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _settle_folder(folder: Path) -> None:
    """Wait until the names in the folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
