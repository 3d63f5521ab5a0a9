"""The table of what is known and what is done."""

import numpy as np
import pytest

from actlens.claims import Support
from actlens.errors import SceneError
from actlens.kinematics import SO101_SIMULATED
from actlens.mechanism import mechanism_axis
from actlens.planted import LinearRule, Region, Stored, Table, World, plant
from actlens.retrieval import Undefined, run_demonstrations, sites_of
from actlens.statistics import Interval, wilson
from actlens.verdict import (
    Dissociation,
    dissociation,
    dissociation_claims,
    dissociation_frame,
    table_claims,
)

EPISODES = np.repeat(np.arange(10), 4)


def counted(probe, action, episodes=EPISODES):
    n = len(episodes)
    full = lambda x: np.broadcast_to(np.asarray(x, bool), n).copy()
    return Dissociation(full(probe), np.zeros(n, bool), full(action), episodes, 20.0)


def test_cells_are_counted_as_by_hand():
    found = counted(np.tile([1, 1, 0, 0], 10), np.tile([1, 0, 1, 0], 10))
    for good in (True, False):
        for done in (True, False):
            assert found.share(probe=good, action=done).estimate == pytest.approx(0.25)
        assert found.wrong(probe=good).estimate == pytest.approx(0.5)
    assert found.read.estimate == pytest.approx(0.5)
    assert np.isnan(counted(1, 0).wrong(probe=False).estimate)  # there is no such scene


def test_intervals_are_by_episode_not_by_scene():
    acted = np.repeat(np.random.default_rng(0).random(10) < 0.5, 4)
    by_episode = counted(1, acted).share(probe=True, action=True)
    by_scene = counted(1, acted, np.arange(40)).share(probe=True, action=True)
    assert by_episode.high - by_episode.low > 1.5 * (by_scene.high - by_scene.low)


def test_all_or_none_of_a_few_episodes_is_not_certainty():
    found = counted(1, 0)
    assert found.read.estimate == 1
    assert found.read.low == pytest.approx(wilson(10, 10)[0])
    assert found.share(probe=True, action=True).high == pytest.approx(wilson(0, 10)[1])


def test_the_frame_has_a_row_for_every_set_and_shares_that_add_up():
    rng = np.random.default_rng(1)
    tables = {n: counted(rng.random(40) < 0.5, rng.random(40) < 0.5) for n in ("held_out", "strip")}
    frame = dissociation_frame(tables)
    cells = [c for c in frame if c.endswith("_action")]
    assert len(cells) == 4
    assert np.allclose(frame[cells].to_numpy().sum(1), 1)
    assert list(frame.scenes) == ["held_out", "strip"]


# ── planted policies ─────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def world():
    return World(seed=1001)


@pytest.fixture(scope="module")
def shown(world):
    return world.scenes(world.positions(Region.TRAIN, 60))


@pytest.fixture(scope="module")
def tables(world, shown):
    """Of a table and of a rule, at demonstrated places and in the gap."""
    blank = world.policy()
    stored = Stored.of(blank, shown)
    new = world.scenes(world.positions(Region.GAP, 60, seed=4), first_episode=1000)
    found = {}
    for mechanism in (Table(), LinearRule()):
        model = plant(blank, stored, mechanism, readout=world.readout).model
        run = lambda scenes, model=model: run_demonstrations(
            model, scenes, sites_of(model), batch_size=64
        )
        known = run(shown)
        found[mechanism.name] = {
            "known": dissociation(known, None, SO101_SIMULATED),
            "gap": dissociation(known, run(new), SO101_SIMULATED),
        }
    return found


def test_a_table_behind_a_vector_that_holds_the_place_knows_and_errs(tables):
    found = tables["table"]
    assert found["gap"].share(probe=True, action=False).estimate > 0.7
    assert found["gap"].read.estimate > 0.95 > 0.5 > found["gap"].guessed
    assert found["known"].share(probe=True, action=True).estimate > 0.95
    verdicts = [
        claim.verdict for claim in dissociation_claims({"gap": found["gap"]}, found["known"])
    ]
    assert verdicts == [Support.SUPPORTED, Support.SUPPORTED]


def test_a_rule_knows_and_does(tables):
    found = tables["linear rule"]["gap"]
    assert found.share(probe=True, action=True).estimate > 0.9
    holds, astray = dissociation_claims({"gap": found}, tables["linear rule"]["known"])
    assert (holds.verdict, astray.verdict) == (Support.SUPPORTED, Support.REFUTED)


def test_what_only_a_taught_probe_finds_is_there_all_the_same(world, shown):
    """At unseen places the vector holds the place turned round: the own probe reads the mirror."""
    blank = world.policy()
    run = lambda scenes: run_demonstrations(blank, scenes, sites_of(blank), batch_size=64)
    known = run(shown)
    new = run(world.scenes(world.positions(Region.NEW, 60, seed=4), first_episode=1000))
    key = "action vector"
    mean = known.keys[key].mean(0)
    turned = new.with_keys(key, 2 * mean - new.keys[key])
    # Which of the two it is must be seen from the vector, too.
    marked = lambda scenes, mark: scenes.with_keys(
        key, np.concatenate([scenes.keys[key], np.full_like(scenes.keys[key], mark)], -1)
    )
    own, taught = (
        dissociation(marked(known, 0.0), marked(turned, 1.0), SO101_SIMULATED, taught=taught)
        for taught in (False, True)
    )
    assert own.read.estimate < 0.5
    assert taught.read.estimate > own.read.estimate
    straight = dissociation(known, new, SO101_SIMULATED, taught=True)
    assert straight.read.estimate > 0.9
    assert straight.guessed == taught.guessed < 0.5  # the other unseen scenes' mean


def test_a_table_is_claimed_from_both_axes(world, shown):
    blank = world.policy()
    model = plant(blank, Stored.of(blank, shown), Table(), readout=world.readout).model
    axis = mechanism_axis(model, shown)
    low = Interval(*(np.asarray(x) for x in (0.0, -0.1, 0.1)))
    claims = table_claims(axis, {"gap": low, "nowhere": Undefined("no headroom")})
    assert [claim.verdict for claim in claims] == [
        Support.SUPPORTED,
        Support.SUPPORTED,
        Support.UNDECIDED,
    ]
    assert "no headroom" in claims[2].figure


def test_scenes_without_labels_or_past_their_end_are_refused(world):
    blank = world.policy()
    run = lambda frame: run_demonstrations(
        blank, world.scenes(world.positions(Region.TRAIN, 6), frames=[frame]), sites_of(blank)
    )
    with pytest.raises(SceneError, match="'lamp_x'"):
        dissociation(run(0), None, SO101_SIMULATED, place=("lamp_x", "lamp_y"))
    with pytest.raises(SceneError, match="goes on that long"):
        dissociation(run(11), None, SO101_SIMULATED)
