"""Trained parts in closed loop: the right weights at the right start, and every bit back."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from scripted_policies import N_ACTION_STEPS, SeenCube, random_policy

from actlens.errors import InterventionError
from actlens.finetuning import NEW, Material, Options, Recipe, finetune, head
from actlens.finetuning.updates import Whole
from actlens.finetuning.ways import Budget, Way
from actlens.report.finetuning import render_finetuned_rollouts
from actlens.sim.edit_cases import scene_at
from actlens.sim.finetuned_rollouts import (
    at_five_places,
    far_from_five,
    finetuned_rollouts,
    finetuned_starts,
    in_region,
)
from actlens.sim.regions import FIVE_POSITIONS, Region, region_of

STEPS = 2 * N_ACTION_STEPS
SHIFT = 20.0


@pytest.fixture(scope="module")
def env():
    return SeenCube()


@pytest.fixture(scope="module")
def policy():
    return random_policy()


@pytest.fixture(scope="module")
def starts():
    places = {NEW: in_region(Region.STRIP), "old places": in_region(Region.TRAIN)}
    return finetuned_starts(2, places)


@pytest.fixture(scope="module")
def found(policy, env):
    """The head learned to turn the pan further."""
    scenes = []
    for number, start in enumerate(finetuned_starts(4, {"x": in_region(Region.STRIP)})["x"]):
        scene = scene_at(env, start)
        with torch.no_grad():
            action = policy(scene)[0] + torch.tensor([SHIFT, 0, 0, 0, 0, 0])
        scenes.append(replace(scene, action=action, episode=number))
    way = Way(head(policy), Whole(), Budget.EQUAL)
    options = Options(Recipe(steps=60, batch_size=4, rates=(0.03,)))
    return finetune(policy, Material(scenes, {}), [way], options)


def test_every_other_start_has_the_other_halfs_weights_and_all_are_undone(
    policy, env, found, starts
):
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    told = []
    rolled = finetuned_rollouts(
        policy, found, starts, env=env, steps=STEPS, progress=lambda *n: told.append(n)
    )
    assert told[-1] == (8, 8)
    assert all(torch.equal(v, before[name]) for name, v in policy.state_dict().items())
    (one,) = found.outcomes
    for name, loop in rolled.closed_loops.items():
        for number, episode in enumerate(loop.episodes[one.way.name]):
            scene = scene_at(env, starts[name][number])
            with torch.no_grad(), one.tuned[number % 2].applied(policy):
                chunk = policy(scene)[0].numpy()
            np.testing.assert_allclose(episode.inferences[0].chunk, chunk, rtol=1e-5, atol=1e-4)
            plain = loop.episodes["undisturbed"][number]
            turned = episode.result.actions[0, 0] - plain.result.actions[0, 0]
            assert turned == pytest.approx(SHIFT, abs=0.4 * SHIFT)


def test_tables_and_report_cover_every_place_and_part(policy, env, found, starts):
    rolled = finetuned_rollouts(policy, found, starts, env=env, steps=STEPS)
    summary = rolled.summary()
    assert set(summary.places) == set(starts)
    assert len(rolled.frame()) == 2 * 2 * 2
    trained = summary[summary.condition == "head, equal"]
    assert (trained.acted > 0).all()
    assert trained.success_change_low.notna().all()
    console = Console(file=io.StringIO(), width=80)
    console.print(render_finetuned_rollouts(summary, steps=STEPS))
    text = console.file.getvalue()
    assert "Closed loop, new places" in text
    assert max(map(len, text.splitlines())) <= 80


def test_starts_stand_where_they_should_and_do_not_depend_on_their_number():
    places = {
        "strip": in_region(Region.STRIP), "five": at_five_places, "far": far_from_five(0.05)
    }  # fmt: skip
    starts = finetuned_starts(6, places)
    assert starts["far"][:3] == finetuned_starts(3, places)["far"]
    assert all(region_of(*start.cube_xy) is Region.STRIP for start in starts["strip"])
    assert all(start.cube_xy in FIVE_POSITIONS for start in starts["five"])
    for start in starts["far"]:
        assert np.linalg.norm(np.subtract(FIVE_POSITIONS, start.cube_xy), axis=1).min() > 0.05
    with pytest.raises(InterventionError, match="at least one"):
        finetuned_starts(0, places)


def test_without_a_training_there_is_nothing_to_roll_out(policy, env, found, starts):
    with pytest.raises(InterventionError, match="Nothing was trained"):
        finetuned_rollouts(policy, replace(found, outcomes=()), starts, env=env)
