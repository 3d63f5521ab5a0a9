"""The perturbation suite: what does nothing changes nothing, and what is measured is what was."""

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from actlens.config import Camera
from actlens.errors import InterventionError
from actlens.interventions import Schedule
from actlens.interventions.corruptions import Blackout, Brightness, FrozenCamera, StateOffset
from actlens.interventions.perturbations import Perturbation
from actlens.report.perturbations import render_suite
from actlens.sim.conditions import UNDISTURBED, draw_starts
from actlens.sim.controlled import roll_out, simulator_for
from actlens.sim.disturbances import Disturbance, chosen, suite
from actlens.sim.look import AS_DEMONSTRATED, Look
from actlens.sim.perturb import main, run_suite, seen_again
from actlens.sim.rollout import as_observation, rollout

STEPS = 7


def disturbance(kind, *corruptions, schedule=None):
    schedule = schedule or Schedule()
    return Disturbance(kind, None, Perturbation(corruptions, schedule))


EVERY = (
    disturbance("nothing", Brightness(1.0)),
    disturbance("offset", StateOffset((4.0,))),
    disturbance("dark", Blackout()),
    disturbance("frozen", FrozenCamera()),
    disturbance("late", Blackout(), schedule=Schedule(start=5)),
    Disturbance("same look", None, AS_DEMONSTRATED),
    Disturbance("dim", None, Look(brightness=0.3)),
)


@pytest.fixture(scope="module")
def policy(new_model):
    """A policy of random weights that looks anew at every fifth control step."""
    cameras = tuple(Camera(f"observation.images.{name}", 24, 32) for name in ("top", "lateral"))
    model = new_model(cameras=cameras, action_dim=6, joints=())
    with torch.no_grad():  # targets of some ten degrees
        model.action_head.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def env(renderer, policy):
    made = simulator_for(policy)
    yield made
    made.close()


@pytest.fixture(scope="module")
def starts():
    return draw_starts(5, seed=1)


@pytest.fixture(scope="module")
def result(policy, env, starts):
    return run_suite(policy, env, starts, EVERY, steps=STEPS, n_moments=2, seed=0)


def test_what_does_nothing_changes_nothing(result):
    plain = result.closed_loop.episodes[UNDISTURBED.name]
    for name in ("nothing", "same look"):
        assert not result.open_loop[name].any()
        for one, other in zip(plain, result.closed_loop.episodes[name], strict=True):
            np.testing.assert_array_equal(one.result.actions, other.result.actions)
            np.testing.assert_array_equal(one.result.states, other.result.states)


def test_everything_else_changes_the_actions(result):
    plain = result.closed_loop.episodes[UNDISTURBED.name]
    for name in ("offset", "dark", "dim"):
        assert (result.open_loop[name] > 0).all()
        for one, other in zip(plain, result.closed_loop.episodes[name], strict=True):
            assert not np.array_equal(one.result.actions[0], other.result.actions[0])


def test_a_disturbance_begins_with_its_schedule(result):
    plain = result.closed_loop.episodes[UNDISTURBED.name]
    for one, other in zip(plain, result.closed_loop.episodes["late"], strict=True):
        np.testing.assert_array_equal(one.result.actions[:5], other.result.actions[:5])
        assert not np.array_equal(one.result.actions[5], other.result.actions[5])


def test_a_frozen_camera_shows_the_start_to_the_second_inference(result, policy, env, starts):
    """By hand: a policy that is shown the start's pictures and the present state."""
    first = {}

    def select_action(seen):
        observation = as_observation(seen)
        if not first:
            first.update(observation)
        shown = first | {"observation.state": observation["observation.state"]}
        return policy.select_action(shown)[0].numpy(force=True)

    expected = rollout(
        env, select_action, policy.reset, cube_xy=starts[2].cube_xy, seed=starts[2].seed,
        steps=STEPS,
    )  # fmt: skip
    found = result.closed_loop.episodes["frozen"][2].result
    np.testing.assert_array_equal(found.actions, expected.actions)


def test_the_open_loop_change_is_that_of_two_forwards(result, policy, env, starts):
    assert result.moments == (0, 3)
    plain = result.closed_loop.episodes[UNDISTURBED.name][1]
    seen = seen_again(env, plain, result.moments, [])[AS_DEMONSTRATED]
    change = lambda moved, usual: (
        (policy.predict_action_chunk(moved) - policy.predict_action_chunk(usual))
        .square()
        .mean()
        .item()
    )
    with_state = lambda pictures, state: pictures | {"observation.state": state}
    moved = [change(with_state(now, now["observation.state"] + 4.0), now) for now in seen]
    assert result.open_loop["offset"][1] == pytest.approx(sum(moved) / 2, rel=1e-4)
    start, later = seen
    frozen = change(with_state(start, later["observation.state"]), later)
    assert frozen > 0
    assert result.open_loop["frozen"][1] == pytest.approx(frozen / 2, rel=1e-4)


