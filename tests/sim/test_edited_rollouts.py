"""Edited policies in closed loop: done where asked, measured elsewhere, undone everywhere."""

import io
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from scripted_policies import CHUNK, N_ACTION_STEPS, SeenCube, random_policy

from actlens.config import Camera
from actlens.errors import InterventionError
from actlens.interventions import Constant, Intervention, Schedule
from actlens.kinematics import SO101_SIMULATED
from actlens.report.edited_rollouts import render_edited_rollouts
from actlens.rome import NO_JITTER, EditError, KeyMetric, Offset, Request, key_statistics, make_edit
from actlens.sim.comparison_video import film
from actlens.sim.conditions import UNDISTURBED, Condition, draw_starts
from actlens.sim.controlled import roll_out, simulator_for
from actlens.sim.correction import correction
from actlens.sim.edit_cases import Place, draw_cases, scene_at
from actlens.sim.edited_rollouts import (
    ARM_LIMITS,
    EDITED,
    Asked,
    edited_rollouts,
    followed,
    offset_edits,
)
from actlens.sim.regions import Region, region_of
from actlens.sim.video import decode
from actlens.sites import Site
from tests.interventions.conftest import small_trunk

STEPS = 3 * N_ACTION_STEPS


@pytest.fixture(scope="module")
def env():
    return SeenCube()


@pytest.fixture(scope="module")
def policy():
    return random_policy()


@pytest.fixture(scope="module")
def metric(policy, env):
    scenes = [
        replace(scene_at(env, start), episode=i) for i, start in enumerate(draw_starts(12, seed=9))
    ]
    return KeyMetric.of(key_statistics(policy, scenes, "decoder.0"), 1e-2)


@pytest.fixture(scope="module")
def offset(policy):
    names = policy.config.joints
    return Offset({names[0]: 10.0, names[2]: -4.0})


@pytest.fixture(scope="module")
def edit_at(policy, metric, offset):
    return offset_edits(policy, metric, offset, jitter=NO_JITTER)


@pytest.fixture(autouse=True)
def _unchanged(policy):
    """Whatever a test does, every bit of the policy is as before, and no hook is left."""
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    yield
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert policy.clock.control_step == -1
    assert not any(point.is_watched for point in policy.hook_points())


@pytest.fixture(scope="module")
def edited(policy, edit_at, env):
    told = []
    found = edited_rollouts(
        policy, edit_at, draw_cases(6), env=env, steps=STEPS,
        progress=lambda *done: told.append(done),
    )  # fmt: skip
    assert told == [(i + 1, 36) for i in range(36)]
    return found


# ── starts and scenes ────────────────────────────────────────────────────────────────────────


def test_a_scene_at_a_start_is_what_the_first_inference_sees(policy, env):
    (start,) = draw_starts(1, seed=3)
    scene = scene_at(env, start)
    episode = roll_out(policy, env, start, steps=1)
    alone = policy.predict_action_chunk(scene.observation)[0].numpy()
    assert np.array_equal(episode.inferences[0].chunk, alone)
    assert (scene.labels["cube_x"], scene.labels["cube_y"]) == pytest.approx(start.cube_xy)
    assert (scene.source, scene.episode, scene.frame) == ("simulator", start.seed, 0)


@pytest.mark.parametrize("region", [Region.TRAIN, Region.STRIP])
def test_cases_are_independent_and_as_near_and_far_as_asked(region):
    cases = draw_cases(30, near=0.02, far=0.05, region=region, seed=1)
    assert cases[:4] == draw_cases(4, near=0.02, far=0.05, region=region, seed=1)
    for case in cases:
        assert case.distance(Place.THERE) == 0
        assert 0 < case.distance(Place.NEAR) < 0.02
        assert case.distance(Place.FAR) > 0.05
        assert all(region_of(*case.at(place).cube_xy) is region for place in Place)
    assert len({case.at(place).seed for case in cases for place in Place}) == 90


