"""LeRobotDataset folders of all versions: descriptions, frames, chunks, and refusals."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets_on_disk import (
    FPS,
    JOINTS,
    SIZE,
    decoded,
    demos,
    edit_episodes,
    edit_info,
    png,
    v3_video,
    write_table,
    write_v2,
    write_v3,
    write_video,
)

from actlens.config import Camera
from actlens.errors import ActlensError, SceneError, UnsafeFileError
from actlens.scenes.dataset import open_dataset

TOP, WRIST = "observation.images.top", "observation.images.wrist"


@pytest.fixture(scope="module")
def recorded():
    return demos()


@pytest.fixture(scope="module", params=["v3.0", "v2.1", "v2.0", "images"])
def folder(request, recorded, tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets") / request.param
    if request.param == "v3.0":
        return write_v3(root, recorded)
    if request.param == "images":
        return write_v3(root, recorded, image_mode=True)
    return write_v2(root, recorded, version=request.param)


@pytest.fixture
def v3(recorded, tmp_path):
    return write_v3(tmp_path / "v3", recorded)


def test_describes_itself(folder, recorded):
    dataset = open_dataset(folder)
    assert dataset.name == folder.name
    assert dataset.fps == FPS
    assert dataset.cameras == (Camera(TOP, *SIZE), Camera(WRIST, *SIZE))
    assert dataset.state_names == dataset.action_names == JOINTS
    assert dataset.label_names == ("cube_x", "cube_y", "cube_z", "cube_yaw")
    assert [e.index for e in dataset.episodes] == [0, 1, 2]
    assert [e.length for e in dataset.episodes] == [7, 5, 9]
    assert dataset.n_frames == 21
    assert {e.task for e in dataset.episodes} == {"lift the cube"}
    assert {e.labels["region"] for e in dataset.episodes} == {"train"}


def test_numbers_come_back_exactly(folder, recorded):
    dataset = open_dataset(folder)
    for index, demo in enumerate(recorded):
        np.testing.assert_array_equal(dataset.states(index), demo.state)
        np.testing.assert_array_equal(dataset.actions(index), demo.action)
        np.testing.assert_array_equal(dataset.labels(index)["cube_yaw"], demo.cube[:, 3])


def test_every_frame_shows_its_own_moment(folder, recorded):
    dataset = open_dataset(folder)
    for index, demo in enumerate(recorded):
        for key, pictures in demo.pictures.items():
            frames = dataset.frames(index, key)
            assert frames.dtype == np.uint8
            assert frames.shape == pictures.shape
            # Frames differ by 8 grey levels; compression moves their mean by less than 2.
            means = frames.mean(axis=(1, 2, 3)) - pictures.mean(axis=(1, 2, 3))
            assert np.abs(means).max() < 2


def test_pictures_in_tables_come_back_exactly(recorded, tmp_path):
    dataset = open_dataset(write_v3(tmp_path / "d", recorded, image_mode=True))
    np.testing.assert_array_equal(dataset.frames(1, WRIST), recorded[1].pictures[WRIST])


@pytest.mark.parametrize(
    "video", [{}, {"gop": 250, "b_frames": 2}, {"gop": 12, "b_frames": 3}, {"codec": "libsvtav1"}]
)
def test_video_frames_equal_plain_decoding(video, recorded, tmp_path):
    root = write_v3(tmp_path / "d", recorded, **video)
    dataset = open_dataset(root)
    for key in (TOP, WRIST):
        first, second = decoded(v3_video(root, key, 0)), decoded(v3_video(root, key, 1))
        np.testing.assert_array_equal(dataset.frames(0, key), first[:7])
        np.testing.assert_array_equal(dataset.frames(1, key), first[7:])
        np.testing.assert_array_equal(dataset.frames(2, key), second)


def test_colour_tags_change_nothing(recorded, tmp_path):
    # PyAV 15, with which LeRobot reads, ignores them; later versions would convert by them.
    tags = {"x264-params": "colormatrix=bt709:colorprim=bt709:transfer=bt709"}
    plain = open_dataset(write_v3(tmp_path / "plain", recorded))
    tagged = open_dataset(write_v3(tmp_path / "tagged", recorded, options=tags))
    np.testing.assert_array_equal(plain.frames(2, TOP), tagged.frames(2, TOP))


@pytest.mark.parametrize("video", [{"gop": 2}, {"gop": 250, "b_frames": 2}])
def test_sparse_frames_equal_dense_ones(video, tmp_path):
    dataset = open_dataset(write_v3(tmp_path / "d", demos((60, 40), ("top",)), **video))
    dense = dataset.frames(1, TOP)
    # Gaps of 1, 9, 10 and 11 frames at 10 frames per second: on both sides of a seek.
    wanted = [0, 1, 10, 20, 31, 39]
    sparse = list(dataset.scenes(episodes=[1], frames=wanted, chunk=1))
    for frame, scene in zip(wanted, sparse, strict=True):
        assert scene.frame == frame
        np.testing.assert_array_equal(scene.observation[TOP].numpy(), dense[frame])


def test_a_scene_is_what_the_policy_sees(folder, recorded):
    dataset = open_dataset(folder)
    scene = dataset.scene(1, 2, chunk=2)
    assert scene.address == "1:2"
    assert scene.source == folder.name
    assert list(scene.observation) == [TOP, WRIST, "observation.state"]
    assert scene.observation[TOP].dtype == torch.uint8
    np.testing.assert_array_equal(scene.observation[TOP].numpy(), dataset.frames(1, TOP)[2])
    np.testing.assert_array_equal(scene.observation["observation.state"], recorded[1].state[2])
    np.testing.assert_array_equal(scene.action, recorded[1].action[2:4])
    assert not scene.action_is_pad.any()
    assert scene.labels["cube_x"] == recorded[1].cube[2, 0]


@pytest.mark.parametrize(("frame", "chunk", "n_pad"), [(0, 5, 0), (1, 5, 1), (4, 3, 2), (4, 1, 0)])
def test_a_chunk_past_the_end_repeats_the_last_action(v3, recorded, frame, chunk, n_pad):
    scene = open_dataset(v3).scene(1, frame, chunk=chunk)
    recorded_actions = recorded[1].action
    assert scene.action.shape == (chunk, 3)
    assert scene.action_is_pad.tolist() == [False] * (chunk - n_pad) + [True] * n_pad
    valid = scene.action[: chunk - n_pad].numpy()
    np.testing.assert_array_equal(valid, recorded_actions[frame : frame + chunk - n_pad])
    for padded in scene.action[chunk - n_pad :]:
        np.testing.assert_array_equal(padded, recorded_actions[-1])


def test_scenes_walk_episodes_in_the_given_order(v3):
    dataset = open_dataset(v3)
    every = [scene.address for scene in dataset.scenes(chunk=1)]
    assert every == [f"{e}:{f}" for e, n in enumerate((7, 5, 9)) for f in range(n)]
    some = dataset.scenes(chunk=1, episodes=[2, 0], frames=slice(None, None, 4))
    assert [scene.address for scene in some] == ["2:0", "2:4", "2:8", "0:0", "0:4"]
    last = dataset.scenes(chunk=1, frames=slice(-1, None))
    assert [scene.address for scene in last] == ["0:6", "1:4", "2:8"]


def test_scenes_do_not_share_memory(v3):
    first, second = list(open_dataset(v3).scenes(chunk=2, episodes=[0], frames=[0, 1]))
    before = second.observation[TOP].clone()
    first.observation[TOP].zero_()
    first.action.zero_()
    assert torch.equal(second.observation[TOP], before)
    assert second.action.abs().sum() > 0


def test_a_dataset_without_cameras_has_scenes_too(tmp_path):
    dataset = open_dataset(write_v3(tmp_path / "d", demos(cameras=())))
    assert dataset.cameras == ()
    assert list(dataset.scene(0, 0, chunk=1).observation) == ["observation.state"]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda d: d.frames(9, TOP), "no episode 9; it has 0, 1, 2"),
        (lambda d: d.frames(0, "side"), "no camera 'side'; it has observation.images.top"),
        (lambda d: d.scene(0, 7, chunk=1), "no frame 7; it has 0..6"),
        (lambda d: d.scene(0, -1, chunk=1), "no frame -1"),
        (lambda d: d.scene(0, 0, chunk=0), "at least one action"),
        (lambda d: d.scenes(frames=[5], chunk=1), "Episode 1 has no frame 5"),
    ],
)
def test_what_is_not_there_is_named(v3, ask, message):
    with pytest.raises(SceneError, match=message):
        ask(open_dataset(v3))


def test_cameras_answer_to_their_short_names(v3):
    dataset = open_dataset(v3)
    np.testing.assert_array_equal(dataset.frames(0, "wrist"), dataset.frames(0, WRIST))


def test_depth_streams_are_left_out(v3):
    def add_depth(content):
        content["features"]["observation.images.depth"] = {
            "dtype": "video",
            "shape": [32, 48, 1],
            "names": ["height", "width", "channels"],
        }

    edit_info(v3, add_depth)
    assert [camera.name for camera in open_dataset(v3).cameras] == ["top", "wrist"]


def test_channel_first_shapes_are_understood(v3):
    def transpose(content):
        content["features"][TOP] |= {"shape": [3, 32, 48], "names": ["channels", "height", "width"]}

    edit_info(v3, transpose)
    assert open_dataset(v3).camera(TOP) == Camera(TOP, 32, 48)


def test_unnamed_dimensions_get_numbers(v3):
    edit_info(v3, lambda content: content["features"]["action"].update(names=None))
    assert open_dataset(v3).action_names == ("joint_0", "joint_1", "joint_2")


def test_episode_indices_need_not_be_positions(recorded, tmp_path):
    root = write_v2(tmp_path / "d", recorded)
    path = root / "meta/episodes.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:0:-1]))
    dataset = open_dataset(root)
    assert [e.index for e in dataset.episodes] == [1, 2]
    np.testing.assert_array_equal(dataset.actions(2), recorded[2].action)


def test_text_is_cleaned_when_it_enters(v3):
    def poison(content):
        names = ["\x1b]0;owned\x07pan", "li\u202eft", "grip\nper"]
        content["features"]["action"]["names"] = names

    edit_info(v3, poison)
    edit_episodes(v3, lambda rows: [row.update(tasks=["lift\x1b[2J the\r\ncube"]) for row in rows])
    dataset = open_dataset(v3)
    assert dataset.action_names == ("]0;ownedpan", "lift", "grip per")
    assert dataset.episodes[0].task == "lift[2J the cube"


def truncate(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def test_a_truncated_video_is_refused(v3):
    truncate(v3_video(v3, TOP), 0.6)
    with pytest.raises(SceneError, match=r"file-000\.mp4"):
        open_dataset(v3).frames(0, TOP)


def test_a_video_with_too_few_frames_is_refused(v3, recorded):
    pictures = np.concatenate([recorded[0].pictures[TOP], recorded[1].pictures[TOP][:3]])
    write_video(v3_video(v3, TOP), pictures)
    dataset = open_dataset(v3)
    assert len(dataset.frames(0, TOP)) == 7
    with pytest.raises(SceneError, match=r"5 frames were expected .* and 3 were found"):
        dataset.frames(1, TOP)


def test_a_video_of_another_size_is_refused(v3, recorded):
    write_video(v3_video(v3, TOP), demos((12,), ("top",), (48, 32))[0].pictures[TOP])
    with pytest.raises(SceneError, match=r"is 48x32; the dataset promises 32x48"):
        open_dataset(v3).frames(0, TOP)


def test_a_video_of_another_rate_is_refused(v3, recorded):
    pictures = np.concatenate([recorded[0].pictures[TOP], recorded[1].pictures[TOP]])
    write_video(v3_video(v3, TOP), pictures, fps=FPS - 1)
    with pytest.raises(SceneError, match="frames per second"):
        open_dataset(v3).frames(0, TOP)


def test_an_episode_does_not_run_into_the_next_ones_video(v3):
    def shift(rows):
        rows[0][f"videos/{TOP}/from_timestamp"] = 0.2

    edit_episodes(v3, shift)
    with pytest.raises(SceneError, match=r"its part of the file ends at 0\.7000 s"):
        open_dataset(v3).frames(0, TOP)


def test_a_missing_video_is_named(v3):
    v3_video(v3, WRIST, 1).unlink()
    with pytest.raises(SceneError, match=r"wrist.*file-001\.mp4 is missing"):
        open_dataset(v3).frames(2, WRIST)


def test_a_playlist_that_poses_as_a_video_is_not_obeyed(v3, tmp_path):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(v3_video(v3, WRIST).read_bytes())
    v3_video(v3, TOP).write_text(f"#EXTM3U\n#EXTINF:9,\nfile://{secret}\n#EXT-X-ENDLIST\n")
    with pytest.raises(SceneError, match="cannot be decoded"):
        open_dataset(v3).frames(0, TOP)
    v3_video(v3, TOP).write_text(f"ffconcat version 1.0\nfile {secret}\n")
    with pytest.raises(SceneError, match="cannot be decoded"):
        open_dataset(v3).frames(0, TOP)


DATA = "data/chunk-000/file-000.parquet"


def edit_table(root, change):
    path = root / DATA
    write_table(path, change(pq.read_table(path)))


def with_column(name, values):
    return lambda t: t.set_column(t.column_names.index(name), name, values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.slice(0, 10), "holds 3 frames of episode 1, the metadata promises 5"),
        (lambda t: t.drop_columns(["action"]), "lacks the column action"),
        (lambda t: t.take(list(range(11, -1, -1))), "episode 0 are not in order"),
        (
            with_column("action", pa.array([[1.0, 2.0]] * 12)),
            r"vectors of \[2\] numbers; info.json declares 3",
        ),
        (with_column("action", pa.array([1.0] * 12)), r"vectors of \[1\] numbers"),
        (
            with_column("observation.state", pa.array([[1.0, float("nan"), 0.0]] * 12)),
            "observation.state holds values that are not finite",
        ),
        (with_column("action", pa.array([["a", "b", "c"]] * 12)), "not finite numbers"),
        (with_column("timestamp", pa.array([None] * 12, pa.float32())), "12 missing values"),
        (with_column("timestamp", pa.array([float("inf")] * 12)), "times that are not numbers"),
        (with_column("action", pa.array([None] * 12, pa.list_(pa.float32(), 3))), "12 missing"),
    ],
)
def test_a_table_that_contradicts_the_metadata_is_refused(v3, change, message):
    edit_table(v3, change)
    dataset = open_dataset(v3)
    with pytest.raises(SceneError, match=message):
        [dataset.actions(episode) for episode in (0, 1)]


def test_a_damaged_table_is_refused(v3):
    truncate(v3 / DATA, 0.7)
    with pytest.raises(SceneError, match=r"file-000\.parquet cannot be read"):
        open_dataset(v3).actions(0)


def set_key(*keys, value):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_key("codebase_version", value="v1.6"), "version v1.6; actlens reads v2.0, v2.1"),
        (set_key("codebase_version", value=None), "version None"),
        (set_key("fps", value=0), "fps must lie in"),
        (set_key("fps", value="fast"), "fps must be a finite number, got fast"),
        (set_key("fps", value=10**400), "fps must be a finite number"),
        (set_key("features", value=[]), "declares no features"),
        (set_key("features", "action", "dtype", value="string"), "no float vector `action`"),
        (set_key("features", "action", "shape", value=[10**9]), "above 4096"),
        (set_key("features", TOP, "shape", value=[10**6, 10**6, 3]), "above 8192"),
        (set_key("features", TOP, "shape", value=[32, 48]), "not three axes"),
        (set_key("features", TOP, "shape", value="big"), "has the shape big"),
        (set_key("features", "observation.\x1b[2J", value={}), "cannot name a feature"),
    ],
)
def test_malformed_info_is_refused(v3, change, message):
    edit_info(v3, change)
    with pytest.raises(SceneError, match=message):
        open_dataset(v3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[0].update(length=0), "episode 0 has 0 frames"),
        (lambda rows: rows[0].update(length=-3), "length must be a natural number, got -3"),
        (lambda rows: rows[1].update(episode_index=0), "more than once"),
        (lambda rows: [row.update({"data/file_index": None}) for row in rows], "data/file_index"),
        (
            lambda rows: rows[0].update({f"videos/{TOP}/from_timestamp": float("nan")}),
            "from_timestamp must be a finite number",
        ),
    ],
)
def test_malformed_episodes_are_refused(v3, change, message):
    edit_episodes(v3, change)
    with pytest.raises(SceneError, match=message):
        open_dataset(v3)


def test_malformed_json_is_refused(v3, recorded, tmp_path):
    (v3 / "meta/info.json").write_text("{" * 100_000)
    with pytest.raises(SceneError, match="cannot be read as JSON"):
        open_dataset(v3)
    v2 = write_v2(tmp_path / "v2", recorded)
    (v2 / "meta/episodes.jsonl").write_text('{"episode_index": 0\n')
    with pytest.raises(SceneError, match="cannot be read as JSON lines"):
        open_dataset(v2)
    (v2 / "meta/episodes.jsonl").write_text("[1]\n")
    with pytest.raises(SceneError, match="one JSON object a line"):
        open_dataset(v2)


def test_a_v3_dataset_needs_its_episodes(v3):
    (v3 / "meta/episodes/chunk-000/file-000.parquet").unlink()
    with pytest.raises(SceneError, match="meta/episodes"):
        open_dataset(v3)


@pytest.fixture
def with_pictures(recorded, tmp_path):
    return write_v3(tmp_path / "pictures", recorded, image_mode=True)


def set_pictures(root, rows):
    rows = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    edit_table(root, with_column(TOP, rows))


def test_pictures_may_be_files_of_the_dataset(with_pictures, recorded):
    pictures = np.concatenate([recorded[0].pictures[TOP], recorded[1].pictures[TOP]])
    (with_pictures / "images").mkdir()
    for i, picture in enumerate(pictures):
        (with_pictures / f"images/{i}.png").write_bytes(png(picture))
    set_pictures(with_pictures, [{"bytes": None, "path": f"images/{i}.png"} for i in range(12)])
    frames = open_dataset(with_pictures).frames(1, TOP)
    np.testing.assert_array_equal(frames, recorded[1].pictures[TOP])


@pytest.mark.parametrize("path", ["../outside.png", "/etc/hostname", "images/../../outside.png"])
def test_pictures_outside_the_dataset_are_refused(with_pictures, recorded, path):
    (with_pictures.parent / "outside.png").write_bytes(png(recorded[0].pictures[TOP][0]))
    set_pictures(with_pictures, [{"bytes": None, "path": path}] * 12)
    with pytest.raises(UnsafeFileError, match="outside it; it was not opened"):
        open_dataset(with_pictures).frames(0, TOP)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a picture", "cannot be decoded"),
        (png(np.zeros((3, 9, 9), np.uint8)), "9x9 pixels in mode RGB; 32x48 in RGB"),
        (png(np.zeros((3, 32, 48), np.uint8))[:-40], "cannot be decoded"),
        (b"GIF89a" + bytes(100), "cannot be decoded"),
        (None, "neither bytes nor a path"),
    ],
)
def test_a_picture_that_is_none_is_refused(with_pictures, content, message):
    set_pictures(with_pictures, [{"bytes": content, "path": None}] * 12)
    with pytest.raises(SceneError, match=message):
        open_dataset(with_pictures).frames(0, TOP)


@pytest.mark.parametrize("name", ["meta/info.json", DATA, "meta/episodes", "video"])
def test_mutated_files_are_read_or_refused_never_worse(v3, name):
    path = {
        "video": v3_video(v3, TOP),
        "meta/episodes": v3 / "meta/episodes/chunk-000/file-000.parquet",
    }.get(name, v3 / name)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(40):
        mutated = bytearray(whole)
        for _ in range(rng.integers(1, 9)):
            mutated[rng.integers(len(mutated))] = rng.integers(256)
        path.write_bytes(mutated[: rng.integers(len(mutated))] if rng.random() < 0.2 else mutated)
        try:
            dataset = open_dataset(v3)
            for episode in dataset.episodes[:2]:
                dataset.actions(episode.index)
                dataset.frames(episode.index, TOP)
        except ActlensError:
            refused += 1
    assert refused > 5


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_linked_table_outside_is_refused(v3, tmp_path):
    outside = tmp_path / "outside.parquet"
    (v3 / DATA).rename(outside)
    (v3 / DATA).symlink_to(outside)
    with pytest.raises(UnsafeFileError, match="leads out of the dataset's folder"):
        open_dataset(v3).actions(0)


def test_info_json_may_not_be_an_array(v3):
    (v3 / "meta/info.json").write_text(json.dumps([1]))
    with pytest.raises(SceneError, match="holds a list, an object was expected"):
        open_dataset(v3)
