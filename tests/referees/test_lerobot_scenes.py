"""Our scenes against the items of LeRobot's own LeRobotDataset (PyAV backend): equal to the bit."""

import json

import pytest
import torch
from safetensors.torch import load_file

from actlens.scenes.dataset import open_dataset
from actlens.scenes.hub import BUNDLED, bundled_datasets

CHUNK = 8
RECORDED = ["many-files", "one-file", "pictures", "retagged", "v21"]
VECTORS = ["observation.state", "observation.environment_state"]


@pytest.fixture(scope="module")
def lerobot(run_lerobot, tmp_path_factory):
    """The folder of LeRobot's datasets and of the items it reads from them."""
    out = tmp_path_factory.mktemp("lerobot-scenes")
    bundled = [BUNDLED / "datasets" / name for name in bundled_datasets()[:1]]
    run_lerobot("lerobot_scenes.py", out, *bundled)
    return out


def assert_equal(scene, items, i):
    for key, value in scene.observation.items():
        theirs = items[key][i]
        ours = value.float() / 255 if value.dtype == torch.uint8 else value
        assert torch.equal(ours, theirs), f"{scene.address} {key}"
    assert torch.equal(scene.action, items["action"][i]), scene.address
    assert torch.equal(scene.action_is_pad, items["action_is_pad"][i]), scene.address
    cube = [scene.labels[f"cube_{name}"] for name in ("x", "y", "z", "yaw")]
    assert cube == items["label.cube"][i].tolist()
    assert (scene.episode, scene.frame) == (items["episode_index"][i], items["frame_index"][i])


# `v21_old` is the version 2.1 folder whose conversion to 3.0 by LeRobot is `v21`.
@pytest.mark.parametrize(("name", "folder"), [*((n, n) for n in RECORDED), ("v21", "v21_old")])
def test_every_item_equals_our_scene(lerobot, name, folder):
    items = load_file(lerobot / f"{name}.safetensors")
    tasks = json.loads((lerobot / f"{name}.json").read_text())
    dataset = open_dataset(lerobot / folder)
    assert dataset.n_frames == len(tasks)
    for i, scene in enumerate(dataset.scenes(chunk=CHUNK)):
        assert_equal(scene, items, i)
        assert dataset.episode(scene.episode).task == tasks[i]
        assert set(scene.observation) == {*(camera.key for camera in dataset.cameras), *VECTORS}


def test_many_files_really_are_many(lerobot):
    assert len(list((lerobot / "many-files").glob("data/*/*.parquet"))) == 4
    assert len(list((lerobot / "many-files").glob("videos/*/chunk-001/*.mp4"))) == 4
    assert len(list((lerobot / "one-file").glob("videos/*/*/*.mp4"))) == 2


def test_single_scenes_equal_items_too(lerobot):
    items = load_file(lerobot / "one-file.safetensors")
    dataset = open_dataset(lerobot / "one-file")
    for i in (0, 10, 11, 16, 17, 39):
        address = int(items["episode_index"][i]), int(items["frame_index"][i])
        assert_equal(dataset.scene(*address, chunk=CHUNK), items, i)


def test_the_bundled_dataset_reads_as_lerobot_reads_it(lerobot):
    items = load_file(lerobot / "folder.safetensors")
    dataset = open_dataset(bundled_datasets()[0])
    for i, address in enumerate(zip(items["episode_index"], items["frame_index"], strict=True)):
        assert_equal(dataset.scene(*map(int, address), chunk=CHUNK), items, i)
