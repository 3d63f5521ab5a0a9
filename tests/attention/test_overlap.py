"""Overlaps of sets of tokens, against sets and against chance."""

import numpy as np
import pytest

from actlens.attention import overlap, random_jaccard
from actlens.attention.overlap import jaccard, top_sets

EPISODES, MOMENTS = np.repeat(np.arange(6), 3), np.tile(np.arange(3), 6)


def test_the_sets_are_the_largest_and_their_overlap_that_of_python_sets():
    weights = np.random.default_rng(0).random((7, 30))
    chosen = top_sets(weights, 8)
    sets = [set(np.argsort(-row)[:8].tolist()) for row in weights]
    assert [set(np.flatnonzero(row).tolist()) for row in chosen] == sets
    expected = [[len(a & b) / len(a | b) for b in sets] for a in sets]
    assert jaccard(chosen) == pytest.approx(np.array(expected))


@pytest.mark.parametrize(("k", "n"), [(1, 5), (5, 162), (20, 162), (3, 3)])
def test_chance_is_that_of_permuted_identities(k, n):
    generator = np.random.default_rng(1)
    drawn = top_sets(generator.random((400, n)), k)
    each = jaccard(drawn)[~np.eye(400, dtype=bool)]
    # 400 sets make as many independent pairs, about.
    assert random_jaccard(k, n) == pytest.approx(each.mean(), abs=5 * each.std() / 20 + 1e-12)


def test_the_same_tokens_everywhere_overlap_fully():
    found = overlap(np.tile(np.arange(40.0), (18, 1)), EPISODES, MOMENTS, 5)
    for interval in (found.same_moment, found.other_moment, found.same_episode):
        assert [float(x) for x in (interval.estimate, interval.low, interval.high)] == [1, 1, 1]


def test_tokens_that_belong_to_a_moment_or_an_episode_are_told_apart():
    at = lambda numbers: np.eye(40)[numbers]
    by_moment = overlap(at(MOMENTS), EPISODES, MOMENTS, 1)
    assert float(by_moment.same_moment.estimate) == 1
    assert float(by_moment.other_moment.estimate) == float(by_moment.same_episode.estimate) == 0
    by_episode = overlap(at(EPISODES), EPISODES, MOMENTS, 1)
    assert float(by_episode.same_episode.estimate) == 1
    assert float(by_episode.same_moment.estimate) == float(by_episode.other_moment.estimate) == 0


def test_permuting_tokens_alike_in_all_scenes_changes_nothing():
    generator = np.random.default_rng(2)
    weights, order = generator.random((18, 25)), generator.permutation(25)
    before, after = (overlap(w, EPISODES, MOMENTS, 6) for w in (weights, weights[:, order]))
    assert before == after


def test_the_interval_covers_over_new_episodes():
    """Each episode's set is one of a few at random, so the true overlap is known."""
    generator = np.random.default_rng(3)
    p = np.array([0.5, 0.3, 0.2])
    truth, inside = float((p**2).sum()), 0
    episodes, moments = np.arange(30), np.zeros(30, dtype=int)
    for _ in range(150):
        weights = np.eye(3)[generator.choice(3, 30, p=p)]
        found = overlap(weights, episodes, moments, 1).same_moment
        inside += bool(found.low <= truth <= found.high)
    assert 0.85 < inside / 150 <= 1


def test_few_episodes_have_no_interval():
    found = overlap(np.random.default_rng(0).random((4, 9)), np.arange(4), np.zeros(4, int), 2)
    assert np.isfinite(found.same_moment.estimate)
    assert np.isnan(found.same_moment.low)
    assert np.isnan(found.same_episode.estimate)
