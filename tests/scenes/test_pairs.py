"""Clean/corrupt pairs of recorded scenes: what they share, what they differ in, their donors."""

import numpy as np
import pytest
from datasets_on_disk import demos, write_v3

from actlens.errors import SceneError
from actlens.scene import Scene, episode_numbers
from actlens.scenes.alignment import alignment, alignment_frame
from actlens.scenes.dataset import open_dataset
from actlens.scenes.pairs import (
    label_family,
    nearest_pairs,
    pair_from_addresses,
    parse_address,
)


def planted():
    """Six episodes that start alike; cubes at three places, two episodes at each."""
    made = demos((6,) * 6, ("top",))
    for index, demo in enumerate(made):
        rng = np.random.default_rng(index)
        demo.state[:] = np.linspace(0, 1, 6)[:, None] * (1 + index) + rng.normal(0, 1e-3, (6, 3))
        demo.cube[:] = [0.1 * (index // 2), 0.0, 0.02, 3.0 * (index % 2)]
        demo.action[:] = index // 2 + rng.normal(0, 1e-3, (6, 3))
    return made


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(write_v3(tmp_path_factory.mktemp("pairs") / "d", planted(), per_file=6))


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    import json

    root = write_v3(tmp_path_factory.mktemp("pairs") / "d", planted(), per_file=6)
    info = json.loads((root / "meta/info.json").read_text())
    del info["features"]["label.cube"]
    (root / "meta/info.json").write_text(json.dumps(info))
    return open_dataset(root)


def test_a_pair_is_named_by_addresses(dataset):
    pair = pair_from_addresses(dataset, "1:3", "4:3", chunk=2)
    assert (pair.clean.address, pair.corrupt.address) == ("1:3", "4:3")
    assert pair.differs_in == "everything between 1:3 and 4:3, both at frame 3"
    assert pair.unrelated_clean is None
    assert pair.clean.action.shape == (2, 3)


@pytest.mark.parametrize(
    "address", ["", "3", "3:", ":4", "a:4", "3:-1", "3:4:5", "3:4 ", "³:4", "3.0:1"]
)
def test_malformed_addresses_are_refused(address):
    with pytest.raises(SceneError, match="EPISODE:FRAME"):
        parse_address(address)


def test_addresses_of_nothing_are_refused(dataset):
    with pytest.raises(SceneError, match="no frame 6"):
        pair_from_addresses(dataset, "0:0", "0:6", chunk=1)


def test_nearest_pairs_share_frame_and_state_and_differ_in_the_label(dataset):
    pairs = nearest_pairs(dataset, chunk=2, n_pairs=3)
    assert len(pairs) == 3
    for pair in pairs:
        apart = alignment(pair.clean, pair.corrupt)
        assert apart.frames == 0
        assert apart.state < 0.02
        assert pair.clean.episode != pair.corrupt.episode
        assert abs(apart.labels["cube_x"]) > 0.05
        assert pair.differs_in.startswith("cube, and whatever else")
    assert abs(alignment(pairs[0].clean, pairs[0].corrupt).labels["cube_x"]) == pytest.approx(0.2)


def test_every_episode_is_used_before_one_is_used_again(dataset):
    pairs = nearest_pairs(dataset, chunk=1, n_pairs=2)
    # Four pairs of episodes are as far apart; these two use four episodes and not three.
    assert sorted(s.episode for p in pairs for s in (p.clean, p.corrupt)) == [0, 1, 4, 5]


def test_pairs_that_hardly_differ_are_left_out(dataset):
    pairs = nearest_pairs(dataset, chunk=1, n_pairs=100)
    # Of the 15 pairs of episodes, three have the cube at the same place.
    assert len(pairs) == 12


def test_donors_agree_in_the_label_and_in_nothing_else(dataset):
    for pair in nearest_pairs(dataset, chunk=1, n_pairs=3):
        for scene, donor in (
            (pair.clean, pair.unrelated_clean),
            (pair.corrupt, pair.unrelated_corrupt),
        ):
            assert donor.episode not in (pair.clean.episode, pair.corrupt.episode)
            assert donor.labels["cube_x"] == scene.labels["cube_x"]
            assert alignment(scene, donor).state > 0.5
            assert donor.frame == 5


def test_a_single_label_may_be_chosen(dataset):
    for pair in nearest_pairs(dataset, chunk=1, n_pairs=3, differ_in="cube_yaw"):
        assert abs(alignment(pair.clean, pair.corrupt).labels["cube_yaw"]) == pytest.approx(3)


def test_a_family_of_labels_means_the_position(dataset):
    assert label_family(dataset, "cube") == ("cube_x", "cube_y", "cube_z")
    assert label_family(dataset, "cube_yaw") == ("cube_yaw",)
    assert label_family(dataset, None) == ()
    with pytest.raises(SceneError, match="no label 'ball'; it has cube_x"):
        label_family(dataset, "ball")


def test_without_labels_pairs_are_far_in_action(unlabelled):
    pairs = nearest_pairs(unlabelled, chunk=3, n_pairs=3)
    assert pairs[0].differs_in == "what two recordings show while their states agree"
    for pair in pairs:
        assert pair.clean.frame == pair.corrupt.frame == 0
        assert alignment(pair.clean, pair.corrupt).state < 0.02
        assert pair.unrelated_clean.frame == 0
        assert pair.unrelated_clean.episode not in (pair.clean.episode, pair.corrupt.episode)
    assert (pairs[0].clean.action - pairs[0].corrupt.action).abs().mean() == pytest.approx(2, 0.01)


def test_pairs_need_states_that_agree(dataset):
    with pytest.raises(SceneError, match="raise max_state_distance"):
        nearest_pairs(dataset, chunk=1, frame=5, max_state_distance=0.01)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"frame": 6}, "takes two episodes; none of .* has a frame 6"),
        ({"frame": -1}, "none of .* has a frame -1"),
        ({"n_pairs": 0}, "at least one pair, not 0"),
    ],
    ids=str,
)
def test_pairs_that_cannot_be_are_refused_by_their_reason(dataset, asked, message):
    with pytest.raises(SceneError, match=message):
        nearest_pairs(dataset, chunk=1, **asked)


