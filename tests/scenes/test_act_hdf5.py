"""The original ACT's HDF5 episodes, those of act-plus-plus, and files that reach outside."""

import h5py
import numpy as np
import pytest
from datasets_on_disk import SIZE, demos, write_hdf5

from actlens.config import Camera
from actlens.errors import ActlensError, SceneError, UnsafeFileError
from actlens.scenes.dataset import open_dataset

TOP = "observation.images.top"


@pytest.fixture(scope="module")
def recorded():
    return demos()


@pytest.fixture
def folder(recorded, tmp_path):
    for number, demo in enumerate(recorded):
        write_hdf5(tmp_path / f"episode_{number}.hdf5", demo)
    return tmp_path


def test_reads_back_what_act_records(folder, recorded):
    dataset = open_dataset(folder)
    assert dataset.layout == "original ACT"
    assert dataset.fps == 50
    assert dataset.cameras == (Camera(TOP, *SIZE), Camera("observation.images.wrist", *SIZE))
    assert dataset.state_names == dataset.action_names == ("joint_0", "joint_1", "joint_2")
    assert [e.length for e in dataset.episodes] == [7, 5, 9]
    for index, demo in enumerate(recorded):
        np.testing.assert_array_equal(dataset.states(index), demo.state)
        np.testing.assert_array_equal(dataset.actions(index), demo.action)
        np.testing.assert_array_equal(dataset.frames(index, TOP), demo.pictures[TOP])
    scene = dataset.scene(2, 4, chunk=3)
    np.testing.assert_array_equal(scene.observation[TOP], recorded[2].pictures[TOP][4])
    np.testing.assert_array_equal(scene.action, recorded[2].action[4:7])


def test_episodes_are_ordered_by_number(recorded, tmp_path):
    for number in (10, 2, 0):
        write_hdf5(tmp_path / f"episode_{number}.hdf5", recorded[0])
    assert [e.index for e in open_dataset(tmp_path).episodes] == [0, 2, 10]


@pytest.mark.parametrize(("sim", "lead"), [(True, 0), (False, 1), (None, 1)])
def test_targets_of_real_robots_begin_one_step_early(sim, lead, recorded, tmp_path):
    demo = recorded[0]
    write_hdf5(tmp_path / "episode_0.hdf5", demo, sim=sim)
    dataset = open_dataset(tmp_path)
    np.testing.assert_array_equal(dataset.actions(0), demo.action)
    first, third, last = dataset.scenes(chunk=3, frames=[0, 3, 6])
    np.testing.assert_array_equal(first.action, demo.action[:3])
    np.testing.assert_array_equal(third.action, demo.action[3 - lead : 6 - lead])
    assert last.action_is_pad.tolist() == [False, lead == 0, True]


def test_compressed_pictures_have_opencvs_channel_order(recorded, tmp_path):
    write_hdf5(tmp_path / "episode_0.hdf5", recorded[0], compress=True)
    dataset = open_dataset(tmp_path)
    assert dataset.camera(TOP) == Camera(TOP, *SIZE)
    frames = dataset.frames(0, TOP).astype(int)
    # `jpeg` stores the array as cv2.imencode does, so decoding as cv2.imdecode gives the array.
    means = frames.mean((2, 3)) - recorded[0].pictures[TOP].mean((2, 3))
    assert np.abs(means).max() < 1.5
    np.testing.assert_array_equal(dataset.scene(0, 3, chunk=1).observation[TOP], frames[3])


def test_base_velocities_are_smoothed_and_appended(recorded, tmp_path):
    base = np.random.default_rng(0).normal(size=(7, 2))
    write_hdf5(tmp_path / "episode_0.hdf5", recorded[0], base_action=base)
    dataset = open_dataset(tmp_path)
    assert dataset.action_names == ("joint_0", "joint_1", "joint_2", "base_0", "base_1")
    actions = dataset.actions(0)
    np.testing.assert_array_equal(actions[:, :3], recorded[0].action)
    np.testing.assert_allclose(actions[3, 3:], base[1:6].mean(0), rtol=1e-6)
    np.testing.assert_allclose(actions[0, 3:], base[:3].sum(0) / 5, rtol=1e-6)


@pytest.fixture
def single(recorded, tmp_path):
    (tmp_path / "dataset").mkdir()
    return write_hdf5(tmp_path / "dataset" / "episode_0.hdf5", recorded[0])


