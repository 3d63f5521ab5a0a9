import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors as Reference

from actlens.retrieval import search
from actlens.retrieval.exact import Nearest
from actlens.retrieval.keys import RetrievalError
from actlens.retrieval.reduced import ReducedKeys, scaled
from actlens.retrieval.search import NearestNeighbours

REDUCED = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "f32"])


def by_hand(keys, queries, k, keep=None):
    """The k nearest by every distance in float64, ties to the lower row."""
    distance = cdist(queries.astype(np.float64), keys.astype(np.float64))
    if keep is not None:
        distance = np.where(keep, distance, np.inf)
    order = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distance, order, 1)


def trajectories(rng, n, d):
    """Frames of smooth paths, so that every key has neighbours that are nearly as near."""
    steps = rng.standard_normal((n // 50 + 1, 50, d)).cumsum(1) * 0.01
    return (rng.standard_normal((n // 50 + 1, 1, d)) + steps).reshape(-1, d)[:n].astype(np.float32)


@REDUCED
@pytest.mark.parametrize("n", [1, 7, 3000, 40_000])
@pytest.mark.parametrize("k", [1, 10])
def test_finds_what_scikit_learn_finds_by_comparing_all(dtype, n, k):
    rng = np.random.default_rng(n)
    keys, queries = trajectories(rng, n, 24), trajectories(rng, 40, 24)
    k = min(k, n)
    found = NearestNeighbours.of(keys, dtype=dtype).search(queries, k)
    distance, index = Reference(n_neighbors=k, algorithm="brute").fit(keys).kneighbors(queries)
    assert np.array_equal(found.indices, index)
    assert np.allclose(found.distances, distance, rtol=1e-6, atol=1e-6)
    assert (found.margin >= 0).all()


@REDUCED
def test_most_keys_are_ruled_out_by_the_bound(dtype):
    rng = np.random.default_rng(0)
    found = NearestNeighbours.of(trajectories(rng, 50_000, 32), dtype=dtype).search(
        trajectories(rng, 20, 32), 5
    )
    assert found.examined.mean() < 500


@st.composite
def hard_cases(draw):
    """Keys that differ little, not at all, or by many orders of magnitude."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d = draw(st.integers(1, 400)), draw(st.integers(1, 40))
    keys = rng.standard_normal((n, d))
    keys *= 10.0 ** draw(st.sampled_from([0, -20, 20]))
    if draw(st.booleans()):  # lengths from tiny to huge
        keys *= 10.0 ** rng.integers(-6, 6, (n, 1))
    if draw(st.booleans()):  # far from the origin
        keys += 1e4 * np.abs(keys).max() * rng.standard_normal(d)
    if draw(st.booleans()):  # exact duplicates
        keys = keys[rng.integers(0, max(1, n // 4), n)]
    if draw(st.booleans()):  # near ties: one number of float32 apart
        keys[1:] = np.nextafter(keys[:1].astype(np.float32), np.float32(np.inf))
        keys[1:, 0] += rng.integers(0, 3, n - 1) * np.spacing(np.float32(keys[0, 0]))
    if draw(st.booleans()):
        keys[rng.random(n) < 0.3] = 0.0
    if draw(st.booleans()):  # whole numbers, of which many are equally near
        keys = np.round(keys / np.abs(keys).max() * 3) if keys.any() else keys
    keys = keys.astype(draw(st.sampled_from([np.float32, np.float64])))
    queries = np.concatenate(
        [keys[rng.integers(0, n, 3)], rng.standard_normal((2, d)) * np.abs(keys).max() + keys[0]]
    )
    queries = queries.astype(keys.dtype)
    return keys, queries, draw(st.sampled_from([1, 2, 16])), draw(st.integers(1, min(n, 12)))


@REDUCED
@given(case=hard_cases(), many=st.sampled_from([0, 1024]))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_no_near_tie_duplicate_zero_or_huge_key_is_missed(dtype, case, many):
    keys, queries, group, k = case
    index = NearestNeighbours(keys, ReducedKeys.of(keys, dtype, group=group))
    with pytest.MonkeyPatch.context() as patch:  # whether keys are looked at once more one by one
        patch.setattr(search, "_MANY", many)
        found = index.search(queries, k)
    assert (found.margin >= 0).all()
    largest = max(float(np.abs(keys).max()), float(np.abs(queries).max()), 1e-300)
    scale = 2.0 ** -np.ceil(np.log2(largest))
    difference = (keys.astype(np.float64)[None] - queries.astype(np.float64)[:, None]) * scale
    squared = np.einsum("qnd,qnd->qn", difference, difference)
    rows = np.arange(len(queries))[:, None]
    assert np.allclose(squared[rows, found.indices], np.sort(squared, 1)[:, :k], rtol=1e-12)
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    agree = found.indices == order
    # Where the order differs, float64 itself cannot tell the two keys apart.
    assert np.allclose(
        squared[rows, found.indices][~agree], squared[rows, order][~agree], rtol=1e-13, atol=0
    )


@REDUCED
@given(case=hard_cases())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_score_exceeds_its_bound(dtype, case):
    keys, queries, group, _ = case
    reduced = ReducedKeys.of(keys, dtype, group=group)
    centred = scaled(reduced, queries)
    own = scaled(reduced, keys)
    score = (np.square(centred).sum(1)[:, None] - cdist(centred, own, "sqeuclidean")) / 2
    best = np.maximum.reduceat(score, np.arange(0, len(keys), reduced.group), axis=1)
    slack = 1e-12 * (np.linalg.norm(centred, axis=1) + 1)[:, None] ** 2
    assert (reduced.best_scores(centred).double().numpy() >= best - slack).all()
    near = np.linalg.norm(centred, axis=1) < 2.0**50
    for i in np.flatnonzero(near):
        rows, bounds = reduced.key_scores(centred[i], np.arange(reduced.n_groups))
        assert np.array_equal(np.sort(rows), np.arange(len(keys)))
        assert (bounds >= score[i, rows] - slack[i]).all()


@REDUCED
@pytest.mark.parametrize(("n", "d"), [(5000, 64), (60, 20_001)])
def test_bounds_are_close_above_the_scores(dtype, n, d):
    rng = np.random.default_rng(3)
    keys = rng.standard_normal((n, d)).astype(np.float32) + rng.standard_normal(d)
    reduced = ReducedKeys.of(keys, dtype)
    centred, own = scaled(reduced, keys[:50]), scaled(reduced, keys)
    excess = reduced.best_scores(centred).double().numpy() - (
        centred @ own.T - np.square(own).sum(1) / 2
    )
    size = np.square(own).sum(1).mean()
    assert excess.min() >= -1e-12
    assert excess.max() < size * {torch.bfloat16: 0.03, torch.float32: 2e-3}[dtype]


def test_equal_keys_are_found_in_order():
    keys = np.tile(np.random.default_rng(0).standard_normal((30, 5)), (40, 1))
    found = NearestNeighbours.of(keys, dtype=torch.bfloat16).search(keys[:30], 4)
    assert np.array_equal(found.indices, np.arange(30)[:, None] + 30 * np.arange(4))
    assert not found.distances.any()


def test_equal_keys_are_ordered_whichever_was_examined_first():
    keys = np.ones((30, 2))
    best = Nearest(np.zeros(2), 3, scale=1.0)
    for rows in ([20, 25], [7, 29], [3]):
        best.examine(keys, np.array(rows))
    assert list(best.rows) == [3, 7, 20]


@pytest.mark.parametrize("grouped", ["in runs", "mixed"])
def test_no_key_of_the_own_episode_is_found(grouped):
    rng = np.random.default_rng(5)
    keys = trajectories(rng, 20_000, 12)
    episodes = np.arange(20_000) // 50
    if grouped == "mixed":
        episodes = rng.permutation(episodes)
    asked = rng.integers(0, 20_000, 30)
    reduced = ReducedKeys.of(keys, torch.bfloat16, group=16)  # a group may have several episodes
    found = NearestNeighbours(keys, reduced, episodes).search(
        keys[asked], 3, leaving_out=episodes[asked]
    )
    keep = episodes[None] != episodes[asked][:, None]
    order, distance = by_hand(keys, keys[asked], 3, keep)
    assert np.array_equal(found.indices, order)
    assert np.allclose(found.distances, distance)


def test_one_key_outside_a_huge_own_episode_is_found():
    rng = np.random.default_rng(6)
    keys = np.concatenate([rng.standard_normal((20_000, 4)), [[50.0, 0, 0, 0]]])
    episodes = np.r_[np.zeros(20_000, int), 1]
    found = NearestNeighbours.of(keys, episodes=episodes, dtype=torch.float32).search(
        keys[:2], leaving_out=np.zeros(2, int)
    )
    assert (found.indices == 20_000).all()


def test_keys_stay_on_disk(tmp_path):
    rng = np.random.default_rng(7)
    mapped = np.lib.format.open_memmap(tmp_path / "keys.npy", "w+", np.float32, (3000, 2, 8))
    mapped[:] = rng.standard_normal(mapped.shape)
    found = NearestNeighbours.of(mapped, dtype=torch.bfloat16).search(mapped[:20], 2)
    order, _ = by_hand(mapped.reshape(3000, -1), mapped[:20].reshape(20, -1), 2)
    assert np.array_equal(found.indices, order)


def test_tensors_of_sixteen_bits_are_keys():
    keys = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = NearestNeighbours.of(keys, dtype=torch.bfloat16).search(keys[:10])
    assert np.array_equal(found.indices[:, 0], np.arange(10))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (np.zeros((0, 3)), "nothing to search"),
        (np.array([[1.0], [np.nan]]), "Key 1 is not finite"),
        (np.array([[1e301]]), "Divide keys and queries"),
    ],
    ids=["none", "nan", "huge"],
)
def test_keys_that_cannot_be_searched_are_refused(keys, message):
    with pytest.raises(RetrievalError, match=message):
        NearestNeighbours.of(keys, dtype=torch.float32)


@pytest.mark.parametrize(
    ("queries", "k", "leaving_out", "message"),
    [
        (np.zeros((1, 2)), 1, None, "rows of 3 numbers"),
        (np.full((1, 3), np.inf), 1, None, "Query 0 is not finite"),
        (np.zeros((1, 3)), 5, None, "1..4 can be found, not 5"),
        (np.zeros((1, 3)), 3, np.array([0]), "has 2 keys to find"),
        (np.zeros((1, 3)), 1, np.array([0, 1]), "give one for every query"),
        (np.full((1, 3), 1e200), 1, None, "times as long"),
    ],
    ids=["width", "inf", "k", "own", "episodes", "far"],
)
def test_queries_that_cannot_be_answered_are_refused(queries, k, leaving_out, message):
    index = NearestNeighbours.of(
        np.arange(12.0).reshape(4, 3), episodes=np.array([0, 0, 1, 1]), dtype=torch.float32
    )
    with pytest.raises(RetrievalError, match=message):
        index.search(queries, k, leaving_out=leaving_out)


def test_a_machine_that_adds_up_in_less_than_float32_is_noticed(monkeypatch):
    rng = np.random.default_rng(8)
    keys = rng.standard_normal((200, 8))
    index = NearestNeighbours.of(keys, dtype=torch.bfloat16)
    honest = ReducedKeys.best_scores
    monkeypatch.setattr(ReducedKeys, "best_scores", lambda self, q: honest(self, q) - 0.1)
    with pytest.raises(RetrievalError, match="less exact here"):
        index.search(keys[:3])


def test_the_benchmark_compares_both_in_every_world(capsys):
    from benchmarks.search import World, main

    threads = torch.get_num_threads()
    assert (
        main(["--keys", "3000", "--dims", "8", "--queries", "10", "--rounds", "1", "--json"]) == 0
    )
    torch.set_num_threads(threads)
    figures = json.loads(capsys.readouterr().out)
    assert [f["keys"] for f in figures] == [world.value for world in World]
    assert all(f["same_neighbours"] and f["ratio"] > 0 for f in figures)