@pytest.mark.parametrize("distances", [{"far": 1.0}, {"near": 0.0}])
def test_places_that_do_not_exist_are_not_searched_for_ever(distances):
    with pytest.raises(InterventionError, match="other distances"):
        draw_cases(1, **distances)


# ── what was asked for is done there ─────────────────────────────────────────────────────────


def test_the_first_actions_there_are_those_asked_for(edited):
    for case in range(6):
        without, under = (
            edited.closed_loops[Place.THERE].episodes[name][case].result.actions[:N_ACTION_STEPS]
            for name in (UNDISTURBED.name, EDITED)
        )
        np.testing.assert_allclose(under[:, 0], without[:, 0] + 10, atol=1e-2)
        np.testing.assert_allclose(under[:, 2], without[:, 2] - 4, atol=1e-2)
        np.testing.assert_allclose(under[:, [1, 3, 4, 5]], without[:, [1, 3, 4, 5]], atol=1e-2)
    there = edited.summary().iloc[0]
    assert (there.place, there.within_1_deg, there.distance_mm_max) == ("there", 6, 0)
    assert there.commanded == pytest.approx(1, abs=1e-3)
    assert there.drift == pytest.approx(1, abs=1e-3)


def test_elsewhere_is_what_the_edited_weights_say(edited, policy, env):
    """Against weights that are written by hand, and an observation that was never rolled out."""
    frame = edited.frame().set_index(["place", "case"])
    layer = policy.decoder[0].mlp.linear2
    for place, number in ((Place.NEAR, 0), (Place.FAR, 4)):
        seen = scene_at(env, edited.cases[number].at(place)).observation
        before = policy.predict_action_chunk(seen)[0, :N_ACTION_STEPS].double()
        weight = layer.weight.detach().clone()
        with torch.no_grad():
            layer.weight.add_(edited.edits[number].delta.float())
            after = policy.predict_action_chunk(seen)[0, :N_ACTION_STEPS].double()
            layer.weight.copy_(weight)
        wanted = torch.tensor([10.0, 0, -4, 0, 0, 0], dtype=torch.float64).expand(6, 6)
        row = frame.loc[place.value, number]
        share = float(((after - before) * wanted).sum() / wanted.square().sum())
        assert row.commanded == pytest.approx(share, abs=1e-4)
        drift = float((after - before).norm() / wanted.norm())
        assert row.drift == pytest.approx(drift, abs=1e-4)
        assert row.off_deg == pytest.approx(float((after - before - wanted).abs().max()), abs=1e-3)
        assert row.distance_mm == 1000 * edited.cases[number].distance(place)
        assert row.changed == int((edited.edits[number].on(weight) != weight).sum()) > 0


def test_how_a_rollout_follows_is_measured_at_the_right_steps(edited):
    asked = edited.asked[2]
    assert asked.steps == tuple(range(N_ACTION_STEPS))
    np.testing.assert_allclose(asked.change, np.tile([10.0, 0, -4, 0, 0, 0], (6, 1)), atol=1e-3)
    found = edited.closed_loops[Place.THERE].episodes
    under, plain = (found[name][2] for name in (EDITED, UNDISTURBED.name))
    row = followed(under, plain, asked)
    wanted = asked.change[-1]
    state = under.result.states[N_ACTION_STEPS] - plain.result.states[N_ACTION_STEPS]
    assert row["moved"] == pytest.approx(state @ wanted / (wanted @ wanted), abs=1e-6)
    assert 0.2 < row["moved"] < 1.3
    later = (under.result.actions - plain.result.actions)[N_ACTION_STEPS:] @ wanted
    assert row["afterwards"] == pytest.approx(later.mean() / (wanted @ wanted), abs=1e-6)
    stood = plain.result.states[N_ACTION_STEPS].astype(float)
    goal = SO101_SIMULATED.tip(stood + wanted) - SO101_SIMULATED.tip(stood)
    assert row["asked_tip_mm"] == pytest.approx(1000 * np.linalg.norm(goal))
    tip = under.result.tip[N_ACTION_STEPS] - plain.result.tip[N_ACTION_STEPS]
    assert row["tip_mm"] == pytest.approx(1000 * np.linalg.norm(tip))


