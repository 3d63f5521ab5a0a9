"""Interventions in the control loop, on policies whose answer is known."""

import numpy as np
import pytest
import torch
from scripted_policies import (
    CHUNK,
    N_ACTION_STEPS,
    Scripted,
    SeenCube,
    expert,
    random_policy,
    tiny_config,
)

from actlens.config import Camera
from actlens.errors import HookNameError, InterventionError, SceneError
from actlens.interventions import (
    Call,
    Constant,
    FromScene,
    GaussianNoise,
    Intervention,
    Schedule,
    Steering,
    run_scene,
)
from actlens.interventions.corruptions import StateOffset
from actlens.interventions.perturbations import Perturbation, PerturbedView
from actlens.model.act import HookedACT
from actlens.sim.closed_loop import compare
from actlens.sim.comparison_video import acting, save_comparison, side_by_side
from actlens.sim.conditions import (
    REPEATED,
    UNDISTURBED,
    Condition,
    Start,
    at_start,
    cube_elsewhere,
    cube_where_it_is,
    draw_starts,
    first_look,
    fixed,
)
from actlens.sim.controlled import roll_out, simulator_for
from actlens.sim.regions import Region, region_of
from actlens.sim.rollout import as_observation, rollout
from actlens.sim.video import decode
from actlens.sites import Site
from tests.interventions.conftest import small_trunk

START = Start((0.18, -0.03), 5, (0.16, 0.06))
PAN = Steering((10.0, 0, 0, 0, 0, 0))
CHUNK_SITE = Site("hook_actions_normalized")


@pytest.fixture(scope="module")
def env():
    return SeenCube()


@pytest.fixture(scope="module")
def twin():
    return SeenCube()


@pytest.fixture(scope="module")
def policy():
    return random_policy()


@pytest.fixture(scope="module")
def ensemble():
    return random_policy(n_action_steps=1, temporal_ensemble_coeff=0.01)


def same(a, b):
    """Whether two rollouts have the same bits."""
    return all(
        np.array_equal(getattr(a.result, name), getattr(b.result, name))
        for name in ("states", "actions", "tip", "cube", "grasped")
    )


# ── one episode ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["policy", "ensemble"])
def test_an_undisturbed_episode_is_the_policys_own_rollout(name, env, request):
    model = request.getfixturevalue(name)
    plain = rollout(
        env, lambda seen: model.select_action(as_observation(seen))[0].numpy(), model.reset,
        cube_xy=START.cube_xy, seed=START.seed, steps=20,
    )  # fmt: skip
    model.reset()
    found = roll_out(model, env, START, steps=20)
    assert np.array_equal(found.result.states, plain.states)
    assert np.array_equal(found.result.actions, plain.actions)
    spacing = model.config.n_action_steps
    assert [one.control_step for one in found.inferences] == list(range(0, 20, spacing))


@pytest.mark.parametrize("name", ["policy", "ensemble"])
@pytest.mark.parametrize("source", [GaussianNoise(0.0), Call(lambda part: part)])
def test_an_intervention_that_changes_nothing_leaves_every_bit(name, source, env, request):
    model = request.getfixturevalue(name)
    nothing = Condition("nothing", Intervention.at(Site("encoder.hook_out"), source))
    found = roll_out(model, env, START, nothing, steps=20)
    assert same(found, roll_out(model, env, START, steps=20))
    assert (found.changed, found.max_change) == (0, 0.0)
    assert len(found.acted) == len(found.inferences)


def test_a_planted_chunk_is_what_the_arm_carries_out(policy, env):
    rng = np.random.default_rng(0)
    chunk = (
        policy.action_head.bias.detach() + torch.from_numpy(rng.normal(0, 5, (CHUNK, 6)))
    ).float()
    planted = Condition(
        "planted",
        Intervention.at(CHUNK_SITE, FromScene("plan")),
        fixed({"plan": {"hook_actions_normalized": chunk[None]}}),
    )
    found = roll_out(policy, env, START, planted, steps=2 * N_ACTION_STEPS)
    env.reset(seed=START.seed, options={"cube_xy": np.array(START.cube_xy)})
    for step in range(2 * N_ACTION_STEPS):
        seen, *_, facts = env.step(chunk[step % N_ACTION_STEPS].numpy())
        assert np.array_equal(found.result.states[step + 1], seen["observation.state"])
        assert np.array_equal(found.result.tip[step + 1], facts["tip"])


