"""What the loop undoes, on policies for which it is known: all, nothing, or less than nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scripted_policies import (
    CHUNK,
    N_ACTION_STEPS,
    Scripted,
    SeenCube,
    by_the_clock,
    drift,
    hover,
    random_policy,
)

from actlens.errors import InterventionError
from actlens.interventions import GaussianNoise, Intervention, Schedule, Steering
from actlens.sim.conditions import REPEATED, Condition, Start, draw_starts
from actlens.sim.controlled import roll_out
from actlens.sim.correction import correction, executed, once, tip_path
from actlens.sim.environment import PickCube
from actlens.sites import Site

PAN = Steering((10.0, 0, 0, 0, 0, 0))
CHUNK_SITE = Site("hook_actions_normalized")
TURNED = Condition("pan", Intervention.at(CHUNK_SITE, PAN))
START = Start((0.18, -0.03), 5)


@pytest.fixture(scope="module")
def env():
    return SeenCube()


@pytest.fixture(scope="module")
def physics():
    return PickCube(render=False)


def found_for(model, env, condition=TURNED, n=5, **options):
    found = correction(model, env, draw_starts(n), [condition], **options)
    return found, found.summary().set_index("condition").loc[condition.name]


def test_a_policy_that_does_not_look_again_corrects_nothing(env):
    model = Scripted(hover, n_action_steps=CHUNK)
    found, row = found_for(model, env)
    displaced = found.displacements["pan"]
    assert np.array_equal(displaced.closed_mm, displaced.open_mm)
    assert np.array_equal(displaced.blind_mm, displaced.open_mm)
    assert row.open_mm > 10
    assert row.corrected == row.corrected_low == row.corrected_high == 0
    assert row.by_fresh_chunks == row.by_looking == 0


def test_a_policy_that_goes_to_the_same_place_from_wherever_it_is_corrects_all(env):
    _, row = found_for(Scripted(hover), env)
    assert row.open_mm > 10
    assert row.corrected == pytest.approx(1, abs=0.02)
    assert row.corrected_low > 0.97


def test_a_policy_that_starts_from_where_it_is_corrects_nothing_by_looking(env):
    _, row = found_for(Scripted(drift), env)
    assert row.open_mm > 10
    assert row.corrected == pytest.approx(0, abs=0.05)
    assert row.by_fresh_chunks == pytest.approx(1, abs=0.02)
    assert row.by_looking == pytest.approx(-1, abs=0.05)


def test_a_policy_that_sees_nothing_corrects_by_fresh_chunks_alone(env):
    found, row = found_for(Scripted(by_the_clock), env)
    displaced = found.displacements["pan"]
    assert np.array_equal(displaced.closed_mm, displaced.blind_mm)
    assert row.by_looking == row.by_looking_low == row.by_looking_high == 0
    assert row.corrected == row.by_fresh_chunks == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("at", [0, 12])
def test_until_the_next_inference_the_three_are_one(at, env):
    found, _ = found_for(random_policy(), env, n=2, at=at)
    displaced = found.displacements["pan"]
    assert displaced.open_mm.shape == (2, CHUNK + 1)
    until = slice(0, N_ACTION_STEPS + 1)
    for other in (displaced.blind_mm, displaced.closed_mm):
        assert np.array_equal(displaced.open_mm[:, until], other[:, until])
        assert (displaced.open_mm[:, until.stop :] != other[:, until.stop :]).any()
    assert (displaced.open_mm[:, 0] == 0).all()
    assert (displaced.open_mm[:, 1:] > 0).all()


def test_open_loop_is_what_a_longer_queue_does(env):
    """The same policy with `n_action_steps` equal to its chunk carries chunks out whole."""
    model = random_policy()
    found, _ = found_for(model, env, n=2)
    model.config = replace(model.config, n_action_steps=CHUNK)
    for number, start in enumerate(draw_starts(2)):
        plain, turned = (roll_out(model, env, start, *c, steps=CHUNK) for c in ((), (TURNED,)))
        apart = 1000 * np.linalg.norm(turned.result.tip - plain.result.tip, axis=1)
        assert np.array_equal(found.displacements["pan"].open_mm[number], apart)


def test_closed_loop_is_the_policys_own_rollout(env):
    model = random_policy()
    found, _ = found_for(model, env, n=1, at=6)
    (start,) = draw_starts(1)
    alone = Condition("alone", Intervention.at(CHUNK_SITE, PAN, Schedule(6, 7)))
    plain, turned = (roll_out(model, env, start, *c, steps=6 + CHUNK) for c in ((), (alone,)))
    apart = 1000 * np.linalg.norm(turned.result.tip - plain.result.tip, axis=1)
    assert np.array_equal(found.displacements["pan"].closed_mm[0], apart[6:])


def test_an_ensemble_dilutes_the_chunk_from_the_first_step_on(env):
    model = Scripted(by_the_clock, n_action_steps=1, temporal_ensemble_coeff=0.0)
    at, (start,) = 5, draw_starts(1)
    found, row = found_for(model, env, n=1, at=at)
    displaced = found.displacements["pan"]
    assert np.array_equal(displaced.closed_mm, displaced.blind_mm)
    assert (displaced.closed_mm[:, 1:] < displaced.open_mm[:, 1:]).all()
    assert np.isnan(row.corrected_low)
    # One of six predictions for the step, all of one weight, is turned by ten degrees.
    episode = roll_out(model, env, start, once(TURNED, at), steps=at + 1)
    plain = roll_out(model, env, start, steps=at + 1)
    turned = episode.result.actions[at] - plain.result.actions[at]
    np.testing.assert_allclose(turned, [10 / 6, 0, 0, 0, 0, 0], atol=1e-4)


def test_what_changes_nothing_displaces_nothing_and_has_no_share(env):
    nothing = Condition("nothing", Intervention.at(CHUNK_SITE, GaussianNoise(0.0)))
    found, row = found_for(random_policy(), env, nothing)
    for condition in ("nothing", REPEATED.name):
        displaced = found.displacements[condition]
        for apart in (displaced.open_mm, displaced.blind_mm, displaced.closed_mm):
            assert (apart == 0).all()
    assert row.open_mm == row.closed_mm == 0
    assert np.isnan([row.corrected, row.corrected_low, row.by_fresh_chunks, row.by_looking]).all()


def test_shares_are_ratios_of_sums_and_their_parts_add_up(env):
    found, row = found_for(random_policy(), env)
    last = found.frame().query("condition == 'pan' and after == @found.after")
    assert len(last) == 5
    assert row.corrected == pytest.approx(1 - last.closed_mm.sum() / last.open_mm.sum())
    assert row.corrected == pytest.approx(row.by_fresh_chunks + row.by_looking)
    assert row.corrected_low <= row.corrected <= row.corrected_high
    early = found.summary(after=3).set_index("condition").loc["pan"]
    assert (early.after, early.corrected) == (3, 0)
    assert early.open_mm == pytest.approx(found.displacements["pan"].open_mm[:, 3].mean())


@pytest.mark.parametrize(
    "policy",
    [{}, {"n_action_steps": 1, "temporal_ensemble_coeff": 0.1}],
    ids=["queue", "ensemble"],
)
def test_the_queue_makes_of_recorded_chunks_what_the_policy_did(policy, env, physics):
    model = random_policy(**policy)
    plain = roll_out(model, env, START, steps=20)
    chunks = {one.control_step: one.chunk for one in plain.inferences}
    actions = executed(model.config, chunks, 20)
    assert np.array_equal(actions, plain.result.actions)
    assert np.array_equal(tip_path(physics, START, actions), plain.result.tip)


def test_a_perturbation_acts_once_but_is_asked_all_along(env):
    asked = []

    def heavier(observation, step):
        asked.append(step)
        observation["observation.state"] += 5.0
        return observation

    episode = roll_out(
        random_policy(), env, START, once(Condition("offset", perturb=heavier), 6), steps=18
    )
    assert asked == list(range(18))
    assert [one.control_step for one in episode.acted] == [6]


def test_the_conditions_own_schedule_gives_way(env):
    model = random_policy()
    late = Condition("pan", Intervention.at(CHUNK_SITE, PAN, Schedule(start=50)))
    assert np.array_equal(
        found_for(model, env, late, n=1)[0].displacements["pan"].open_mm,
        found_for(model, env, TURNED, n=1)[0].displacements["pan"].open_mm,
    )


@pytest.mark.parametrize("options", [{"at": 5}, {"at": -6}, {"after": 0}, {"after": CHUNK + 1}])
def test_impossible_moments_are_refused(options, env):
    with pytest.raises(InterventionError, match="every 6 control steps"):
        correction(random_policy(), env, [START], [TURNED], **options)


def test_steps_that_were_not_followed_have_no_summary(env):
    found, _ = found_for(random_policy(), env, n=1, after=7)
    assert found.after == 7
    with pytest.raises(InterventionError, match="7 control steps were followed"):
        found.summary(after=8)


def test_progress_counts_every_rollout(env):
    told = []
    correction(
        random_policy(), env, draw_starts(2), [TURNED], after=2,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(i + 1, 6) for i in range(6)]
    assert torch.is_grad_enabled()
