"""The arm does what a lens shows: as the policy where that is the policy, resumable, reported."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from scripted_policies import N_ACTION_STEPS, SeenCube, random_policy
from stored_scenes import passed_scenes

from actlens.lens import Variant, encoder_lens, policy_itself, tune
from actlens.report.lens_rollouts import render_lens_rollouts
from actlens.shards import RunError
from actlens.sim.conditions import UNDISTURBED, draw_starts
from actlens.sim.controlled import roll_out
from actlens.sim.lensed_rollouts import acting_lenses, lens_condition, lensed_rollouts

STEPS = 2 * N_ACTION_STEPS


@pytest.fixture(scope="module")
def env():
    return SeenCube()


@pytest.fixture(scope="module")
def policy():
    return random_policy()


@pytest.fixture(scope="module")
def tuned(policy, env):
    return tune(policy, passed_scenes(policy, env, draw_starts(6, seed=4), STEPS))


def test_the_last_lens_acts_as_the_policy(policy, env):
    (start,) = draw_starts(1)
    plain = roll_out(policy, env, start, UNDISTURBED, steps=STEPS)
    same = roll_out(policy, env, start, lens_condition(policy_itself(policy)), steps=STEPS)
    other = roll_out(policy, env, start, lens_condition(encoder_lens(policy, 0)), steps=STEPS)
    assert np.array_equal(same.result.actions, plain.result.actions)
    assert not np.allclose(other.result.actions, plain.result.actions, atol=1e-2)
    assert not any(point.is_watched for point in policy.hook_points())


def test_lenses_that_act_see_the_scene_and_are_not_the_policy(policy, tuned):
    lenses = acting_lenses(policy, tuned)
    n = policy.config.n_encoder_layers
    count = lambda variant: sum(lens.variant is variant for lens in lenses)
    assert [count(v) for v in (Variant.RAW, Variant.TUNED, Variant.SHUFFLED)] == [n + 1, n + 1, 1]


def test_a_folder_goes_on_and_refuses_other_maps(policy, env, tuned, tmp_path):
    lenses = [lens for lens in acting_lenses(policy, tuned) if lens.variant is Variant.TUNED][:1]
    run = lambda some: lensed_rollouts(policy, some, tmp_path, n=1, steps=STEPS, env=env)
    found = run(lenses)
    assert len(found.rollouts) == 6  # the policy and a lens, in three regions
    assert run(lenses).frame().equals(found.frame())
    (lens,) = lenses
    assert lens.moved is not None
    moved = replace(lens.moved.through, bias=lens.moved.through.bias + 1)
    with pytest.raises(RunError):
        run([replace(lens, moved=replace(lens.moved, through=moved))])
    assert torch.is_grad_enabled()
    printed = io.StringIO()
    report = render_lens_rollouts(found.summary(), policy="a policy", steps=STEPS)
    Console(file=printed, width=80).print(report)
    text = printed.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "the policy" in text
    assert "encoder 0, tuned" in text