@pytest.mark.parametrize(
    ("name", "schedule", "control", "inference"),
    [
        ("policy", Schedule(), [0, 6, 12, 18], [0, 1, 2, 3]),
        ("policy", Schedule(6, 18), [6, 12], [1, 2]),
        ("policy", Schedule(0, None, 4), [0, 12], [0, 2]),
        ("ensemble", Schedule(3, 6), [3, 4, 5], [3, 4, 5]),
        ("ensemble", Schedule(1, None, 7), [1, 8, 15], [1, 8, 15]),
    ],
)
def test_it_acts_at_the_scheduled_inferences_alone(
    name, schedule, control, inference, env, request
):
    model = request.getfixturevalue(name)
    noted = []

    def note(values, hook):
        if (values == values[:, :1]).all():  # of a constant memory every token has the same value
            noted.append((hook.clock.control_step, hook.clock.inference_step))

    seven = Condition("seven", Intervention.at(Site("encoder.hook_out"), Constant(7.0), schedule))
    with model.hooks(fwd_hooks=[("decoder.0.cross_attn.hook_v", note)]):
        found = roll_out(model, env, START, seven, steps=20)
    assert noted == list(zip(control, inference, strict=True))
    assert [(one.control_step, one.inference_step) for one in found.acted] == noted
    elements = 3 * 16
    assert found.changed == elements * len(control)
    for one in found.acted:
        (receipt,) = one.receipts
        assert (receipt.name, receipt.fired, receipt.changed) == ("encoder.hook_out", 1, elements)


def test_what_an_inference_predicted_is_kept_as_the_queue_took_it(policy, env):
    moved = Condition("pan", Intervention.at(CHUNK_SITE, PAN, Schedule(6, 7)))
    found = roll_out(policy, env, START, moved, steps=18)
    for one in found.inferences:
        executed = found.result.actions[one.control_step : one.control_step + N_ACTION_STEPS]
        assert np.array_equal(one.chunk[:N_ACTION_STEPS], executed)
    plain = roll_out(policy, env, START, steps=18)
    change = found.inferences[1].chunk - plain.inferences[1].chunk
    np.testing.assert_allclose(change, np.tile(PAN.vector, (CHUNK, 1)), atol=1e-4)


def test_a_policy_of_half_precision_is_rolled_out_as_well(env):
    moved = Condition("pan", Intervention.at(CHUNK_SITE, PAN))
    found = roll_out(random_policy().bfloat16(), env, START, moved, steps=7)
    assert np.isfinite(found.result.actions).all()
    assert found.inferences[0].chunk.dtype == np.float32


def test_whatever_happens_no_hook_stays_and_the_clock_stands_at_rest(policy, env):
    def fail(*_):
        raise RuntimeError("planted")

    at = lambda source: Intervention.at(Site("encoder.hook_out"), source)
    for broken in (
        Condition("call", at(Call(fail))),
        Condition("donors", at(FromScene()), fail),
        Condition("no donor", at(FromScene())),
        Condition("perturb", perturb=fail),
        Condition("site", Intervention.at(Site("encoder.hook_outt"), Constant())),
    ):
        with pytest.raises((RuntimeError, InterventionError, HookNameError)):
            roll_out(policy, env, START, broken, steps=3)
        assert policy.list_hooks() == {}
        assert policy.clock.control_step == -1
    roll_out(policy, env, START, steps=3)
    assert policy.list_hooks() == {}
    assert policy.clock.control_step == -1


@pytest.mark.parametrize(
    "condition",
    [
        Condition("late", Intervention.at(CHUNK_SITE, PAN, Schedule(start=40))),
        Condition("between", Intervention.at(CHUNK_SITE, PAN, Schedule(1, 6))),
        Condition("seen", perturb=lambda observation, step: observation),
    ],
    ids=lambda condition: condition.name,
)
def test_what_never_acted_is_an_error_and_no_result(condition, policy, env):
    with pytest.raises(InterventionError, match=r"never acted in 20 .* step 0, 6, 12, 18"):
        roll_out(policy, env, START, condition, steps=20)


# ── donors ───────────────────────────────────────────────────────────────────────────────────


