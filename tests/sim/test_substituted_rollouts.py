"""Surrogates and bare retrieval in the policy's place while it acts."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats
from scripted_policies import N_ACTION_STEPS, SeenCube, random_policy
from stored_scenes import demonstrations_of, passed_scenes

from actlens.mechanism import LINEAR, MEAN, NEAREST, Tail, mlp_stand_in
from actlens.planted import LinearRule, Stored, Table, plant
from actlens.report.retrieval_rollouts import render_retrieval_rollouts
from actlens.retrieval import RetrievalError, TaskState, Yardstick
from actlens.shards import RunError
from actlens.sim.conditions import UNDISTURBED, draw_starts
from actlens.sim.controlled import roll_out
from actlens.sim.monitor_table import monitor_table
from actlens.sim.monitored_rollouts import scores
from actlens.sim.paired_success import paired_success
from actlens.sim.retrieval_rollouts import retrieval_rollouts
from actlens.sim.substituted_rollouts import SubstitutedRollouts, substitutions, vectored
from actlens.sim.substitution import (
    LABELS,
    TaskRecall,
    answered,
    mlp_substituted,
    retrieved_at_vectors,
    retrieved_by_task,
)
from actlens.sites import Site

STEPS = 3 * N_ACTION_STEPS
STARTS = draw_starts(24, seed=4)


@pytest.fixture(scope="module")
def env():
    return SeenCube()


@pytest.fixture(scope="module")
def policy():
    return random_policy()


@pytest.fixture(scope="module")
def demonstrations(policy, env):
    return demonstrations_of(policy, passed_scenes(policy, env, STARTS, STEPS))


@pytest.fixture(autouse=True)
def _no_hook_left(policy):
    yield
    assert not any(point.is_watched for point in policy.hook_points())
    assert policy.clock.control_step == -1


def path_of(model, env, condition, start=STARTS[0]):
    return roll_out(model, env, start, condition, steps=STEPS)


def apart_mm(episode, other):
    return 1000 * np.linalg.norm(episode.result.tip - other.result.tip, axis=-1).max()


# ── nothing, where nothing is substituted ────────────────────────────────────────────────────────


def own(tail, answer):
    positions = tuple(range(N_ACTION_STEPS))
    return answered("own", tail, positions, Site(tail.site.output, {"query": positions}), answer)


def test_the_mlps_own_output_in_its_place_changes_no_bit(policy, env):
    plain = path_of(policy, env, UNDISTURBED)
    same = path_of(policy, env, own(Tail(policy), lambda x, part: part))
    assert np.array_equal(same.result.tip, plain.result.tip)
    assert np.array_equal(same.result.actions, plain.result.actions)
    assert same.changed == 0
    assert len(same.acted) == len(same.inferences) == 3


def test_the_mlp_computed_anew_from_what_was_read_is_the_mlp(policy, env):
    tail = Tail(policy)
    again = own(tail, lambda x, part: tail.output(tail.coefficients(x)))
    assert apart_mm(path_of(policy, env, again), path_of(policy, env, UNDISTURBED)) < 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_norm": True},
        {"n_decoder_layers": 2},
        {"temporal_ensemble_coeff": 0.1, "n_action_steps": 1},
    ],
    ids=["pre_norm", "two_decoder_layers", "ensemble"],
)
def test_every_architecture_passes_again_where_it_passed_with_stored_outputs(env, changes):
    """The nearest stored output is the own one, at all positions that ever count."""
    model = random_policy(**changes)
    scenes = passed_scenes(model, env, STARTS[:3], N_ACTION_STEPS + 1)
    made = substitutions(model, demonstrations_of(model, scenes), env)
    plain = roll_out(model, env, STARTS[1], steps=N_ACTION_STEPS + 1)
    for condition in made:
        if "nearest entry" in condition.name:
            episode = roll_out(model, env, STARTS[1], condition, steps=N_ACTION_STEPS + 1)
            assert apart_mm(episode, plain) < 0.05
            assert len(episode.acted) == len(plain.inferences) > 1
        if condition.name == "nearest demonstration: vector":
            episode = roll_out(model, env, STARTS[1], condition, steps=1)
            assert np.array_equal(episode.inferences[0].chunk, scenes_action(scenes, 1))


def scenes_action(scenes, episode):
    return next(s.action.numpy() for s in scenes if (s.episode, s.frame) == (episode, 0))


# ── planted policies, and the surrogates that they are ───────────────────────────────────────────


@pytest.fixture(scope="module")
def twins(env):
    """Each with its own demonstrations: a table and a rule, planted on one policy's rollouts."""
    policy = random_policy(d_model=64, n_heads=4)
    scenes = passed_scenes(policy, env, STARTS, STEPS)
    stored = Stored.of(policy, scenes, policy(_together(scenes)).detach())
    found = {}
    for name, mechanism in (("table", Table()), ("rule", LinearRule())):
        twin = plant(policy, stored, mechanism).model
        found[name] = twin, demonstrations_of(twin, passed_scenes(twin, env, STARTS, STEPS))
    return found


