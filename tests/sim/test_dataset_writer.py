"""A written dataset, read again with pyarrow, pandas and PyAV alone."""

import json

import av
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from actlens.sim import dataset_writer, video
from actlens.sim.dataset_writer import DatasetFacts, Episode
from actlens.sim.kinematics import JOINTS

CAMERAS = ("observation.images.top", "observation.images.lateral")
LENGTHS = (9, 7, 12)
FACTS = DatasetFacts(
    task="Lift it.",
    robot_type="none",
    fps=25,
    video=video.VideoSettings(crf=10, preset="fast"),
    card="# A card\n",
    provenance={"seed": 3},
)


def make_episode(length, seed):
    rng = np.random.default_rng(seed)
    pictures = {}
    for camera in CAMERAS:
        still = np.full((length, 48, 64, 3), rng.integers(60, 180, 3), dtype=np.uint8)
        for step in range(length):
            still[step, 10:26, 3 * step : 3 * step + 16] = (210, 30, 30)
        pictures[camera] = still
    return Episode(
        state=rng.normal(size=(length, 6)).astype(np.float32),
        action=rng.normal(size=(length, 6)).astype(np.float32),
        cube=rng.normal(size=(length, 4)).astype(np.float32),
        pictures=pictures,
        region="train",
        seed=seed,
    )


EPISODES = [make_episode(length, seed) for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    for index, episode in enumerate(EPISODES):
        dataset_writer.stage(folder, index, episode, FACTS)
    dataset_writer.finish(folder, FACTS)
    return folder


@pytest.fixture(scope="module")
def data(folder):
    return pq.read_table(folder / "data/chunk-000/file-000.parquet")


@pytest.fixture(scope="module")
def episodes(folder):
    return pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()


def video_path(folder, camera):
    return folder / f"videos/{camera}/chunk-000/file-000.mp4"


def test_the_folder_holds_lerobots_files_and_no_others(folder):
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "data/chunk-000/file-000.parquet",
        "meta/actlens.json",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        "videos/observation.images.lateral/chunk-000/file-000.mp4",
        "videos/observation.images.top/chunk-000/file-000.mp4",
    }


@pytest.mark.parametrize(
    ("column", "field"),
    [("observation.state", "state"), ("action", "action"), ("label.cube", "cube")],
)
def test_columns_equal_what_was_recorded(data, column, field):
    written = np.array(data[column].to_pylist(), dtype=np.float32)
    np.testing.assert_array_equal(written, np.concatenate([getattr(e, field) for e in EPISODES]))


def test_indices_and_timestamps_count_frames(data):
    frames = np.concatenate([np.arange(length) for length in LENGTHS])
    np.testing.assert_array_equal(data["frame_index"], frames)
    np.testing.assert_array_equal(data["index"], np.arange(sum(LENGTHS)))
    np.testing.assert_array_equal(data["episode_index"], np.repeat(range(3), LENGTHS))
    np.testing.assert_array_equal(data["timestamp"], (frames / 25).astype(np.float32))


@pytest.mark.parametrize("camera", CAMERAS)
def test_videos_hold_every_frame_at_its_time(folder, episodes, camera):
    with av.open(str(video_path(folder, camera))) as container:
        frames = list(container.decode(video=0))
        keyframes = [index for index, frame in enumerate(frames) if frame.key_frame]
        times = [frame.time for frame in frames]
        assert container.streams.video[0].average_rate == 25
    np.testing.assert_allclose(times, np.arange(sum(LENGTHS)) / 25, atol=1e-9)
    starts = [row[f"videos/{camera}/from_timestamp"] for row in episodes]
    assert keyframes == [round(25 * start) for start in starts] == [0, 9, 16]
    assert [row[f"videos/{camera}/to_timestamp"] for row in episodes] == [
        pytest.approx(end) for end in (9 / 25, 16 / 25, 28 / 25)
    ]


@pytest.mark.parametrize("camera", CAMERAS)
def test_videos_show_what_was_recorded(folder, camera):
    decoded = np.stack(list(video.decode(video_path(folder, camera)))).astype(int)
    recorded = np.concatenate([e.pictures[camera] for e in EPISODES]).astype(int)
    error = np.abs(decoded - recorded)
    assert error.mean() < 2.5
    # A neighbouring frame has its square three pixels further: far more wrong than that.
    assert (
        np.abs(decoded[1:9] - recorded[:8]).mean() > 3 * np.abs(decoded[:8] - recorded[:8]).mean()
    )


def test_one_episode_decodes_alone(folder):
    path = video_path(folder, CAMERAS[0])
    everything = np.stack(list(video.decode(path)))
    with av.open(str(path)) as container:
        container.seek(round(9 / 25 * av.time_base))
        frame = next(container.decode(video=0))
    assert frame.time == pytest.approx(9 / 25)
    np.testing.assert_array_equal(frame.to_ndarray(format="rgb24"), everything[9])