def test_donors_are_made_from_the_rollouts_own_history(policy, env):
    made = []

    def donors(model, history):
        made.append((model.list_hooks(), list(history.actions), history.first, history.start))
        return {"run": run_scene(model, history.first)}

    patch = Intervention.at(Site("encoder.hook_out"), FromScene("run"), Schedule(6))
    found = roll_out(policy, env, START, Condition("own", patch, donors), steps=20)
    assert [len(actions) for _, actions, _, _ in made] == [6, 12, 18]
    first, _ = env.reset(seed=START.seed, options={"cube_xy": np.array(START.cube_xy)})
    for hooks, actions, seen, start in made:
        assert hooks == {}
        assert np.array_equal(actions, found.result.actions[: len(actions)])
        assert np.array_equal(seen["observation.state"], first["observation.state"])
        assert start == START


def test_a_patch_from_the_first_look_makes_the_policy_repeat_it(policy, env):
    patch = Intervention.at(Site("encoder.hook_out"), FromScene("first"))
    found = roll_out(policy, env, START, Condition("first", patch, first_look()), steps=18)
    for one in found.inferences:
        assert np.array_equal(one.chunk, found.inferences[0].chunk)
    assert found.inferences[0].receipts[0].changed == 0
    assert found.inferences[1].receipts[0].changed > 0


def test_the_twin_is_the_same_moment_with_the_cube_elsewhere(policy, env, twin):
    memories = []

    def donors(model, history):
        made = cube_elsewhere(twin)(model, history)
        memories.append(made["twin"]["encoder.hook_out"])
        return made

    patch = Intervention.at(Site("encoder.hook_out"), FromScene("twin"))
    found = roll_out(policy, env, START, Condition("twin", patch, donors), steps=13)
    referee = SeenCube()
    seen, _ = referee.reset(seed=START.seed, options={"cube_xy": np.array(START.elsewhere_xy)})
    for step, action in enumerate(found.result.actions):
        if step % N_ACTION_STEPS == 0:
            expected = run_scene(policy, as_observation(seen))["encoder.hook_out"]
            assert torch.equal(memories.pop(0), expected)
        seen, *_ = referee.step(action)
    assert not memories


def test_the_twins_control_with_the_cube_where_it_is_changes_no_bit(policy, env, twin):
    patch = Intervention.at(Site("encoder.hook_out"), FromScene("twin"))
    found = roll_out(
        policy, env, START, Condition("itself", patch, cube_where_it_is(twin)), steps=20
    )
    assert same(found, roll_out(policy, env, START, steps=20))
    assert found.changed == 0


def test_donors_of_the_start_stay_those_of_the_start(policy, env, twin):
    patch = Intervention.at(Site("encoder.hook_out"), FromScene("twin"))
    found = roll_out(
        policy, env, START, Condition("start", patch, at_start(cube_where_it_is(twin))), steps=13
    )
    assert np.array_equal(found.inferences[2].chunk, found.inferences[0].chunk)


def test_a_start_without_a_twin_cannot_be_patched_from_it(policy, env, twin):
    patch = Intervention.at(Site("encoder.hook_out"), FromScene("twin"))
    with pytest.raises(InterventionError, match="elsewhere_xy"):
        roll_out(policy, env, Start((0.18, 0.0), 1), Condition("twin", patch, cube_elsewhere(twin)))


# ── observations ─────────────────────────────────────────────────────────────────────────────


def test_a_perturbation_changes_what_is_seen_and_not_what_is_recorded(policy, env):
    steps_asked = []

    def heavier(observation, step):
        steps_asked.append(step)
        if step >= 6:
            observation["observation.state"] += 5.0
        return observation

    found = roll_out(policy, env, START, Condition("offset", perturb=heavier), steps=18)
    assert steps_asked == list(range(18))
    assert [one.control_step for one in found.acted] == [6, 12]
    assert found.changed == 2 * 6
    assert found.max_change == pytest.approx(5, abs=1e-5)
    # The same by hand: an offset added to the state before the queue's second refill and on.
    policy.reset()
    seen, _ = env.reset(seed=START.seed, options={"cube_xy": np.array(START.cube_xy)})
    for step in range(18):
        assert np.array_equal(found.result.states[step], seen["observation.state"])
        observation = as_observation(seen)
        if step >= 6:
            observation["observation.state"] = observation["observation.state"] + 5.0
        seen, *_ = env.step(policy.select_action(observation)[0].numpy())
    policy.reset()


def test_the_librarys_perturbations_plug_in(policy, env):
    offset = Perturbation((StateOffset((5.0,)),), Schedule(start=6))
    view = Condition("offset", perturb=PerturbedView(offset))
    found = roll_out(policy, env, START, view, steps=18)
    assert [one.control_step for one in found.acted] == [6, 12]
    assert found.max_change == pytest.approx(5, abs=1e-5)


