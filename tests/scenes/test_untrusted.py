"""Paths and words that come with a dataset: nothing outside its folder, nothing but plain text."""

import sys
from pathlib import Path

import pytest
from datasets_on_disk import demos, edit_info, write_v3

from actlens.errors import SceneError, UnsafeFileError
from actlens.scenes.dataset import open_dataset
from actlens.scenes.untrusted import Folder, fill_template

FIELDS = {"chunk_index": 3, "file_index": 12, "video_key": "observation.images.top"}
HERE = Path("info.json")


@pytest.mark.parametrize(
    ("template", "path"),
    [
        (
            "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "data/chunk-003/file-012.parquet",
        ),
        ("{video_key}/{file_index}.mp4", "observation.images.top/12.mp4"),
        ("{file_index:d}-{file_index:06d}", "12-000012"),
        ("plain", "plain"),
        ("{{literal}}", "{literal}"),
    ],
)
def test_templates_fill_their_fields(template, path):
    assert fill_template(template, FIELDS, where=HERE) == path


@pytest.mark.parametrize(
    "template",
    [
        "{video_key.__class__}",
        "{video_key.__class__.__mro__[1].__subclasses__}",
        "{video_key[0]}",
        "{chunk_index.real}",
        "{0}",
        "{}",
        "{secret}",
        "{video_key!r}",
        "{video_key!s:>10}",
        "{file_index:999999999d}",
        "{file_index:0999999999d}",
        "{file_index:{chunk_index}d}",
        "{file_index:>{file_index}}",
        "{video_key:03d}",
        "{file_index:x}",
        "{file_index:c}",
        "{file_index:n}",
        "{file_index: }",
        "{file_index:.3f}",
        "{unclosed",
        "closed}",
        "{ file_index}",
        None,
        7,
        ["data"],
    ],
)
def test_templates_that_ask_for_more_are_refused(template):
    with pytest.raises(UnsafeFileError, match=r"info\.json"):
        fill_template(template, FIELDS, where=HERE)


UP = [
    "../",
    "./../",
    "data/../../",
    "data/./../../",
    "..\\",
    "data\\..\\..\\",
    "a/b/c/../../../../",
]
ROOTS = ["/", "//", "///", "\\", "\\\\host\\share\\", "C:\\", "C:/", "c:", "//server/share/"]
TARGETS = [
    "outside.txt",
    "etc/passwd",
    "{file_index}.txt",
    "outside.txt\x00.parquet",
    "a/../outside.txt",
    "%2e%2e/outside.txt",
    "out\u202eside.txt",
    "out\x1b[2Jside.txt",
    "outside.txt/",
    "outside.txt/.",
    "~root/outside.txt",
    "$HOME/outside.txt",
    "file:///etc/passwd",
]
TRAVERSALS = [start + target for start in UP + ROOTS for target in TARGETS]


def test_traversal_strings_read_nothing_outside(tmp_path):
    """Over 200 templates, watched from Python's own audit hook."""
    root = write_v3(tmp_path / "deep" / "er" / "dataset", demos((3,), ("top",)))
    for folder in root.parents:
        if folder.is_relative_to(tmp_path):
            (folder / "outside.txt").write_text("secret")
            (folder / "12.txt").write_text("secret")
    opened = []
    watching = True

    def hook(event, arguments):
        if watching and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(hook)
    assert len(TRAVERSALS) > 200
    for template in TRAVERSALS:
        edit_info(root, lambda content, t=template: content.update(data_path=t))
        with pytest.raises((UnsafeFileError, SceneError)):
            open_dataset(root).actions(0)
        edit_info(root, lambda content, t=template: content.update(video_path=t))
        with pytest.raises((UnsafeFileError, SceneError)):
            open_dataset(root).frames(0, "top")
    watching = False
    assert [path for path in opened if "outside" in path or path.endswith("12.txt")] == []


@pytest.mark.parametrize("path", TRAVERSALS)
def test_paths_out_of_the_folder_are_refused(path, tmp_path):
    folder = tmp_path / "dataset"
    folder.mkdir()
    (tmp_path / "outside.txt").write_text("secret")
    with pytest.raises(UnsafeFileError, match="dataset"):
        Folder(folder).file(path)


def test_links_inside_the_folder_are_followed(tmp_path):
    (tmp_path / "real.txt").write_text("fine")
    (tmp_path / "link.txt").symlink_to("real.txt")
    assert Folder(tmp_path).file("link.txt").read_text() == "fine"


def test_links_out_of_the_folder_are_refused(tmp_path):
    root = tmp_path / "dataset"
    root.mkdir()
    (tmp_path / "outside.txt").write_text("secret")
    (root / "file.txt").symlink_to("../outside.txt")
    (root / "folder").symlink_to(tmp_path)
    (root / "twice.txt").symlink_to("file.txt")
    for name in ("file.txt", "folder/outside.txt", "twice.txt"):
        with pytest.raises(UnsafeFileError, match="link that leads out"):
            Folder(root).file(name)


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises((UnsafeFileError, SceneError), match="loop"):
        Folder(tmp_path).file("loop")


def snapshot(tmp_path):
    repo = tmp_path / "datasets--owner--name"
    (repo / "snapshots" / "abc").mkdir(parents=True)
    return repo, repo / "snapshots" / "abc"


def test_a_snapshot_of_the_hub_may_link_to_its_blobs(tmp_path):
    repo, root = snapshot(tmp_path)
    (repo / "blobs").mkdir()
    (repo / "blobs" / "123").write_text("content")
    (root / "file.txt").symlink_to("../../blobs/123")
    assert Folder(root).file("file.txt").read_text() == "content"


def test_blobs_may_not_be_a_link_themselves(tmp_path):
    repo, root = snapshot(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "123").write_text("secret")
    (repo / "blobs").symlink_to(tmp_path / "elsewhere")
    (root / "file.txt").symlink_to("../../blobs/123")
    with pytest.raises(UnsafeFileError, match="link that leads out"):
        Folder(root).file("file.txt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SceneError, match=r"data\.parquet is missing"):
        Folder(tmp_path).file("data.parquet")