def _together(scenes):
    keys = scenes[0].observation
    return {key: torch.stack([scene.observation[key] for scene in scenes]) for key in keys}


def changed_by(env, twin, demonstrations, surrogate, start=STARTS[2]):
    run = vectored(twin, demonstrations)
    condition = mlp_substituted(twin, mlp_stand_in(run, surrogate, demonstrations.episodes))
    return apart_mm(path_of(twin, env, condition, start), path_of(twin, env, UNDISTURBED, start))


def test_a_table_loses_nothing_to_a_table_where_it_stored_and_all_to_the_mean(env, twins):
    assert changed_by(env, *twins["table"], NEAREST) < 0.05
    assert changed_by(env, *twins["table"], MEAN) > 1


def test_a_linear_rule_loses_nearly_nothing_to_a_linear_map_anywhere(env, twins):
    (elsewhere,) = draw_starts(1, seed=77)
    for start in (STARTS[2], elsewhere):
        linear, mean = (changed_by(env, *twins["rule"], s, start) for s in (LINEAR, MEAN))
        assert linear < 0.1 * mean
    table = changed_by(env, *twins["rule"], NEAREST, elsewhere)
    assert changed_by(env, *twins["rule"], LINEAR, elsewhere) < table


# ── retrieval ────────────────────────────────────────────────────────────────────────────────────


def task_of(demonstrations):
    executed = demonstrations.first(N_ACTION_STEPS)
    return TaskState.of(executed, Yardstick.of(executed.actions, executed.counted))


@pytest.mark.parametrize("episode", [0, 7])
def test_the_retrieval_policy_carries_out_exactly_what_was_demonstrated(
    policy, env, demonstrations, episode
):
    recall = TaskRecall.of(demonstrations, task_of(demonstrations))
    conditions = (retrieved_by_task(env, recall), retrieved_at_vectors(policy, demonstrations))
    for condition in conditions:
        result = path_of(policy, env, condition, STARTS[episode])
        row = np.flatnonzero((demonstrations.episodes == episode) & (demonstrations.frames == 0))[0]
        demonstrated = demonstrations.actions[row]
        assert np.array_equal(result.inferences[0].chunk, demonstrated)
        assert np.array_equal(result.result.actions[:N_ACTION_STEPS], demonstrated[:N_ACTION_STEPS])
        assert not np.array_equal(demonstrated, demonstrations.predicted[row])


def test_the_task_is_looked_up_by_where_the_cube_is_now(policy, env, demonstrations):
    """Against brute force at every inference of a rollout from a start of no demonstration."""
    task = task_of(demonstrations)
    (start,) = draw_starts(1, seed=31)
    condition = retrieved_by_task(env, TaskRecall.of(demonstrations, task))
    episode = roll_out(policy, env, start, condition, steps=STEPS)
    keys = task.keys(demonstrations)
    found = set()
    for one in episode.inferences:
        cube = dict(zip(LABELS, episode.result.cube[one.control_step], strict=True))
        world = cube | {"frame": one.control_step}
        key = (np.array([world[name] for name in task.names]) - task.mean) * task.factor
        row = np.linalg.norm(keys - key, axis=1).argmin()
        assert np.array_equal(one.chunk, demonstrations.actions[row])
        found.add(int(row))
    assert len(found) > 1


def test_labels_that_no_simulated_cube_has_are_refused(demonstrations):
    odd = {"light": np.arange(float(len(demonstrations)))}
    other = replace(demonstrations, labels=demonstrations.labels | odd)
    with pytest.raises(RetrievalError, match="not light"):
        TaskRecall.of(other, task_of(other))


# ── all conditions, kept as they come ────────────────────────────────────────────────────────────


