"""A recorded dataset against LeRobot's own LeRobotDataset: what we wrote is what it reads."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from actlens.scenes.video import decode_frames
from actlens.sim.dataset_writer import VIDEO_PATH

BUNDLED = Path(__file__).parents[2] / "actlens/bundled/datasets"
CAMERAS = ("observation.images.top", "observation.images.lateral")
FRAMES = (0, 74, 75, 3000, 3746)


@pytest.fixture(scope="module", params=["so101-pick-cube", "so101-pick-cube-5pos"])
def dataset(request):
    folder = BUNDLED / request.param
    assert folder.is_dir()
    return folder


@pytest.fixture(scope="module")
def seen(dataset, run_lerobot, tmp_path_factory):
    """LeRobot's view of the dataset."""
    output = tmp_path_factory.mktemp("lerobot") / "facts.json"
    run_lerobot("lerobot_read_dataset.py", dataset, output, *FRAMES)
    return json.loads(output.read_text())


def test_counts_tasks_and_rate(dataset, seen):
    info = json.loads((dataset / "meta/info.json").read_text())
    assert seen["episodes"] == info["total_episodes"]
    assert seen["frames"] == info["total_frames"] == 75 * info["total_episodes"]
    assert seen["fps"] == 25
    assert seen["tasks"] == ["Grasp the red cube and lift it."]


def test_labels_are_no_policy_features(seen):
    assert seen["policy_features"] == {
        "observation.state": [6],
        "action": [6],
        "observation.images.top": [3, 240, 320],
        "observation.images.lateral": [3, 240, 320],
    }


def test_frames_hold_the_columns_of_the_parquet_file(dataset, seen):
    table = pq.read_table(dataset / "data/chunk-000/file-000.parquet")
    columns = {"state": "observation.state", "action": "action", "cube": "label.cube"}
    for frame, item in zip(FRAMES, seen["items"], strict=True):
        assert item["episode_index"] == frame // 75
        assert item["frame_index"] == frame % 75
        assert item["timestamp"] == pytest.approx(frame % 75 / 25, abs=1e-6)
        for name, column in columns.items():
            np.testing.assert_array_equal(item[name], table[column][frame].as_py())


@pytest.mark.parametrize("camera", CAMERAS)
def test_pictures_are_those_at_the_frames_index(dataset, seen, camera):
    path = dataset / VIDEO_PATH.format(video_key=camera, chunk_index=0, file_index=0)
    sums = (item["picture_sums"][camera] for item in seen["items"])
    ours = decode_frames(path, [frame / 25 for frame in FRAMES], height=240, width=320)
    for picture, theirs in zip(ours, sums, strict=True):
        # Sums of a whole picture: neighbours differ by thousands, decoders by rounding.
        assert abs(int(picture.astype(np.int64).sum()) - theirs) < 300


def test_statistics_have_the_shapes_lerobot_writes(seen):
    names = {"mean", "std", "min", "max", "count", "q01", "q10", "q50", "q90", "q99"}
    sizes = {"observation.state": [6], "action": [6], "label.cube": [4]}
    sizes |= {camera: [3, 1, 1] for camera in CAMERAS}
    for key in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        sizes[key] = [1]
    assert seen["stats"] == {
        key: {name: [1] if name == "count" else size for name in names}
        for key, size in sizes.items()
    }


def test_a_window_of_actions_is_padded_at_the_episodes_end(seen):
    assert seen["window_shape"] == [20, 6]
    # Frame 3746 is the 71st of its episode's 75 frames: it and 3 more actions, then padding.
    assert seen["window_padded"] == 20 - 4
