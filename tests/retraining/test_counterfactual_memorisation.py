"""Memorisation against closed forms and against decoders of which it is known."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from actlens.errors import SceneError
from actlens.planted import (
    PlantError,
    Region,
    Stored,
    World,
    shuffled,
    with_exceptions,
)
from actlens.retraining import (
    Decoders,
    Entries,
    LinearReadout,
    Memorisation,
    MemorisationOptions,
    isolation,
    memorisation,
    memory_claims,
    study_memorisation,
)
from actlens.tails import Shape


@pytest.fixture(scope="module")
def world():
    return World(seed=2)


@pytest.fixture(scope="module")
def policy(world):
    return world.policy()


@pytest.fixture(scope="module")
def stored(world, policy):
    return Stored.of(policy, world.scenes(world.positions(Region.TRAIN, 60)))


@pytest.fixture(scope="module")
def by_heart(policy):
    """Long enough, from a start that is quick at it, to learn sixty arbitrary chunks."""
    shape = Shape(policy.config.d_model, 256, policy.config.action_dim)
    return Decoders(shape, stops=(300,), weight_decay=0.0, whitened=1e-5, bf16=False)


ONE_ROUND = MemorisationOptions(at_once=10, most=10)
FEW = MemorisationOptions(at_once=7, most=7)


def linear_entries(n_episodes=30, each=4, d=6, joints=2, noise=0.5, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_episodes * each, d))
    y = x @ rng.normal(size=(d, joints)) + noise * rng.normal(size=(len(x), joints))
    return Entries(
        torch.from_numpy(x),
        torch.from_numpy(y),
        np.repeat(np.arange(n_episodes), each),
        torch.tensor([2.0, 3.0], dtype=torch.float64),
        tuple(range(100, 100 + n_episodes)),
    )


def test_a_linear_decoders_memorisation_is_the_closed_form_of_leaving_out():
    """Residuals of least squares without a group: (I - H_GG)^-1 r_G; with it and without another
    group B: r_G + H_GB (I - H_BB)^-1 r_B."""
    entries = linear_entries()
    n = entries.n_episodes
    learnt = ~np.eye(n, dtype=bool)
    answers = LinearReadout(penalty=0.0)(entries, learnt, entries.x, 0)[0]
    found = Memorisation(entries.errors(answers), learnt, entries.indices)
    design = np.c_[np.ones(len(entries)), entries.x.numpy()]
    hat = design @ np.linalg.pinv(design)
    target = entries.actions.numpy()
    residual = target - hat @ target
    rows = [np.flatnonzero(entries.episode == i) for i in range(n)]
    within = lambda g: np.linalg.solve(np.eye(len(g)) - hat[np.ix_(g, g)], residual[g])
    size = lambda r: (np.abs(r) * [2, 3]).mean()
    out = np.array([size(within(g)) for g in rows])
    into = [
        np.mean([size(residual[g] + hat[np.ix_(g, b)] @ within(b)) for b in rows if b is not g])
        for g in rows
    ]
    np.testing.assert_allclose(found.out_error, out, rtol=1e-9)
    np.testing.assert_allclose(found.in_error, into, rtol=1e-9)
    np.testing.assert_allclose(found.mean.estimate, (out - into).mean(), rtol=1e-9)
    assert 0.05 < found.share.estimate < 0.4


def test_random_subsets_estimate_what_all_subsets_give():
    """Leaving one out of five: the deck deals every episode equally often, whatever the draw."""
    entries = linear_entries(n_episodes=5, each=12)
    exact = ~np.eye(5, dtype=bool)
    answers = LinearReadout(penalty=0.0)(entries, exact, entries.x, 0)[0]
    expected = Memorisation(entries.errors(answers), exact, entries.indices)
    found = memorisation(
        entries,
        LinearReadout(penalty=0.0),
        MemorisationOptions(left_out=0.2, at_once=5, most=15, standard_error=0.0),
    )[0]
    assert found.n_decoders == 15
    assert ((~found.learnt).sum(0) == 3).all()
    np.testing.assert_allclose(found.by_episode, expected.by_episode, rtol=1e-9)


def test_the_standard_error_is_the_spread_over_other_decoders():
    entries = linear_entries(n_episodes=12, noise=1.0)
    options = [MemorisationOptions(at_once=10, most=10, seed=seed) for seed in range(60)]
    found = [memorisation(entries, LinearReadout(), one)[0] for one in options]
    true = np.std([(one.mean.estimate, one.share.estimate) for one in found], axis=0, ddof=1)
    said = np.sqrt(np.mean([np.square(one.standard_errors) for one in found], axis=0))
    # Decks are dealt without replacement, which the jackknife does not know: it errs upwards.
    assert (said > 0.8 * true).all()
    assert (said < 3 * true).all()


def test_decoders_are_added_until_the_share_is_known():
    entries = linear_entries(n_episodes=12, noise=1.0)
    few, many = (
        memorisation(
            entries,
            LinearReadout(),
            MemorisationOptions(at_once=10, most=200, standard_error=error),
        )[0]
        for error in (0.1, 0.01)
    )
    assert few.n_decoders < many.n_decoders < 200
    assert few.standard_errors[1] <= 0.1
    assert many.standard_errors[1] <= 0.01


def test_a_dense_rule_is_not_memorised(world, policy):
    positions = world.positions(Region.TRAIN, 200, candidates=1)
    dense = Entries.of(policy, Stored.of(policy, world.scenes(positions)))
    learner = Decoders(Shape.of(policy.config), stops=(300,), lr=3e-3, bf16=False)
    found = memorisation(dense, learner, FEW)[300]
    size = size_of(Stored.of(policy, world.scenes(positions)), policy)
    assert found.error_out.estimate < 0.15 * size
    assert found.mean.estimate < 0.01 * size


def test_shuffled_actions_are_nothing_but_memorised(policy, stored, by_heart):
    found = memorisation(Entries.of(policy, shuffled(stored)), by_heart, FEW)[300]
    assert found.share.low > 0.75
    assert found.error_out.low > 0.9 * size_of(stored, policy)


def size_of(stored, policy):
    """The error of the mean action."""
    entries = Entries.of(policy, stored)
    mean = entries.actions.mean(0).expand(1, len(entries), -1)
    return float(entries.errors(mean).mean())


def test_exceptions_rank_on_top(policy, stored, by_heart):
    odd = with_exceptions(stored, 0.25, seed=1)
    moved = (odd.actions - stored.actions).abs().mean((1, 2)).numpy()
    found = memorisation(Entries.of(policy, odd), by_heart, ONE_ROUND)[300]
    assert (moved > 0).sum() == 15
    mem = found.by_episode
    assert roc_auc_score(moved > 0, mem) > 0.75
    # Some exchanged their answer with a neighbour's: hardly exceptions, and seen as such.
    either = (moved > np.median(moved[moved > 0])) | (moved == 0)
    assert roc_auc_score(moved[either] > 0, mem[either]) > 0.9
    assert found.reliability > 0.7
    table = found.frame()
    assert table.mem.is_monotonic_decreasing
    assert (table.q[:5] < 0.05).all()
    assert ((table.low < table.mem + 0.5) & (table.mem - 0.5 < table.high)).all()


def test_a_study_holds_a_policy_against_shuffled_actions_and_a_linear_readout(
    world, policy, stored
):
    new = world.scenes(world.positions(Region.NEW, 20), first_episode=1000)
    decoders = Decoders(Shape.of(policy.config), stops=(40, 300), lr=3e-3, batch_size=64)
    study = study_memorisation(
        policy,
        stored,
        {"new": Stored.of(policy, new)},
        decoders=decoders,
        options=MemorisationOptions(at_once=10, most=20, standard_error=0.03),
    )
    # The planted world's policy answers nothing, so that every decoder fits better.
    assert study.matched == 40
    assert study.reaches_policy
    last = study.own[300]
    assert study.shuffled[300].share.low > last.share.high
    gap = last.encoder_gap("new")
    assert gap.low < gap.estimate < gap.high
    # A random encoder has learnt nothing by heart: who is left out is as new as the new.
    assert gap.low < 0.25
    table = study.by_step()
    assert list(table.decoders) == ["demonstrations"] * 2 + ["shuffled"] * 2 + ["linear read-out"]
    assert table.share.between(-0.5, 1).all()
    assert len(study.by_episode()) == 60
    claims = memory_claims(study)
    assert [claim.value for claim in claims] == [
        float(study.own[step].share.estimate) for step in (40, 300)
    ]
    assert all(claim.null == float(study.linear.share.estimate) for claim in claims)


def test_lonely_episodes_are_told_from_crowded_ones():
    places = np.random.default_rng(0).uniform(size=(40, 2))
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(apart, np.inf)
    learnt = np.ones((4, 40), dtype=bool)
    learnt[:2, ::2] = learnt[2:, 1::2] = False
    errors = np.where(learnt, 1.0, 1.0 + apart.min(1))
    found = isolation(Memorisation(errors, learnt, tuple(range(40))), places)
    np.testing.assert_allclose(found.distance, apart.min(1))
    assert found.rank_correlation.estimate == pytest.approx(1.0)
    mixed = isolation(Memorisation(errors, learnt, tuple(range(40))), places[::-1])
    assert mixed.rank_correlation.low < 0 < mixed.rank_correlation.high
    twice = np.repeat(places[:20], 2, axis=0)
    assert isolation(Memorisation(errors, learnt, tuple(range(40))), twice) is None


def test_what_cannot_be_estimated_is_refused(world, policy, stored):
    one = Entries.of(policy, stored.of_scenes([0]))
    with pytest.raises(SceneError, match="1 episodes cannot be left out"):
        memorisation(one, LinearReadout())
    with pytest.raises(SceneError, match="between 0 and 1"):
        MemorisationOptions(left_out=1.0)
    with pytest.raises(SceneError, match="Steps must rise"):
        Decoders(Shape.of(policy.config), stops=(20, 10))
    uneven = [
        *world.scenes(world.positions(Region.TRAIN, 6)),
        *world.scenes(world.positions(Region.TRAIN, 1), frames=(5,), first_episode=90),
    ]
    with pytest.raises(PlantError, match="same frames"):
        study_memorisation(policy, Stored.of(policy, uneven))