def replace(path, name, make):
    with h5py.File(path, "r+") as file:
        if name in file:
            del file[name]
        make(file, name)


@pytest.mark.parametrize(
    "name", ["action", "observations", "observations/images/top", "base_action"]
)
@pytest.mark.parametrize("kind", ["external", "soft"])
def test_links_are_not_followed(single, name, kind):
    other = single.parent.parent / "other.hdf5"
    other.write_bytes(single.read_bytes())

    def link(file, name):
        file[name] = (
            h5py.ExternalLink(str(other), name)
            if kind == "external"
            else h5py.SoftLink("/elsewhere")
        )

    replace(single, name, link)
    with pytest.raises(UnsafeFileError, match="is a link to somewhere else"):
        open_dataset(single.parent)


def test_external_storage_is_not_read(single):
    raw = single.parent.parent / "secret.bin"
    raw.write_bytes(bytes(7 * 3 * 4))

    def outside(file, name):
        file.create_dataset(name, (7, 3), "f4", external=[(str(raw), 0, h5py.h5f.UNLIMITED)])

    replace(single, "action", outside)
    with pytest.raises(UnsafeFileError, match="keeps its data in other files"):
        open_dataset(single.parent)


def test_virtual_data_sets_are_not_read(single):
    other = single.parent.parent / "other.hdf5"
    other.write_bytes(single.read_bytes())

    def virtual(file, name):
        layout = h5py.VirtualLayout((7, 3), "f4")
        layout[:] = h5py.VirtualSource(str(other), name, (7, 3))
        file.create_virtual_dataset(name, layout)

    replace(single, "action", virtual)
    with pytest.raises(UnsafeFileError, match="keeps its data in other files"):
        open_dataset(single.parent)


def test_a_linked_episode_file_outside_is_refused(single):
    outside = single.parent.parent / "outside.hdf5"
    single.rename(outside)
    single.symlink_to(outside)
    with pytest.raises(UnsafeFileError, match="leads out of the dataset's folder"):
        open_dataset(single.parent)


def store(values):
    return lambda file, name: file.create_dataset(name, data=values)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("action", store(np.zeros((6, 3), "f4")), r"have the lengths \{.*'action': 6"),
        ("action", store(np.zeros(7, "f4")), r"shape \(7,\)"),
        ("action", store(np.zeros((7, 3), "i8")), "type int64"),
        ("action", lambda file, name: file.create_group(name), "is no array"),
        ("action", lambda file, name: None, "/action is missing"),
        ("observations/images", lambda file, name: None, "images is missing"),
        ("observations/images/top", store(np.zeros((7, 8, 8, 1), "u1")), "1 channels"),
        ("observations/images/top", store(np.zeros((7, 8, 8, 3), "f4")), "type float32"),
        ("observations/images/top", store(np.zeros((7, 9000, 1, 3), "u1")), "above 8192"),
        ("observations/images/top", store(np.zeros((3, 8, 8, 3), "u1")), "lengths"),
    ],
)
def test_a_malformed_episode_is_refused(single, name, make, message):
    replace(single, name, make)
    with pytest.raises(SceneError, match=message):
        open_dataset(single.parent)


def test_values_that_are_not_finite_are_refused(single):
    replace(single, "action", store(np.full((7, 3), np.nan, "f4")))
    with pytest.raises(SceneError, match="not finite"):
        open_dataset(single.parent).actions(0)


def test_episodes_must_agree(folder):
    write_hdf5(folder / "episode_1.hdf5", demos((5,), ("top",))[0])
    with pytest.raises(SceneError, match=r"episode_1\.hdf5 has .*unlike episode_0"):
        open_dataset(folder)


def test_mutated_files_are_read_or_refused_never_worse(single):
    whole = single.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        mutated = bytearray(whole)
        # The first kilobytes hold the structure; the rest is pixels.
        for _ in range(rng.integers(1, 9)):
            mutated[rng.integers(min(6000, len(mutated)))] = rng.integers(256)
        single.write_bytes(mutated)
        try:
            dataset = open_dataset(single.parent)
            dataset.actions(0)
            dataset.frames(0, TOP)
        except ActlensError:
            refused += 1
    assert refused > 5
