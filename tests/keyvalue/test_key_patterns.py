"""What triggers share: planted detectors are found and typed, and chance is not."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from actlens.config import Activation
from actlens.keyvalue import Entries, Keys, episode_identity, find_patterns, read_memories
from actlens.keyvalue.rules import discs_by_chance, in_the_plane, on_a_line, planes
from actlens.model.mlp_site import MLPSite

N_EPISODES, N_FRAMES, N_POSITIONS = 60, 10, 4
TRAITS = ("frame", "cube_x", "cube_y", "position", "noise")


def test_the_densest_interval_is_found_and_scored():
    entries = np.linspace(0, 1, 1001)
    triggers = np.array([[0.40, 0.41, 0.42, 0.43, 0.9]])
    found, ends = on_a_line(triggers, entries)
    np.testing.assert_allclose(ends, [[0.40, 0.43]])
    assert (found.n[0], found.first[0], found.last[0]) == (4, 0, 3)
    share = (31 + 4) / (1001 + 5)  # the triggers are counted among all entries
    np.testing.assert_allclose(found.share, share)
    part = 4 / 5
    score = 4 * math.log(part / share) + 1 * math.log((1 - part) / (1 - share))
    np.testing.assert_allclose(found.score, score)


def test_ties_and_unknown_values_belong_where_they_are():
    entries = np.repeat([0.0, 1.0, 2.0, np.nan], [500, 20, 400, 80])
    triggers = np.array([[1.0, 1.0, 1.0, 0.0, np.nan], [np.nan] * 5])
    found, ends = on_a_line(triggers, entries)
    assert ends[0].tolist() == [1.0, 1.0]
    assert found.n.tolist() == [3, 0]
    np.testing.assert_allclose(found.share[0], (20 + 3) / (1000 + 5))
    assert found.score[1] == 0


def test_a_crowd_takes_three_triggers_three_times_as_dense():
    entries = np.linspace(0, 1, 10_001)
    two, even = np.array([[0.5, 0.5001, 0.01]]), np.linspace(0.05, 0.95, 25)[None]
    assert on_a_line(two, entries)[0].score[0] == 0
    assert on_a_line(even, entries)[0].score[0] == 0


def test_the_densest_disc_is_found():
    rng = np.random.default_rng(0)
    entries = rng.random((2000, 2))
    crowd = 0.3 + 0.02 * (rng.random((6, 2)) - 0.5)
    triggers = np.concatenate([crowd, [[0.9, 0.1], [0.1, 0.9]]])[None]
    found, disc = in_the_plane(triggers, entries)
    assert found.n[0] == 6
    assert np.linalg.norm(disc[0, :2] - 0.3) < 0.02
    assert disc[0, 2] < 0.03
    inside = np.linalg.norm(entries - disc[0, :2], axis=1) <= disc[0, 2]
    np.testing.assert_allclose(found.share, (inside.sum() + 6) / 2008)


def test_discs_by_chance_are_those_of_the_same_points_given_as_triggers():
    rng = np.random.default_rng(1)
    entries = rng.random((200, 2))
    drawn = np.stack([rng.permutation(200)[:8] for _ in range(50)])
    by_chance = discs_by_chance(drawn, entries)
    for i in (0, 17, 49):
        others = np.delete(entries, drawn[i], axis=0)  # `in_the_plane` counts triggers in
        found, _ = in_the_plane(entries[drawn[i]][None], others)
        np.testing.assert_allclose(found.score[0], by_chance.score[i])


def test_coordinates_of_one_thing_make_a_plane():
    names = ("frame", "cube_x", "cube_y", "cube_z", "bin_x", "goal_y")
    assert planes(names) == {"cube": (1, 2)}


# ── planted memories: every input says what the moment is, and keys pick from it ─────────────


def moments():
    """Inputs: time in 10 one-hot frames, 4 one-hot positions, two for the place, 60 one-hot
    episodes, noise."""
    rng = np.random.default_rng(3)
    place = rng.random((N_EPISODES, 2))
    for episode in range(N_EPISODES):
        shape = (N_FRAMES, N_POSITIONS)
        inputs = np.zeros((*shape, 10 + 4 + 2 + N_EPISODES + 8), np.float32)
        frame, position = np.meshgrid(np.arange(N_FRAMES), np.arange(N_POSITIONS), indexing="ij")
        inputs[frame, position, frame] = 1
        inputs[frame, position, 10 + position] = 1
        inputs[..., 14:16] = place[episode]
        inputs[..., 16 + episode] = 1
        inputs[..., -8:] = rng.standard_normal((*shape, 8))
        traits = np.empty((*shape, len(TRAITS)), np.float32)
        traits[..., 0], traits[..., 3] = frame, position
        traits[..., 1:3] = place[episode]
        traits[..., 4] = rng.random(shape)
        yield Entries(
            ("planted", episode),
            np.arange(N_FRAMES),
            np.arange(N_POSITIONS),
            torch.from_numpy(inputs),
            torch.ones(shape, dtype=torch.bool),
            TRAITS,
            traits,
        )


PHASE, PLACE_X, CELL, NOISE, RARE, DEAD = range(6)


@pytest.fixture(scope="module")
def reading():
    weight = torch.zeros(6, 10 + 4 + 2 + N_EPISODES + 8)
    weight[PHASE, 3] = weight[PHASE, 12] = 1.0
    weight[PLACE_X, 14] = 1.0
    weight[CELL, 16 + 7] = 1.0
    weight[NOISE, -8:] = 1.0
    weight[RARE, 16:20] = 1.0
    for neuron in (PHASE, PLACE_X, CELL, RARE):
        weight[neuron, -1] = 1e-3  # no ties
    bias = torch.tensor([-1.5, -0.6, -0.5, 0.0, -0.5, -1.0])
    keys = Keys(MLPSite("decoder.0"), weight, bias, Activation.RELU)
    (found,) = read_memories([keys], moments(), top=25)
    return found


@pytest.fixture(scope="module")
def patterns(reading):
    return find_patterns(reading, draws=1999)


def significant(patterns, neuron):
    return {patterns.traits[i] for i in np.flatnonzero(patterns.significant()[neuron])}


def test_a_phase_detector_is_typed_as_one(reading, patterns):
    assert significant(patterns, PHASE) == {"frame", "position"}
    frame = patterns.traits.index("frame")
    assert patterns.region[PHASE, frame, :2].tolist() == [3, 3]
    assert patterns.n[PHASE, frame] == patterns.n_triggers[PHASE]
    np.testing.assert_allclose(patterns.coverage()[PHASE], 1)
    assert reading.activity.frame_share[PHASE] > 0.1 > reading.activity.episode_share[PHASE]


def test_a_place_detector_is_typed_as_one(patterns):
    assert {"cube_x", "cube"} >= significant(patterns, PLACE_X) >= {"cube_x"}
    low, high, _ = patterns.region[PLACE_X, patterns.traits.index("cube_x")]
    assert 0.75 < low < high <= 1


def test_noise_has_no_pattern(patterns):
    assert significant(patterns, NOISE) == set()
    assert patterns.coverage()[NOISE] == 0


def test_neurons_that_fire_in_too_few_episodes_are_not_tested(patterns):
    assert patterns.n_triggers[[CELL, RARE, DEAD]].tolist() == [0, 0, 0]
    assert np.isnan(patterns.p[[CELL, RARE, DEAD]]).all()
    assert np.isnan(patterns.coverage()[DEAD])
    assert patterns.n_triggers[PHASE] == 12  # a quarter of 60 episodes, and of the known sizes


def test_a_neuron_that_is_the_same_everywhere_looks_for_nothing():
    weight, bias = torch.zeros(3, 10 + 4 + 2 + N_EPISODES + 8), torch.ones(3)
    keys = Keys(MLPSite("decoder.0"), weight, bias, Activation.RELU)
    (even,) = read_memories([keys], moments(), top=25)
    assert not find_patterns(even, draws=999).significant().any()
    assert len(np.unique(even.by_episode.position)) == N_POSITIONS
    assert len(np.unique(even.by_episode.frame)) > N_FRAMES / 2


def test_the_patterns_table_says_what_the_arrays_say(patterns):
    frame = patterns.frame()
    row = frame[(frame.neuron == PHASE) & (frame.trait == "frame")].iloc[0]
    assert (row.low_or_x, row.high_or_y, row.triggers, row["of"]) == (3, 3, 12, 12)
    np.testing.assert_allclose(row["lift"], 1 / row.share_of_entries)


def test_chance_alone_is_found_as_often_as_announced(reading):
    """Triggers that are entries drawn at random: p is uniform, in every trait."""
    rng = np.random.default_rng(5)
    background = reading.background
    n = 600
    by_episode = [np.flatnonzero(background.episode == e) for e in range(N_EPISODES)]
    drawn = np.stack(
        [[rng.choice(by_episode[e]) for e in rng.permutation(N_EPISODES)[:25]] for _ in range(n)]
    )
    top = reading.by_episode
    random = replace(
        top,
        coefficient=np.ones((n, 25), np.float32),
        episode=background.episode[drawn],
        frame=np.zeros((n, 25), np.int64),
        position=np.zeros((n, 25), np.int64),
        traits=background.traits[drawn],
    )
    noise = TRAITS.index("noise")
    random.traits[..., noise] = rng.random((n, 25))
    found = find_patterns(replace(reading, by_episode=random), draws=999)
    for trait, name in enumerate(found.traits):
        share = (found.p[:, trait] <= 0.05).mean()
        assert share < 0.05 + 4 * np.sqrt(0.05 * 0.95 / n), name
    assert found.significant().mean() < 0.01
    assert abs((found.p[:, noise] <= 0.05).mean() - 0.05) < 0.036


# ── episode identity ─────────────────────────────────────────────────────────────────────────


def test_a_cell_of_a_table_is_known_by_its_episode(reading):
    identity = episode_identity(reading)
    assert identity.n_triggers == N_FRAMES
    assert np.flatnonzero(identity.cells()).tolist() == [CELL]
    assert (identity.distinct[CELL], identity.largest[CELL]) == (1, 1.0)
    assert reading.episodes[identity.episode[CELL]] == ("planted", 7)
    assert identity.q[CELL] < 0.001


def test_a_rule_of_place_is_no_cell_though_its_strongest_frames_are_of_one_episode(reading):
    identity = episode_identity(reading)
    assert np.flatnonzero(identity.concentrated()).tolist() == [PLACE_X, CELL]
    assert identity.margin[PLACE_X] < 0.3 < identity.margin[CELL] == 1


def test_few_episodes_are_not_one(reading):
    identity = episode_identity(reading)
    assert identity.distinct[RARE] > 1
    assert not identity.concentrated()[RARE]
    assert identity.q[RARE] < 0.05  # but they are fewer than chance gives


def test_what_ignores_episodes_spreads_as_chance_does(reading):
    identity = episode_identity(reading)
    for neuron in (NOISE, PHASE):
        assert identity.p[neuron] > 0.05
    # Ten draws of sixty: 60 (1 - (59/60)^10) distinct ones.
    expected = N_EPISODES * (1 - (1 - 1 / N_EPISODES) ** 10)
    assert abs(identity.distinct_by_chance - expected) < 0.05
    assert np.isnan([identity.p[DEAD], identity.margin[DEAD]]).all()
    assert identity.episode[DEAD] == -1