def test_a_rollout_of_one_inference_has_nothing_afterwards(policy, edit_at, env):
    found = edited_rollouts(policy, edit_at, draw_cases(1), env=env, steps=N_ACTION_STEPS)
    assert found.frame().afterwards.isna().all()
    assert found.summary().afterwards.isna().all()
    assert found.summary().commanded_low.isna().all()


def test_the_summary_pairs_starts(edited):
    frame, summary = edited.frame(), edited.summary().set_index("place")
    for place, mine in frame.groupby("place"):
        row = summary.loc[place]
        assert row.cases == 6
        assert row.successes - row.successes_undisturbed == row.gained - row.lost
        assert row.moved == pytest.approx(mine.moved.mean())
        assert row.path_mm_low <= row.path_mm <= row.path_mm_high
        assert row.success_change_low < 0 < row.success_change_high


# ── nothing stays behind ─────────────────────────────────────────────────────────────────────


class Interrupted(SeenCube):
    """A simulator at which somebody presses Ctrl-C, in the edited rollout, after a step or two."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def step(self, action):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return super().step(action)


def test_an_interrupted_rollout_leaves_every_bit(policy, edit_at):
    # The rollout without takes 6 steps; the eighth is one of the edited policy's.
    with pytest.raises(KeyboardInterrupt):
        edited_rollouts(policy, edit_at, draw_cases(1), env=Interrupted(8), steps=N_ACTION_STEPS)


def test_an_edit_of_other_weights_is_refused(policy, edit_at, env):
    (case,) = draw_cases(1)
    other = random_policy()
    with torch.no_grad():
        other.action_head.bias.add_(1)
    edit = edit_at(scene_at(env, case.there))
    with pytest.raises(EditError, match="other weights"):
        edited_rollouts(other, lambda scene: edit, [case], env=env, steps=STEPS)


# ── pictures ─────────────────────────────────────────────────────────────────────────────────


def test_a_seeing_policy_is_edited_for_what_it_sees_and_filmed(renderer, tmp_path):
    cameras = tuple(Camera(f"observation.images.{name}", 64, 64) for name in ("top", "lateral"))
    model = random_policy(cameras=cameras, env_state_dim=None)
    model.embed.backbone = small_trunk()
    with closing(simulator_for(model)) as env:
        scenes = [replace(scene_at(env, s), episode=i) for i, s in enumerate(draw_starts(4))]
        metric = KeyMetric.of(key_statistics(model, scenes, "decoder.0"), 1e-2)
        edit_at = offset_edits(model, metric, Offset({model.config.joints[0]: 10.0}))
        found = edited_rollouts(model, edit_at, draw_cases(1), steps=N_ACTION_STEPS)
        assert found.frame().off_deg[0] < 0.01
        condition = Condition(EDITED, within=lambda model, start: found.edits[0].apply(model))
        film(tmp_path / "film.mp4", model, env, found.cases[0].there, condition, steps=2)
    assert len(list(decode(tmp_path / "film.mp4"))) == 3 + 25


# ── conditions on weights ────────────────────────────────────────────────────────────────────


def test_a_rollout_within_says_what_was_changed(policy, edit_at, env):
    start = draw_cases(1)[0].there
    edit = edit_at(scene_at(env, start))
    edited = Condition("edited", within=lambda model, start: edit.apply(model))
    assert not edited.is_undisturbed
    episode = roll_out(policy, env, start, edited, steps=STEPS)
    weight = policy.decoder[0].mlp.linear2.weight.detach()
    differs = edit.on(weight) - weight
    assert len(episode.acted) == len(episode.inferences) == 3
    assert episode.changed == 3 * int((differs != 0).sum())
    assert episode.max_change == pytest.approx(float(differs.abs().max()))
    assert {r.name for one in episode.inferences for r in one.receipts} == {"weights"}


def test_an_intervention_on_an_edited_policy_must_act_all_the_same(policy, edit_at, env):
    start = draw_cases(1)[0].there
    edit = edit_at(scene_at(env, start))
    ablate = Intervention.at(Site("decoder.0.mlp.hook_post"), Constant(), Schedule(start=1, stop=2))
    both = Condition("both", ablate, within=lambda model, start: edit.apply(model))
    with pytest.raises(InterventionError, match="never acted"):
        roll_out(policy, env, start, both, steps=3)


def test_an_edit_cannot_act_at_one_inference(policy, edit_at, env):
    start = draw_cases(1)[0].there
    edit = edit_at(scene_at(env, start))
    edited = Condition("edited", within=lambda model, start: edit.apply(model))
    with pytest.raises(InterventionError, match="whole rollout"):
        correction(policy, env, [start], [edited], after=2)


# ── what cannot be followed ──────────────────────────────────────────────────────────────────


def test_cases_must_differ(policy, edit_at, env):
    case, other = draw_cases(2)
    for wrong in ([], [case, case], [case, replace(other, far=case.far)]):
        with pytest.raises(InterventionError, match="starts of its own"):
            edited_rollouts(policy, edit_at, wrong, env=env)


def test_rollouts_reach_the_second_inference(policy, edit_at, env):
    with pytest.raises(InterventionError, match="5 control steps end before"):
        edited_rollouts(policy, edit_at, draw_cases(1), env=env, steps=5)


@pytest.mark.parametrize(
    ("requests", "positions"), [(2, (0,)), (1, (CHUNK - 1,))], ids=["two requests", "never done"]
)
def test_edits_whose_request_cannot_be_followed_are_refused(
    requests, positions, policy, metric, offset, env
):
    starts = draw_starts(requests)
    asked = [Request(scene_at(env, start), offset, positions) for start in starts]
    edit = make_edit(policy, asked, metric, jitter=NO_JITTER, limits=ARM_LIMITS)
    with pytest.raises(InterventionError, match="cannot be followed"):
        Asked.by(edit, N_ACTION_STEPS)


def test_targets_beyond_the_arms_limits_are_refused(policy, metric, env):
    far = Offset({policy.config.joints[0]: 300.0})
    with pytest.raises(EditError, match="the simulated arm reaches"):
        edited_rollouts(policy, offset_edits(policy, metric, far), draw_cases(1), env=env)


# ── report ───────────────────────────────────────────────────────────────────────────────────


def test_the_report_fits_80_columns_and_says_what_was_found(edited):
    summary = edited.summary()
    out = io.StringIO()
    Console(file=out, width=80).print(
        render_edited_rollouts(
            summary, policy="[bold]p[/bold]\x1b[31m", asked="10 deg to the left", steps=STEPS,
            facts=[("ridge", "0.01")],
        )
    )  # fmt: skip
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    flat = " ".join(text.split())
    assert "[bold]p[/bold]" in flat
    assert "there 1.00 (1.00…1.00)" in flat
    assert "in 6 of 6 cases" in flat
    far = summary.iloc[2]
    where = f"far {far.distance_mm_min / 10:.0f}-{far.distance_mm_max / 10:.0f} cm"
    assert f"{where} {far.commanded:.2f} ({far.commanded_low:.2f}…" in flat
    assert f"{far.path_mm:.1f} ({far.path_mm_low:.1f}…{far.path_mm_high:.1f})" in flat
    few = replace(
        edited,
        closed_loops={
            place: replace(
                found, episodes={name: many[:2] for name, many in found.episodes.items()}
            )
            for place, found in edited.closed_loops.items()
        },
    )
    out = io.StringIO()
    Console(file=out, width=80).print(
        render_edited_rollouts(few.summary(), policy="p", asked="a", steps=STEPS)
    )
    assert "5 are needed" in out.getvalue()
    assert "nan" not in out.getvalue()
