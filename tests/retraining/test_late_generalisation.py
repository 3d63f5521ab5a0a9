"""When generalisation comes late, and when it only seems to."""

import numpy as np
import pytest
import torch

from actlens.claims import Support
from actlens.errors import SceneError
from actlens.planted import Region, Stored, World
from actlens.retraining import (
    Curve,
    Entries,
    LateGeneralisation,
    LateOptions,
    Settled,
    Start,
    cached,
    late_claims,
    late_generalisation,
)
from actlens.retraining.curves import TRAINED

STEPS = (0, 10, 100, 1000, 10000)


def curve(trained, elsewhere, seed=0, n=12):
    """Errors that episodes share but for a factor."""
    factor = np.random.default_rng(seed).uniform(0.9, 1.1, n)
    spread = lambda values: np.array(values)[:, None] * factor
    errors = {TRAINED: spread(trained), "new": spread(elsewhere)}
    return Curve(Start.ANEW, n, 0.0, seed, STEPS, errors)


def fall(trained, elsewhere, settled=Settled.LAST):
    found = LateGeneralisation((curve(trained, elsewhere), curve(trained, elsewhere, 1)), {})
    (one,) = [one for one in found.falls if one.settled_if is settled]
    return one


@pytest.mark.parametrize("settled", list(Settled))
def test_grokking_is_late(settled):
    one = fall([10, 0.1, 0.1, 0.1, 0.1], [10, 8, 8, 8, 1], settled)
    assert one.settled == (10, 10)
    assert one.fall.estimate == pytest.approx(7 / 8)
    assert one.fall.low <= 7 / 8 <= one.fall.high
    assert one.trained_fall == pytest.approx(0)
    assert one.is_late is Support.SUPPORTED


def test_an_error_that_stays_or_rises_is_not_late():
    assert fall([10, 0.1, 0.1, 0.1, 0.1], [10, 2, 2, 2, 2]).is_late is Support.REFUTED
    rising = fall([10, 0.1, 0.1, 0.1, 0.1], [10, 2, 2, 3, 4])
    assert rising.is_late is Support.REFUTED
    assert rising.fall.estimate == pytest.approx(-1)
    assert rising.risen.estimate == pytest.approx(1)
    assert rising.best_step == (10, 10)


def test_errors_that_fall_together_are_no_evidence():
    """95 % of the way down is not the bottom: both errors can still halve."""
    one = fall([10, 0.5, 0.3, 0.2, 0.1], [10, 1.0, 0.8, 0.6, 0.5], Settled.WAY)
    assert one.settled == (10, 10)
    assert one.fall.low > 0.2
    assert one.trained_fall == pytest.approx(0.8)
    assert one.is_late is Support.UNDECIDED


def test_a_training_that_ended_as_it_settled_says_nothing():
    one = fall([10, 5, 3, 1, 0.1], [10, 9, 9, 9, 9])
    assert one.settled == (10000, 10000)
    assert one.is_late is Support.UNDECIDED


@pytest.fixture(scope="module")
def setting():
    world = World(seed=2)
    model = world.policy()
    shown = Stored.of(model, world.scenes(world.positions(Region.TRAIN, 24)))
    new = world.scenes(world.positions(Region.NEW, 12), first_episode=1000)
    return model, Entries.of(model, shown), {"new": Entries.of(model, cached(model, new))}


OPTIONS = LateOptions(steps=200, sizes=(4,), seeds=2, evaluations=5, bf16=False, batch_size=32)


def test_few_demonstrations_are_learnt_and_more_of_them_generalise(setting):
    model, entries, elsewhere = setting
    told = []
    found = late_generalisation(model, entries, elsewhere, OPTIONS, progress=told.append)
    assert sum(told) == 2 * 2 * 2 * 2 * 200  # starts, decays, sizes, seeds, steps
    assert len(found.curves) == 16
    assert {c.n_episodes for c in found.curves} == {4, 24}
    assert all(c.errors[TRAINED].shape == (len(c.steps), c.n_episodes) for c in found.curves)
    anew = [c for c in found.curves if c.start is Start.ANEW and c.weight_decay == 0]
    few, every = (np.mean([c.mean("new")[-1] for c in anew if c.n_episodes == n]) for n in (4, 24))
    assert every < 0.7 * few
    assert all(c.mean(TRAINED)[-1] < 0.4 * c.mean(TRAINED)[0] for c in anew)
    # Larger sets of a seed hold its smaller ones, and seeds differ.
    assert not np.array_equal(*(c.errors[TRAINED][0] for c in anew if c.n_episodes == 4))
    table = found.frame()
    assert (table.low <= table.error)[table.low.notna()].all()
    assert len(found.falls_frame()) == 2 * 2 * 2 * len(Settled)


def test_from_the_policys_weights_the_first_error_is_the_policys(setting):
    model, entries, elsewhere = setting
    found = late_generalisation(model, entries, elsewhere, OPTIONS)
    for one in found.curves:
        if one.start is Start.POLICY:
            start = one.mean("new")[0]
            assert start == pytest.approx(float(found.policy["new"].estimate), rel=1e-5)


def test_weight_decay_is_felt(setting):
    model, entries, elsewhere = setting
    found = late_generalisation(model, entries, elsewhere, OPTIONS)
    last = lambda decay: np.array(
        [c.mean(TRAINED)[-1] for c in found.curves if c.weight_decay == decay]
    )
    assert not np.allclose(last(0.0), last(1.0), rtol=1e-3)


def test_cached_vectors_are_those_of_a_policys_twins(setting):
    model = setting[0]
    world = World(seed=2)
    scenes = world.scenes(world.positions(Region.TRAIN, 3), frames=(0, 10))
    mine, theirs = cached(model, scenes), Stored.of(model, scenes)
    torch.testing.assert_close(mine.inputs, theirs.inputs)
    torch.testing.assert_close(mine.actions, theirs.actions)
    assert torch.equal(mine.valid, theirs.valid)
    assert not mine.valid.all()


def test_impossible_trainings_are_refused(setting):
    model, entries, elsewhere = setting
    with pytest.raises(SceneError, match="nothing can arrive late"):
        late_generalisation(model, entries, {})
    with pytest.raises(SceneError, match="24 episodes to train on, not 99"):
        late_generalisation(model, entries, elsewhere, LateOptions(sizes=(99,)))
    with pytest.raises(SceneError, match="10 steps"):
        LateOptions(steps=5)


def test_claims_are_of_the_trainings_on_all_demonstrations(setting):
    model, entries, elsewhere = setting
    found = late_generalisation(model, entries, elsewhere, OPTIONS)
    claims = late_claims(found)
    most = max(fall.n_episodes for fall in found.falls)
    falls = [f for f in found.falls if f.n_episodes == most and f.settled_if is Settled.LAST]
    assert [claim.verdict for claim in claims] == [fall.is_late for fall in falls]
    assert [claim.value for claim in claims] == [float(fall.fall.estimate) for fall in falls]
    assert len({claim.reading for claim in claims}) == len(claims)
