"""Which scenes lie beyond the demonstrations, which errors are large, and would one be warned."""

import numpy as np
import pytest

from actlens.retrieval import (
    Demonstrations,
    Errors,
    NearestNeighbours,
    RetrievalError,
    beyond_demonstrations,
    by_episode_mean,
    estimators,
    large_errors,
    warned,
    warned_frame,
)
from actlens.retrieval.estimators import Memory
from actlens.statistics import wilson


def at_places(places, keys=None, chunk=3):
    n = len(places)
    actions = np.zeros((n, chunk, 2))
    labels = {"cube_x": np.array(places)[:, 0], "cube_y": np.array(places)[:, 1]}
    whole = np.ones((n, chunk), bool)
    return Demonstrations(
        keys or {}, actions, actions, whole, np.arange(n), np.zeros(n, int), labels
    )


SQUARE = [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5)]


def test_beyond_is_outside_of_the_hull_and_farther_than_demonstrations_are_apart():
    asked = at_places([(0.5, 0.2), (1.1, 0.5), (3.0, 0.5), (0.5, 0.5)])
    assert beyond_demonstrations(at_places(SQUARE), asked).tolist() == [False, False, True, False]


def test_demonstrations_in_a_line_have_no_hull():
    line = at_places([(0.0, 0.0), (0.0, 1.0), (0.0, 2.0)])
    asked = at_places([(0.5, 0.5), (0.0, 5.0), (4.0, 1.0)])
    assert beyond_demonstrations(line, asked).tolist() == [False, True, True]


def test_where_the_object_is_must_be_known():
    with pytest.raises(RetrievalError, match="no label 'ball'"):
        beyond_demonstrations(at_places(SQUARE), at_places(SQUARE), ("ball",))


def test_errors_of_an_episode_are_pooled_over_its_scenes():
    errors = Errors(("all joints",), np.array([[2.0, 4.0, 9.0]]), np.array([1, 2, 3]))
    assert by_episode_mean(errors, np.array([5, 5, 1])).tolist() == [3.0, 2.0]


def test_a_large_error_is_rare_at_home():
    home = np.arange(100.0)
    assert large_errors(home, np.array([0.0, 90.0, 95.0, 500.0])).tolist() == [
        False, False, True, True,
    ]  # fmt: skip


def test_a_monitor_warns_of_what_is_far_and_says_how_well_that_tells_errors():
    rng = np.random.default_rng(0)
    known = at_places(rng.random((30, 2)), {"x": rng.random((30, 3, 4)).astype(np.float32)})
    far = rng.random((20, 3, 4)).astype(np.float32)
    far[10:] += 9
    asked = at_places(rng.random((20, 2)), {"x": far})
    large = np.arange(20) >= 10
    sets = {"near": ~large, "far": large}
    (found,) = warned(known, asked, large, sets, sites=["x"], positions=[0, 2], false_alarms=0.1)
    assert found.alarms["far"] == (10, 10)
    assert found.alarms["near"][0] <= 4
    assert found.auc.estimate == 1
    table = warned_frame([found]).set_index("scenes")
    assert table.share["far"] == 1
    assert (table.share_low["far"], table.share_high["far"]) == wilson(10, 10)
    # Positions that are not carried out do not count.
    far[:, 1] = 1e3
    (again,) = warned(
        known, at_places(rng.random((20, 2)), {"x": far}), large, sets,
        sites=["x"], positions=[0, 2], false_alarms=0.1,
    )  # fmt: skip
    assert again.alarms == found.alarms


def test_without_large_errors_there_is_nothing_to_tell():
    rng = np.random.default_rng(1)
    known = at_places(rng.random((30, 2)), {"x": rng.random((30, 4)).astype(np.float32)})
    nobody = np.zeros(30, bool)
    (found,) = warned(known, known, nobody, {"all": ~nobody}, sites=["x"], positions=[0])
    assert "no rollout failed" in warned_frame([found]).undefined[0]


def test_few_keys_are_compared_as_the_search_finds_them(monkeypatch):
    rng = np.random.default_rng(2)
    keys = np.round(rng.standard_normal((80, 5)), 1).astype(np.float32)  # with ties
    episodes = rng.integers(0, 9, 80)
    memory = lambda: Memory(keys, np.zeros((80, 1)), np.ones((80, 1), bool), episodes)
    queries = np.round(rng.standard_normal((20, 5)), 1).astype(np.float32)
    few = memory().others(7), memory().nearest(queries, 7)
    monkeypatch.setattr(estimators, "_COMPARED", 0)
    many = memory().others(7), memory().nearest(queries, 7)
    for (rows, distance), (expected, exact) in zip(few, many, strict=True):
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_allclose(distance, exact, rtol=1e-12)
    searched = NearestNeighbours.of(keys).search(queries, 7)
    np.testing.assert_array_equal(few[1][0], searched.indices)


def test_a_scene_without_enough_others_is_refused():
    memory = Memory(np.eye(3), np.zeros((3, 1)), np.ones((3, 1), bool), np.array([0, 0, 1]))
    with pytest.raises(RetrievalError, match="fewer than k = 2"):
        memory.others(2)


def test_chunks_of_some_positions_keep_their_own_keys():
    values = np.arange(24.0).reshape(2, 3, 4).astype(np.float32)
    whole = at_places([(0, 0), (1, 1)], {"by position": values, "one": values[:, 0]})
    some = whole.at_positions([0, 2])
    np.testing.assert_array_equal(some.keys["by position"], values[:, [0, 2]])
    np.testing.assert_array_equal(some.keys["one"], values[:, 0])
    assert some.actions.shape == (2, 2, 2)