# ── comparisons ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def planted(env, twin):
    """An expert that plans once for the cube its token names; the token patched from the twin."""
    model = Scripted(expert, chunk=90, n_action_steps=90)
    patch = lambda address: Intervention.at(model.site(address), FromScene("twin"))
    conditions = [
        Condition("token", patch("embed.hook_env_token"), cube_elsewhere(twin)),
        Condition("own token", patch("embed.hook_env_token"), cube_where_it_is(twin)),
        Condition("unread", patch("encoder.hook_out"), cube_elsewhere(twin)),
    ]
    told = []
    found = compare(
        model, env, draw_starts(6), conditions, steps=80,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(i + 1, 6 * 5) for i in range(6 * 5)]
    return found


def test_a_policy_patched_to_see_the_twins_cube_grasps_where_that_stands(planted):
    frame = planted.frame().set_index(["condition", "start"])
    token = frame.loc["token"]
    np.testing.assert_allclose(token.followed, 1, atol=0.03)
    for number, start in enumerate(planted.starts):
        distance = 1000 * np.linalg.norm(np.subtract(start.elsewhere_xy, start.cube_xy))
        assert token.tip_error_mm[number] == pytest.approx(distance, abs=2)
        assert token.closed_x[number] == pytest.approx(start.elsewhere_xy[0], abs=2e-3)
        assert token.closed_y[number] == pytest.approx(start.elsewhere_xy[1], abs=2e-3)
    assert (token.acted == 1).all()
    assert (token.first_acted == 0).all()


def test_what_carries_nothing_moves_nothing(planted):
    frame = planted.frame().set_index("condition")
    for name in (UNDISTURBED.name, REPEATED.name, "own token", "unread"):
        assert (frame.loc[name, ["path_mm", "end_mm", "followed"]] == 0).all(axis=None)
        assert frame.loc[name, "success"].all()
    assert (frame.loc["own token", "changed"] == 0).all()
    assert (frame.loc["unread", "changed"] > 0).all()


def test_the_summary_says_what_was_planted(planted):
    summary = planted.summary().set_index("condition")
    token = summary.loc["token"]
    assert (token.successes, token.lost, token.gained, token.rollouts) == (0, 6, 0, 6)
    assert token.success_change == -1
    assert token.p == pytest.approx(2 / 2**6)
    assert token.followed_low <= token.followed <= token.followed_high
    assert token.tip_error_change_mm_low > 40
    for name in ("own token", "unread"):
        row = summary.loc[name]
        assert (row.successes, row.lost, row.gained, row.p) == (6, 0, 0, 1)
        assert row.path_mm == row.path_mm_high == 0
    assert np.isnan(summary.loc[REPEATED.name].q)
    assert np.isnan(summary.loc[UNDISTURBED.name].path_mm)
    # Benjamini-Hochberg over three conditions by hand: the smallest of three p is multiplied by 3.
    assert token.q == pytest.approx(3 * token.p)


def test_paths_are_compared_step_by_step(planted):
    frame = planted.frame().set_index(["condition", "start"])
    for number in range(6):
        tip, plain = (planted.episodes[c][number].result.tip for c in ("token", UNDISTURBED.name))
        apart = [1000 * np.sqrt(((a - b) ** 2).sum()) for a, b in zip(tip, plain, strict=True)]
        assert frame.loc["token", number].path_mm == pytest.approx(np.mean(apart[1:]))
        assert frame.loc["token", number].end_mm == pytest.approx(apart[-1])


def test_without_a_twin_there_is_nothing_to_follow(policy, env):
    starts = [Start((0.18, -0.03), 5), Start((0.2, 0.02), 6)]
    moved = Condition("pan", Intervention.at(CHUNK_SITE, PAN))
    found = compare(policy, env, starts, [moved], steps=12)
    assert found.frame().followed.isna().all()
    assert found.summary().followed.isna().all()
    assert (found.frame().set_index("condition").loc["pan"].path_mm > 1).all()


@pytest.mark.parametrize(
    ("starts", "names"),
    [([], ["a"]), ([START], ["a", "a"]), ([START], [UNDISTURBED.name])],
)
def test_a_comparison_needs_starts_and_names_that_differ(starts, names, policy, env):
    with pytest.raises(InterventionError, match="needs starts"):
        compare(policy, env, starts, [Condition(name) for name in names])


