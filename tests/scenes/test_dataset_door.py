"""Where datasets are found: in the package, in a folder, with LeRobot, on the hub."""

import subprocess
import sys

import pytest
from datasets_on_disk import demos, write_hdf5, write_v3

from actlens.errors import SceneError
from actlens.scenes import hub
from actlens.scenes.dataset import open_dataset


@pytest.fixture
def empty_homes(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_LEROBOT_HOME", raising=False)
    return tmp_path / "hf"


@pytest.fixture
def snapshots(monkeypatch):
    """A hub that knows nothing, and remembers what it was asked."""
    import huggingface_hub

    asked = []

    def snapshot_download(repo_id, **options):
        asked.append((repo_id, options))
        raise FileNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_bundled_name_opens_the_bundled_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "BUNDLED", tmp_path)
    write_v3(tmp_path / "datasets" / "tiny", demos((3,), ()))
    assert hub.bundled_datasets() == ("tiny",)
    assert open_dataset("tiny").path == tmp_path / "datasets" / "tiny"


def test_a_folder_is_opened_where_it_is(tmp_path, monkeypatch):
    write_v3(tmp_path / "tiny", demos((3,), ()))
    monkeypatch.chdir(tmp_path)
    assert open_dataset("./tiny").name == "tiny"
    assert open_dataset(tmp_path / "tiny").name == "tiny"
    monkeypatch.chdir("tiny")
    assert open_dataset(".").name == "tiny"


def test_a_repository_recorded_with_lerobot_is_used_where_it_lies(empty_homes, snapshots):
    write_v3(empty_homes / "lerobot" / "me" / "cube", demos((3,), ()))
    assert open_dataset("me/cube").name == "me/cube"
    assert snapshots == []
    with pytest.raises(SceneError, match="offline"):
        open_dataset("me/cube", revision="v3.0")
    assert snapshots[0][1]["revision"] == "v3.0"


def test_a_revision_of_a_folder_is_refused(tmp_path):
    write_v3(tmp_path / "tiny", demos((3,), ()))
    with pytest.raises(SceneError, match="lies on this machine; a revision is for the hub"):
        open_dataset(tmp_path / "tiny", revision="v3.0")


def test_the_hub_is_asked_for_the_dataset_alone(empty_homes, snapshots):
    with pytest.raises(
        SceneError, match="me/cube is no folder here and cannot be had from the hub"
    ):
        open_dataset("me/cube")
    ((repo_id, options),) = snapshots
    assert repo_id == "me/cube"
    assert options["repo_type"] == "dataset"
    assert options["allow_patterns"] == ["meta/*", "data/*", "videos/*"]


@pytest.mark.parametrize(
    "name", ["nowhere", "a/b/c", "../up/down", "/no/such", "me/..", "", "a b/c"]
)
def test_other_names_never_reach_the_hub(name, empty_homes, snapshots, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SceneError, match=r"no folder|no dataset"):
        open_dataset(name)
    assert snapshots == []


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(SceneError, match=r"neither meta/info\.json .* nor an episode_N"):
        open_dataset(tmp_path)


def test_hdf5_folders_are_recognised(tmp_path):
    write_hdf5(tmp_path / "episode_0.hdf5", demos((3,), ("top",))[0])
    assert open_dataset(tmp_path).layout == "original ACT"


def test_readers_are_imported_when_needed():
    heavy = ("pyarrow", "av", "h5py", "PIL", "huggingface_hub", "pandas")
    code = (
        "import sys, actlens.scenes.dataset, actlens.scenes.pairs, actlens.scenes.bundled\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
