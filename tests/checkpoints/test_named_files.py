"""Names in processor files stay inside the checkpoint's folder."""

import itertools
import os
import sys

import checkpoint_folders as folders
import pytest

from actlens.checkpoints import load_checkpoint
from actlens.checkpoints.files import inside
from actlens.errors import CheckpointError, UnsafeFileError

PARTS = [
    "..",
    "../..",
    "../../..",
    "/",
    "//",
    "\\",
    "..\\",
    "C:\\",
    "C:",
    "~/../..",
    "./..",
    "a/../..",
]
TARGETS = ["secret.safetensors", "etc/passwd", "x", "..", ".", "%2e%2e", "a\\b", "a/b"]
TRAVERSALS = sorted(
    {
        part + separator + target
        for part, separator, target in itertools.product(PARTS, ["", "/", "\\"], TARGETS)
    }
)


def test_there_are_two_hundred_ways_out():
    assert len(TRAVERSALS) >= 200


def test_no_traversal_is_opened(folder, tmp_path):
    """Each is refused, and an audit hook sees that Python opens nothing outside the folder."""
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes((folder / folders.PRE_STATE).read_bytes())
    opened = []
    watching = True

    def watch(event, arguments):
        if watching and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            opened.append(os.path.realpath(os.fsdecode(arguments[0])))

    sys.addaudithook(watch)
    allowed = str(folder.resolve()) + os.sep
    for name in TRAVERSALS:
        folders.edit_json(
            folder / folders.PRE,
            lambda content, name=name: content["steps"][3].update(state_file=name),
        )
        opened.clear()
        leaves = {"/", "\\", ":"} & set(name) or name in {".", ".."}
        with pytest.raises(UnsafeFileError if leaves else CheckpointError):
            load_checkpoint(folder)
        assert all(path.startswith(allowed) for path in opened), (name, opened)
    watching = False


def test_absolute_paths_are_refused(folder, tmp_path):
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes((folder / folders.PRE_STATE).read_bytes())
    folders.edit_json(
        folder / folders.PRE, lambda content: content["steps"][3].update(state_file=str(secret))
    )
    with pytest.raises(UnsafeFileError, match="without a path"):
        load_checkpoint(folder)


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    secret = tmp_path / "secret.safetensors"
    (folder / folders.PRE_STATE).rename(secret)
    (folder / folders.PRE_STATE).symlink_to(secret)
    with pytest.raises(UnsafeFileError, match="is a link that leaves"):
        load_checkpoint(folder)


def test_a_link_inside_the_folder_is_fine(folder):
    (folder / folders.PRE_STATE).rename(folder / "stats.safetensors")
    (folder / folders.PRE_STATE).symlink_to("stats.safetensors")
    assert load_checkpoint(folder).config.chunk == 5


def test_a_link_in_a_circle_is_refused(folder):
    (folder / folders.PRE_STATE).unlink()
    (folder / folders.PRE_STATE).symlink_to(folders.PRE_STATE)
    with pytest.raises(CheckpointError):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", [3, ["x"], {}, "", "a\0b", True])
def test_what_is_no_name_is_refused(name, folder):
    with pytest.raises(CheckpointError, match="a file name must be text"):
        inside(folder, name, named_by=folder / folders.PRE)


def test_the_hugging_face_cache_may_link_to_its_blobs(tmp_path):
    """Snapshots there are links to the blobs of the same repository, and nowhere else."""
    repository = tmp_path / "hub" / "models--someone--act"
    snapshot = repository / "snapshots" / ("0" * 40)
    folders.write_processors_layout(snapshot)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(repository / "blobs" / str(number))
        path.symlink_to(f"../../blobs/{number}")
    assert load_checkpoint(snapshot).config.chunk == 5
    stray = tmp_path / "stray.safetensors"
    (snapshot / folders.PRE_STATE).resolve().rename(stray)
    (snapshot / folders.PRE_STATE).unlink()
    (snapshot / folders.PRE_STATE).symlink_to(stray)
    with pytest.raises(UnsafeFileError, match="is a link that leaves"):
        load_checkpoint(snapshot)