def test_a_rollout_is_seen_again_as_it_was(policy, env, starts):
    seen = []

    def select_action(observation):
        seen.append(as_observation(observation))
        return policy.select_action(seen[-1])[0].numpy(force=True)

    start = starts[0]
    rollout(env, select_action, policy.reset, cube_xy=start.cube_xy, seed=start.seed, steps=STEPS)
    dim = Look(brightness=0.3)
    again = seen_again(env, roll_out(policy, env, start, steps=STEPS), range(STEPS), [dim])
    for one, other, darker in zip(seen, again[AS_DEMONSTRATED], again[dim], strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
        assert torch.equal(one["observation.state"], darker["observation.state"])
        top = "observation.images.top"
        assert darker[top].double().mean() < 0.5 * one[top].double().mean()


def test_the_environment_looks_as_before(result, env):
    assert env.look is AS_DEMONSTRATED


def test_the_table_has_intervals_and_paired_tests(result):
    table = result.frame().set_index("condition")
    assert table.index.tolist() == [UNDISTURBED.name, *(one.name for one in EVERY)]
    offset = table.loc["offset"]
    assert offset.action_rms == pytest.approx(np.sqrt(result.open_loop["offset"].mean()))
    assert 0 < offset.action_rms_low <= offset.action_rms <= offset.action_rms_high
    assert np.isnan(table.loc[UNDISTURBED.name].action_rms)
    assert (table.rollouts == len(result.closed_loop.starts)).all()
    assert ((table.success_low <= table.success) & (table.success <= table.success_high)).all()
    assert table.loc["nothing"].path_mm == 0
    assert offset.path_mm > 0
    console = Console(file=io.StringIO(), width=120)
    console.print(render_suite(result.frame(), policy="a policy\x1b[31m"))
    shown = console.file.getvalue()
    assert "\x1b" not in shown
    assert f"{offset.action_rms:.2f}" in shown


def test_a_suite_needs_starts_and_moments(policy, env, starts):
    with pytest.raises(InterventionError, match=r"needs starts \(0 given\)"):
        run_suite(policy, env, [], EVERY)
    with pytest.raises(InterventionError, match="from 1 to 3 moments, not 4"):
        run_suite(policy, env, starts, EVERY, steps=3, n_moments=4)


def test_disturbances_are_chosen_by_kind_and_severity():
    every = suite(["top", "lateral"])
    assert len({one.name for one in every}) == len(every)
    assert chosen(every, (), ()) == every
    assert [d.name for d in chosen(every, ("blur", "top black"), (2,))] == ["blur 2", "top black"]
    with pytest.raises(InterventionError, match="Did you mean 'green cube'"):
        chosen(every, ("green cub",), ())
    with pytest.raises(InterventionError, match=r"severity among \[4\]"):
        chosen(every, ("blur",), (4,))


def test_the_command_writes_what_it_shows(renderer, tmp_path, capsys):
    file = tmp_path / "suite.json"
    words = ["--rollouts", "1", "--steps", "3", "--moments", "1", "--severities", "3"]
    words += ["--kinds", "blur", "cameras swapped", "green cube", "--output", str(file)]
    assert main(words) == 0
    assert "blur 3" in capsys.readouterr().out
    written = json.loads(file.read_text())
    summary = {row["condition"]: row for row in written["summary"]}
    assert list(summary) == ["undisturbed", "blur 3", "cameras swapped", "green cube"]
    assert summary["blur 3"]["action_rms"] > 0.1
    # ACT has no camera embedding: of equal size and scaling, swapped cameras only permute tokens.
    assert summary["cameras swapped"]["action_rms"] < 1e-3
    blur, _, look = written["disturbances"]
    assert str(Perturbation.from_json(blur["Perturbation"])) == "Blur(sigma=4.0)"
    assert look["Look"] == {"cube_rgb": [0.1, 0.6, 0.15], "brightness": 1.0, "light_turn": 0.0}
    assert written["provenance"]["config"]["region"] == "train"


def test_a_kind_that_does_not_exist_is_named_on_the_console(capsys):
    assert main(["--kinds", "blurr"]) == 3
    assert "no disturbance 'blurr'" in capsys.readouterr().err