def test_statistics_equal_numpys(folder, data):
    stats = json.loads((folder / "meta/stats.json").read_text())
    for column in ("observation.state", "action", "label.cube", "timestamp", "frame_index"):
        values = np.array(data[column].to_pylist(), dtype=np.float64).reshape(len(data), -1)
        expected = {
            "mean": values.mean(0),
            "std": values.std(0),
            "min": values.min(0),
            "max": values.max(0),
            "count": [len(data)],
        } | {f"q{q:02d}": np.quantile(values, q / 100, axis=0) for q in (1, 10, 50, 90, 99)}
        assert stats[column].keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(stats[column][name], value, rtol=1e-12)


@pytest.mark.parametrize("camera", CAMERAS)
def test_picture_statistics_equal_numpys_on_the_decoded_frames(folder, episodes, camera):
    decoded = np.stack(list(video.decode(video_path(folder, camera)))) / 255
    overall = json.loads((folder / "meta/stats.json").read_text())[camera]
    last = {name: episodes[2][f"stats/{camera}/{name}"] for name in ("mean", "std", "q10", "count")}
    for found, pictures in ((overall, decoded), (last, decoded[16:])):
        assert found["count"] == [len(pictures)]
        assert np.shape(found["mean"]) == (3, 1, 1)
        np.testing.assert_allclose(np.ravel(found["mean"]), pictures.mean((0, 1, 2)), rtol=1e-9)
        np.testing.assert_allclose(np.ravel(found["std"]), pictures.std((0, 1, 2)), rtol=1e-6)
        # A histogram knows quantiles to the grey level below: numpy's `lower`.
        expected = np.quantile(pictures, 0.1, axis=(0, 1, 2), method="lower")
        np.testing.assert_allclose(np.ravel(found["q10"]), expected, atol=1e-12)


def test_episode_rows_say_where_everything_is(episodes):
    assert [row["length"] for row in episodes] == list(LENGTHS)
    assert [row["dataset_from_index"] for row in episodes] == [0, 9, 16]
    assert [row["dataset_to_index"] for row in episodes] == [9, 16, 28]
    assert [row["tasks"] for row in episodes] == [["Lift it."]] * 3
    assert [(row["region"], row["seed"]) for row in episodes] == [("train", s) for s in range(3)]
    for row in episodes:
        assert row["data/chunk_index"] == row["data/file_index"] == 0
        assert row["meta/episodes/chunk_index"] == row["meta/episodes/file_index"] == 0
        begin, end = row["dataset_from_index"], row["dataset_to_index"]
        actions = EPISODES[row["episode_index"]].action
        assert len(actions) == end - begin
        np.testing.assert_allclose(row["stats/action/mean"], actions.mean(0, dtype=np.float64))


def test_tasks_are_a_frame_indexed_by_them(folder):
    tasks = pd.read_parquet(folder / "meta/tasks.parquet")
    assert list(tasks.index) == ["Lift it."]
    assert list(tasks["task_index"]) == [0]


def test_info_describes_the_files(folder, data):
    info = json.loads((folder / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"]) == (3, 28)
    assert info["splits"] == {"train": "0:3"}
    assert info["features"]["action"]["names"] == list(JOINTS)
    assert info["features"][CAMERAS[0]]["shape"] == [48, 64, 3]
    stored = {key for key, feature in info["features"].items() if feature["dtype"] != "video"}
    assert stored == set(data.column_names)
    for camera in CAMERAS:
        found = info["video_path"].format(video_key=camera, chunk_index=0, file_index=0)
        assert (folder / found).is_file()
    assert (folder / info["data_path"].format(chunk_index=0, file_index=0)).is_file()
    assert json.loads((folder / "meta/actlens.json").read_text()) == {"seed": 3}


def test_writing_is_deterministic(folder, tmp_path):
    for index, episode in enumerate(EPISODES):
        dataset_writer.stage(tmp_path, index, episode, FACTS)
    dataset_writer.finish(tmp_path, FACTS)
    for path in sorted(folder.rglob("*.*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes(), path


def test_an_unfinished_episode_does_not_count(tmp_path):
    dataset_writer.stage(tmp_path, 0, EPISODES[0], FACTS)
    (tmp_path / ".recording/episode-000001.unfinished").mkdir()
    assert dataset_writer.staged_episodes(tmp_path) == 1
    dataset_writer.stage(tmp_path, 1, EPISODES[1], FACTS)
    assert dataset_writer.staged_episodes(tmp_path) == 2


def test_a_dataset_needs_an_episode(tmp_path):
    with pytest.raises(ValueError, match="no staged episode"):
        dataset_writer.finish(tmp_path, FACTS)
