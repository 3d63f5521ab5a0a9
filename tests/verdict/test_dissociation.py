"""The table of what is known and what is done."""

import numpy as np
import pytest

from actlens.errors import SceneError
from actlens.verdict import dissociation, dissociation_frame

EPISODES = np.repeat(np.arange(10), 4)


def test_cells_are_counted_as_by_hand():
    probe = np.tile([5.0, 5.0, 50.0, 50.0], 10)
    action = np.tile([5.0, 50.0, 5.0, 50.0], 10)
    probe[0] = 20.0  # at the tolerance is good
    found = dissociation(probe, action, EPISODES)
    for good in (True, False):
        for done in (True, False):
            share = found.share(probe=good, action=done)
            assert share.estimate == pytest.approx(0.25)
        assert found.wrong(probe=good).estimate == pytest.approx(0.5)


def test_the_hypothesis_fills_one_cell_and_a_rule_another():
    knows_but_errs = dissociation(np.full(40, 3.0), np.full(40, 60.0), EPISODES)
    assert knows_but_errs.share(probe=True, action=False).estimate == 1
    assert np.isnan(knows_but_errs.wrong(probe=False).estimate)
    rule = dissociation(np.full(40, 3.0), np.full(40, 4.0), EPISODES)
    assert rule.share(probe=True, action=True).estimate == 1


def test_intervals_are_by_episode_not_by_scene():
    rng = np.random.default_rng(0)
    good = rng.random(10) < 0.5
    action = np.where(np.repeat(good, 4), 1.0, 99.0)
    found = dissociation(np.zeros(40), action, EPISODES).share(probe=True, action=True)
    apart = dissociation(np.zeros(40), action, np.arange(40)).share(probe=True, action=True)
    assert found.high - found.low > 1.5 * (apart.high - apart.low)


def test_the_frame_has_a_row_for_every_set_and_shares_that_add_up():
    rng = np.random.default_rng(1)
    tables = {
        name: dissociation(rng.exponential(20, 40), rng.exponential(20, 40), EPISODES)
        for name in ("held_out", "strip")
    }
    frame = dissociation_frame(tables)
    cells = [c for c in frame if c.endswith("_action")]
    assert len(cells) == 4
    assert np.allclose(frame[cells].to_numpy().sum(1), 1)
    assert list(frame.scenes) == ["held_out", "strip"]


def test_errors_of_other_scenes_are_refused():
    with pytest.raises(SceneError, match="39 action errors"):
        dissociation(np.zeros(40), np.zeros(39), EPISODES)
    with pytest.raises(SceneError, match="one at least"):
        dissociation(np.zeros(0), np.zeros(0), np.zeros(0, int))