class Interrupted(SeenCube):
    """Somebody presses Ctrl-C after some steps."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def step(self, action):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return super().step(action)


def rolled_in(folder, policy, demonstrations, env, told=lambda progress: None):
    return retrieval_rollouts(
        policy, demonstrations, folder, n=2, watched=3, steps=STEPS, env=env, progress=told
    )


@pytest.fixture(scope="module")
def rolled(policy, demonstrations, env, tmp_path_factory):
    return rolled_in(tmp_path_factory.mktemp("whole"), policy, demonstrations, env)


@pytest.fixture(scope="module")
def contested(rolled):
    """Without those that are only watched."""
    return tuple(one for one in rolled if one.number < 2)


def same(one, other):
    return (
        replace(one, tip=0, keys={}) == replace(other, tip=0, keys={})
        and np.array_equal(one.tip, other.tip)
        and all(np.array_equal(one.keys[name], other.keys[name]) for name in one.keys)
    )


def test_an_interrupted_run_goes_on_and_ends_alike(policy, demonstrations, rolled, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        rolled_in(tmp_path, policy, demonstrations, Interrupted(5 * STEPS + 4))
    told = []
    again = rolled_in(tmp_path, policy, demonstrations, SeenCube(), told.append)
    assert (told[0].done, told[0].found, told[-1].done) == (5, 5, 69)
    assert len(again) == len(rolled) == 69
    assert all(map(same, again, rolled))


def test_rollouts_of_another_policy_are_not_gone_on_with(
    demonstrations, env, tmp_path, policy, monkeypatch
):
    with pytest.raises(KeyboardInterrupt):
        rolled_in(tmp_path, policy, demonstrations, Interrupted(STEPS + 4))
    # Fitting surrogates takes minutes: it is told before.
    monkeypatch.setattr("actlens.sim.retrieval_rollouts.substitutions", None)
    with pytest.raises(RunError, match="another run: policy"):
        rolled_in(tmp_path, random_policy(d_mlp=8), demonstrations, env)


def test_every_surrogate_changed_something_and_no_plain_rollout_did(rolled):
    for one in rolled:
        assert (one.changed > 0) == (one.condition != UNDISTURBED.name)
    assert len({one.condition for one in rolled}) == 11


def test_the_summary_is_of_pairs_with_the_same_start(contested):
    found = SubstitutedRollouts(contested)
    frame, summary = found.frame(), found.summary()
    assert len(summary) == 4 * 11
    plain = [one for one in contested if one.condition == UNDISTURBED.name]
    for condition, mine in frame.groupby("condition"):
        row = summary[(summary.condition == condition) & (summary.region == "all")].iloc[0]
        others = [one for one in contested if one.condition == condition]
        apart = [
            1000 * np.linalg.norm(a.tip[1:] - b.tip[1:], axis=1).mean()
            for a, b in zip(others, plain, strict=True)
        ]
        assert row.path_mm == pytest.approx(np.mean(apart))
        assert row.rollouts == len(mine) == 6
        outcome = [np.array([x.success for x in them]) for them in (plain, others)]
        paired = paired_success(*outcome)
        if condition != UNDISTURBED.name:
            assert (row.lost, row.gained, row.p) == (paired.lost, paired.gained, paired.p)
    for _, part in summary.groupby("region"):
        tested = part[part.condition != UNDISTURBED.name]
        np.testing.assert_allclose(tested.q, stats.false_discovery_control(tested.p))


def test_gains_and_losses_are_told_apart(contested):
    plain = UNDISTURBED.name
    flipped = tuple(
        replace(one, success=(one.condition == plain) != (one.number == 1)) for one in contested
    )
    summary = SubstitutedRollouts(flipped).summary()
    rows = summary[(summary.condition != plain) & (summary.region == "all")]
    assert (rows.lost == 3).all()
    assert (rows.gained == 3).all()
    assert (rows.success == 0.5).all()


@pytest.mark.parametrize("width", [80, 120])
def test_the_report_fits_its_console_and_tells_all(rolled, contested, demonstrations, width):
    plain = [one for one in rolled if one.condition == UNDISTURBED.name]
    failing = [replace(one, success=one.number != 1) for one in plain]
    made = scores(
        failing, demonstrations, tuple(range(N_ACTION_STEPS)), N_ACTION_STEPS, false_alarms=0.2
    )
    console = Console(file=io.StringIO(), width=width)
    console.print(
        render_retrieval_rollouts(
            SubstitutedRollouts(contested).summary(),
            monitor_table(made, failing),
            policy="tiny",
            steps=STEPS,
        )
    )
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for word in ("nearest entry", "Not shown to be worse", "within regions", "3 of 9 fail"):
        assert word in text