def test_one_episode_makes_no_pair(tmp_path):
    dataset = open_dataset(write_v3(tmp_path / "d", planted()[:1]))
    with pytest.raises(SceneError, match="takes two episodes; 1 of d's 1 has a frame 0"):
        nearest_pairs(dataset, chunk=1)


def test_two_episodes_leave_no_donors(tmp_path):
    dataset = open_dataset(write_v3(tmp_path / "d", planted()[1:3]))
    (pair,) = nearest_pairs(dataset, chunk=1)
    assert pair.unrelated_clean is None
    assert pair.unrelated_corrupt is None


def test_other_labels_can_be_held_alike(dataset):
    free = nearest_pairs(dataset, chunk=1, n_pairs=3)
    assert any(alignment(p.clean, p.corrupt).labels["cube_yaw"] for p in free)
    held = nearest_pairs(dataset, chunk=1, n_pairs=3, max_label_distance=0.1)
    for pair in held:
        apart = alignment(pair.clean, pair.corrupt)
        assert apart.labels["cube_yaw"] == 0
        assert abs(apart.labels["cube_x"]) > 0.05
    # Of the 12 pairs of episodes with the cube at two places, half agree in its heading.
    assert len(nearest_pairs(dataset, chunk=1, n_pairs=99, max_label_distance=0.1)) == 6


def test_labels_that_nothing_can_hold_alike_are_refused(dataset, unlabelled):
    with pytest.raises(SceneError, match="raise max_state_distance or max_label_distance"):
        nearest_pairs(dataset, chunk=1, max_label_distance=-1.0)
    with pytest.raises(SceneError, match=r"max_label_distance bounds .* has the labels none"):
        nearest_pairs(unlabelled, chunk=1, max_label_distance=1.0)


def test_the_table_says_how_far_recorded_pairs_are_apart(dataset):
    table = alignment_frame(nearest_pairs(dataset, chunk=1, n_pairs=2))
    pairs, donors = table[table.compared == "pair"], table[table.compared != "pair"]
    assert len(pairs) == 2
    assert (pairs["label cube_x"].abs() > 0.05).all()
    assert (pairs.state < 0.02).all()
    assert (donors["label cube_x"] == 0).all()
    assert (donors.state > 0.5).all()
    assert (pairs["share observation.images.top"] > 0).all()


def test_episodes_are_numbered_as_they_come_and_those_of_two_datasets_stay_apart():
    one = lambda source, episode: Scene({}, source=source, episode=episode)
    scenes = [one("b", 7), one("b", 7), one("a", 7), one("b", 2), one("a", 7)]
    assert episode_numbers(scenes).tolist() == [0, 0, 1, 2, 1]
    assert episode_numbers([]).tolist() == []
