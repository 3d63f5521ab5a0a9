"""Paths, bundled names and hub ids: what is meant by the argument of `load_checkpoint`."""

import json
import os
import subprocess
import sys

import checkpoint_folders as folders
import pytest

from actlens.checkpoints import bundled, bundled_names, load_checkpoint
from actlens.checkpoints.hub import is_hub_id
from actlens.errors import CheckpointError, DeviceError


@pytest.fixture
def policies(tmp_path, monkeypatch):
    """A folder of bundled policies with one in it."""
    place = tmp_path / "policies"
    folders.write_processors_layout(place / "so101-pick-cube")
    (place / "unfinished").mkdir()
    monkeypatch.setattr(bundled, "_POLICIES", place)
    return place


def test_bundled_policies_load_by_name(policies):
    assert bundled_names() == ("so101-pick-cube",)
    checkpoint = load_checkpoint("so101-pick-cube")
    assert checkpoint.source == "bundled:so101-pick-cube"


def test_a_misspelt_name_gets_the_close_one(policies):
    with pytest.raises(CheckpointError, match=r"Did you mean 'so101-pick-cube'\?"):
        load_checkpoint("so101-pick-cub")


def test_an_existing_path_comes_before_a_bundled_name(policies, tmp_path, monkeypatch):
    folders.write_processors_layout(tmp_path / "here" / "so101-pick-cube")
    monkeypatch.chdir(tmp_path / "here")
    assert load_checkpoint("so101-pick-cube").source == "so101-pick-cube"


@pytest.mark.parametrize("name", ["../policies/so101-pick-cube", "policies/x/y", "/nowhere/at/all"])
def test_a_missing_path_is_refused_as_one(name, policies):
    with pytest.raises(CheckpointError, match="does not exist; give a LeRobot folder"):
        load_checkpoint(name)


def test_an_empty_path_is_not_the_present_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert load_checkpoint(".").source == "."
    with pytest.raises(CheckpointError, match="path is empty: give a LeRobot folder"):
        load_checkpoint("")


def test_a_folder_that_may_not_be_read_is_named(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("actlens.checkpoints.reading.find_folder", refuse)
    with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\)"):
        load_checkpoint(folder)


@pytest.mark.parametrize("device", ["nope", "cuda:99"])
def test_a_device_that_is_not_here_is_refused_before_any_file_is_read(device):
    from actlens.model.act import HookedACT

    with pytest.raises(DeviceError, match=rf"'{device}' is no device that can be used here"):
        HookedACT.from_pretrained("/nowhere", device=device)


def test_a_revision_of_a_bundled_policy_is_refused(policies):
    with pytest.raises(CheckpointError, match="comes with actlens; revision= is for hub"):
        load_checkpoint("so101-pick-cube", revision="main")


def test_a_folder_without_a_checkpoint_says_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"holds no checkpoint.*'notes.txt'"):
        load_checkpoint(tmp_path)


def test_a_file_that_is_no_checkpoint_points_to_its_folder(folder):
    with pytest.raises(CheckpointError, match=r"give the folder with config.json"):
        load_checkpoint(folder / "model.safetensors")


def test_a_revision_of_a_path_is_refused(folder):
    with pytest.raises(CheckpointError, match="revision= is for hub repositories"):
        load_checkpoint(folder, revision="main")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lerobot/act_aloha_sim_transfer_cube_human", True),
        ("a/b.c-d_e", True),
        ("a", False),
        ("a/b/c", False),
        ("/a", False),
        ("a/", False),
        ("../a", False),
        ("a/..", False),
        ("a b/c", False),
        ("a/b?x=1", False),
        ("https://x/y", False),
        ("a/b\n", False),
    ],
)
def test_what_a_hub_id_looks_like(text, expected):
    assert is_hub_id(text) is expected


COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOAD_OFFLINE = """
import json, socket, sys
def never(*arguments, **options):
    raise AssertionError("the network was touched")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = never
from actlens.checkpoints import load_checkpoint
from actlens.errors import CheckpointError
said = []
for revision in (None, "another-branch"):
    try:
        said.append(load_checkpoint("someone/act", revision=revision).source)
    except CheckpointError as error:
        said.append(str(error))
sys.stdout.write(json.dumps(said))
"""


def test_a_hub_policy_loads_from_the_cache_without_any_network(tmp_path):
    """In a process of its own, because huggingface_hub reads its variables when it is imported."""
    repository = tmp_path / "models--someone--act"
    folders.write_processors_layout(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    done = subprocess.run(
        [sys.executable, "-c", LOAD_OFFLINE],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded, refused = json.loads(done.stdout)
    assert loaded == f"hub:someone/act@{COMMIT}"
    assert refused.startswith("'someone/act' is no folder here, and the hub did not give it")
    assert "at 'another-branch'" in refused


def test_only_safetensors_and_json_are_asked_from_the_hub(monkeypatch, tmp_path):
    import huggingface_hub

    asked = {}

    def snapshot_download(repository, **options):
        asked.update(options, repository=repository)
        return str(folders.write_processors_layout(tmp_path / COMMIT))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_checkpoint("someone/act").source == f"hub:someone/act@{COMMIT}"
    assert asked == {
        "repository": "someone/act",
        "revision": None,
        "allow_patterns": ["*.json", "*.safetensors"],
        "ignore_patterns": ["*/*"],
    }


def test_importing_checkpoints_imports_nothing_heavy():
    """torchvision, the hub's client and rich wait until they are needed."""
    heavy = "{'torchvision', 'huggingface_hub', 'rich', 'transformers', 'pandas', 'matplotlib'}"
    code = f"import sys, actlens.checkpoints; sys.exit(str({heavy} & set(sys.modules) or '') or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
