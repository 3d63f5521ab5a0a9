"""Recording: interruptions, resuming, foreign folders, and what the bundled datasets promise."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from actlens.scenes.dataset import open_dataset
from actlens.sim import dataset_writer
from actlens.sim import record as recording
from actlens.sim.expert import plan
from actlens.sim.record import RecordingConfig, RecordingError, disturbances, record
from actlens.sim.regions import FIVE_POSITIONS, Region, region_of
from actlens.sim.video import VideoSettings

BUNDLED = Path(recording.__file__).parents[1] / "bundled/datasets"


def small(folder, **changes):
    settings = {
        "output_dir": folder,
        "episodes": 2,
        "height": 24,
        "width": 32,
        "video": VideoSettings(preset="fast"),
    }
    return RecordingConfig(**(settings | changes))


def run(config):
    """Records quietly; returns what was written to the console."""
    console = Console(file=io.StringIO(), width=300)
    record(config, console)
    return console.file.getvalue()


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def uninterrupted(renderer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "dataset"
    said = run(small(folder))
    assert "2 episodes of 75 frames" in said
    assert "0 failed" in said
    return folder


@pytest.mark.parametrize("moment", ["before_staging", "before_the_journal", "in_the_end"])
def test_interrupted_and_resumed_equals_uninterrupted(uninterrupted, tmp_path, monkeypatch, moment):
    folder = tmp_path / "dataset"
    calls = []

    def interrupt(function, *, at):
        def wrapped(*arguments, **options):
            calls.append(function.__name__)
            if calls.count(function.__name__) == at:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return wrapped

    with monkeypatch.context() as patched:
        if moment == "before_staging":
            patched.setattr(dataset_writer, "stage", interrupt(dataset_writer.stage, at=2))
        elif moment == "before_the_journal":
            # The first writing is that of the empty journal.
            patched.setattr(recording, "_store", interrupt(recording._store, at=3))
        else:
            patched.setattr(
                dataset_writer, "_write_json", interrupt(dataset_writer._write_json, at=2)
            )
        with pytest.raises(KeyboardInterrupt):
            run(small(folder))
    assert (folder / ".recording").is_dir()
    run(small(folder, resume=True))
    assert contents(folder) == contents(uninterrupted)


def test_resuming_needs_to_be_asked_for(renderer, tmp_path, monkeypatch):
    folder = tmp_path / "dataset"
    with monkeypatch.context() as patched:
        patched.delattr(recording, "demonstrate")
        with pytest.raises(NameError):
            run(small(folder))
    with pytest.raises(RecordingError, match="add --resume"):
        run(small(folder))
    with pytest.raises(RecordingError, match="same settings"):
        run(small(folder, resume=True, seed=1))


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "holiday.txt").write_text("pictures")
    for resume in (False, True):
        with pytest.raises(RecordingError, match="choose another folder"):
            run(small(tmp_path, resume=resume))
    assert contents(tmp_path) == {"holiday.txt": b"pictures"}


def test_a_finished_dataset_is_not_overwritten(uninterrupted):
    before = contents(uninterrupted)
    with pytest.raises(RecordingError, match="choose another folder"):
        run(small(uninterrupted, resume=True))
    assert contents(uninterrupted) == before


def test_failed_attempts_are_counted_and_left_out(renderer, tmp_path, monkeypatch):
    true_demonstrate = recording.demonstrate

    def stumbling(env, config, *, attempt, index):
        return None if attempt == 1 else true_demonstrate(env, config, attempt=attempt, index=index)

    monkeypatch.setattr(recording, "demonstrate", stumbling)
    assert "1 failed" in run(small(tmp_path / "dataset"))
    facts = json.loads((tmp_path / "dataset/meta/actlens.json").read_text())
    assert (facts["attempts"], facts["failed_attempts"]) == (3, 1)
    assert "1 of\n  3 attempts" in (tmp_path / "dataset/README.md").read_text()


def test_an_expert_that_always_fails_ends_the_recording(renderer, tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "demonstrate", lambda *_, **__: None)
    with pytest.raises(RecordingError, match="21 of 21 attempts failed"):
        run(small(tmp_path / "dataset"))


def test_disturbances_are_smooth_and_end_before_the_grasp():
    offsets = np.stack([disturbances(np.random.default_rng(seed)) for seed in range(300)])
    assert np.all(offsets[:, 32:] == 0)
    assert np.all(offsets[..., 5] == 0)
    settled = offsets[:, 8:24, :5]
    assert settled.std() == pytest.approx(1.5, rel=0.1)
    steps = np.corrcoef(settled[:, :-1].ravel(), settled[:, 1:].ravel())[0, 1]
    assert steps == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(
    ("name", "episodes", "regions"),
    [
        ("so101-pick-cube", 100, {Region.TRAIN}),
        ("so101-pick-cube-5pos", 50, {Region.TRAIN}),
        ("so101-pick-cube-unseen", 90, {*recording.UNSEEN}),
    ],
    ids=["table", "5pos", "unseen"],
)
def test_bundled_episodes_are_the_experts_and_can_be_replayed(physics, name, episodes, regions):
    folder = BUNDLED / name
    rows = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    data = pq.read_table(folder / "data/chunk-000/file-000.parquet")
    columns = {
        key: np.array(data[key].to_pylist()).reshape(episodes, 75, -1)
        for key in ("observation.state", "action", "label.cube")
    }
    starts = columns["label.cube"][:, 0]
    assert {region_of(*start[:2]) for start in starts} == regions
    assert np.all(columns["label.cube"][:, -1, 2] > 0.05)
    for row in rows[:: episodes // 5]:
        index = row["episode_index"]
        cube_xy = starts[index, :2]
        observation, facts = physics.reset(seed=row["seed"], options={"cube_xy": cube_xy})
        state = observation["observation.state"]
        np.testing.assert_allclose(state, columns["observation.state"][index, 0], atol=1e-4)
        # float32 positions of the cube: 1e-8 m, far below a thousandth of a degree.
        expected = plan(state, cube_xy, facts["cube"][3])
        np.testing.assert_allclose(columns["action"][index], expected, atol=1e-3)


def test_the_test_set_is_a_third_each_of_what_was_shown_lies_between_and_lies_beyond():
    dataset, shown = open_dataset("so101-pick-cube-unseen"), open_dataset("so101-pick-cube")
    regions = [str(episode.labels["region"]) for episode in dataset.episodes]
    assert regions == ["train"] * 30 + ["held_out"] * 30 + ["strip"] * 30
    place = lambda data, e: [float(data.labels(e.index)[f"cube_{axis}"][0]) for axis in "xy"]
    for episode, region in zip(dataset.episodes, regions, strict=True):
        assert region_of(*place(dataset, episode)).value == region
    old = {tuple(place(shown, episode)) for episode in shown.episodes}
    assert not old & {tuple(place(dataset, episode)) for episode in dataset.episodes}


def test_the_five_position_dataset_has_ten_episodes_at_each():
    data = pq.read_table(BUNDLED / "so101-pick-cube-5pos/data/chunk-000/file-000.parquet")
    starts = np.array(data["label.cube"].to_pylist()).reshape(50, 75, 4)[:, 0, :2]
    np.testing.assert_allclose(starts, np.repeat(FIVE_POSITIONS, 10, axis=0), atol=1e-6)