def test_starts_are_independent_and_their_twins_far_enough_away():
    starts = draw_starts(40, region=Region.HELD_OUT, min_distance=0.06, seed=3)
    assert starts[:7] == draw_starts(7, region=Region.HELD_OUT, min_distance=0.06, seed=3)
    assert len(set(starts)) == len({start.seed for start in starts}) == 40
    for start in starts:
        assert np.linalg.norm(np.subtract(start.elsewhere_xy, start.cube_xy)) >= 0.06
        for place in (start.cube_xy, start.elsewhere_xy):
            assert region_of(*place) is Region.HELD_OUT


# ── pictures ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def seeing(renderer):
    """A random policy that looks through both cameras, and simulators of its size."""
    cameras = tuple(Camera(f"observation.images.{name}", 64, 64) for name in ("top", "lateral"))
    model = random_policy(cameras=cameras, env_state_dim=None)
    model.embed.backbone = small_trunk()
    env, twin = simulator_for(model), simulator_for(model, render=False)
    yield model, env, twin
    env.close()
    twin.close()


def test_a_seeing_policy_is_patched_from_pictures_of_the_twin(seeing):
    model, env, twin = seeing
    patch = Intervention.at(Site("encoder.hook_out"), FromScene("twin"))
    plain = roll_out(model, env, START, steps=8)
    itself = Condition("itself", patch, cube_where_it_is(twin))
    control = roll_out(model, env, START, itself, steps=8)
    assert same(control, plain)
    assert control.changed == 0
    there = roll_out(model, env, START, Condition("there", patch, cube_elsewhere(twin)), steps=8)
    assert there.changed > 0
    seen, _ = env.reset(seed=START.seed, options={"cube_xy": np.array(START.elsewhere_xy)})
    expected = model.predict_action_chunk(as_observation(seen))[0].numpy()
    np.testing.assert_allclose(there.inferences[0].chunk, expected, atol=1e-4)


def test_the_film_shows_both_rollouts_and_when_the_intervention_acts(seeing, tmp_path):
    model, env, _ = seeing
    moved = Condition(
        "pan\x1b[31m " + 40 * "long ", Intervention.at(CHUNK_SITE, PAN, Schedule(6, 7))
    )
    without = roll_out(model, env, START, steps=13, keep_frames=True)
    under = roll_out(model, env, START, moved, steps=13, keep_frames=True)
    assert acting(under) == [6 <= step < 12 for step in range(13)]
    assert not any(acting(without))
    pictures = side_by_side(without, under)
    caption = pictures.shape[1] - 2 * 64
    assert pictures.shape == (14, caption + 128, 64 + 8 + 64, 3)
    for step in range(14):
        for column, episode in ((0, without), (72, under)):
            top, lateral = np.split(episode.result.frames[step], 2, axis=1)
            assert np.array_equal(pictures[step, caption : caption + 64, column : column + 64], top)
            assert np.array_equal(pictures[step, caption + 64 :, column : column + 64], lateral)
        marked = (pictures[step, :caption] == (255, 140, 0)).all(-1)
        assert not marked[:, :72].any()
        assert marked[:, 72:].any() == (6 <= step < 12)
    save_comparison(tmp_path / "films" / "pan.mp4", without, under)
    shown = list(decode(tmp_path / "films" / "pan.mp4"))
    assert len(shown) == 14 + 25
    assert np.abs(shown[3].astype(float) - pictures[3]).mean() < 8


def test_films_need_pictures_of_the_same_start(seeing):
    model, env, _ = seeing
    blind = roll_out(model, env, START, steps=2)
    with pytest.raises(SceneError, match="keep_frames=True"):
        side_by_side(blind, blind)
    one = roll_out(model, env, START, steps=2, keep_frames=True)
    other = roll_out(model, env, Start((0.2, 0.0), 1), steps=2, keep_frames=True)
    longer = roll_out(model, env, START, steps=3, keep_frames=True)
    for wrong in (other, longer):
        with pytest.raises(SceneError, match="start alike"):
            side_by_side(one, wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "observation.environment_state"),
        ({"action_dim": 7, "env_state_dim": None, "cameras": "top"}, "6 joints"),
        ({"env_state_dim": None, "cameras": "wrist"}, "observation.images.wrist"),
    ],
)
def test_a_policy_that_does_not_fit_the_simulator_is_refused(changes, message):
    if camera := changes.get("cameras"):
        changes = changes | {"cameras": (Camera(f"observation.images.{camera}", 32, 32),)}
    with torch.device("meta"), pytest.raises(SceneError, match=message):
        simulator_for(HookedACT(tiny_config(**changes)))
