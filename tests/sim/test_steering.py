"""Steering by value vectors, on a policy in which it is known what every neuron does."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats
from scripted_policies import N_ACTION_STEPS, SeenCube, random_policy

from actlens.errors import HookNameError, InterventionError, SceneError
from actlens.interventions import Intervention, as_hooks
from actlens.kinematics import SO101_SIMULATED
from actlens.model.mlp_site import MLPSite
from actlens.report.steering import render_steering
from actlens.scene import Scene
from actlens.sim.conditions import Start, draw_starts
from actlens.sim.controlled import Episode
from actlens.sim.environment import HOME
from actlens.sim.rollout import RolloutResult, as_observation
from actlens.sim.steered_rollouts import SteeringOptions, steer
from actlens.sim.steering import AddValues, Claim, Clamp, NeuronScales, displacement

CHUNK = 12
PAN, LIFT = (5, 7), (3, 11)
"""Neurons of the planted policy whose values move one joint."""
LEFT = Claim("left", PAN, (2.0, 0, 0, 0, 0, 0))


@pytest.fixture(scope="module")
def env():
    return SeenCube()


@pytest.fixture(scope="module")
def policy():
    """Random weights, but what every neuron of the decoder's MLP writes moves one joint or none.

    The head reads joint j as the difference of two channels of its own; LayerNorms keep that.
    """
    model = random_policy(chunk=CHUNK)
    block = model.decoder[0]
    with torch.no_grad():
        model.action_head.weight.zero_()
        for joint in range(6):
            model.action_head.weight[joint, 2 * joint] = 8.0
            model.action_head.weight[joint, 2 * joint + 1] = -8.0
        values = block.mlp.linear2.weight
        values.zero_()
        for neuron in range(16):
            channel = 0 if neuron in PAN else 2 if neuron in LIFT else 12 + 2 * (neuron % 2)
            values[channel, neuron], values[channel + 1, neuron] = 0.5, -0.5
        block.mlp.linear1.bias.fill_(0.3)  # all of them fire now and then
    return model


@pytest.fixture(scope="module")
def scenes(env):
    found = []
    for number, start in enumerate(draw_starts(12)):
        seen, _ = env.reset(seed=start.seed, options={"cube_xy": np.array(start.cube_xy)})
        found.append(Scene(as_observation(seen), episode=number))
    return found


@pytest.fixture(scope="module")
def scales(policy, scenes):
    return NeuronScales.of(policy, scenes, "decoder.0", quantile=1)


# ── scales and matches ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("block", ["decoder.0", "encoder.0"])
def test_scales_are_those_of_the_coefficients(block, policy, scenes):
    found = NeuronScales.of(policy, scenes, block, quantile=0.9)
    hook = f"{block}.mlp.hook_post"
    rows = [policy.run_with_cache(scene.observation)[1][hook][0] for scene in scenes]
    coefficients = torch.cat(rows).numpy()
    np.testing.assert_allclose(found.high, np.quantile(coefficients, 0.9, axis=0), atol=1e-4)
    np.testing.assert_allclose(found.mean, coefficients.mean(0), atol=1e-4)
    np.testing.assert_allclose(found.active, (coefficients > 0).mean(0))
    values = policy.get_submodule(f"{block}.mlp").W_out.detach().numpy()
    np.testing.assert_allclose(found.length, np.linalg.norm(values, axis=1), rtol=1e-5)
    np.testing.assert_allclose(
        found.write(policy, (1, 4)), found.high[1] * values[1] + found.high[4] * values[4], 1e-4
    )


def test_scales_need_scenes_a_block_and_a_quantile(policy, scenes):
    with pytest.raises(InterventionError, match="no scene"):
        NeuronScales.of(policy, [], "decoder.0")
    with pytest.raises(HookNameError, match=r"decoder\.0"):
        NeuronScales.of(policy, scenes, "decoder.9")
    with pytest.raises(InterventionError, match="quantile"):
        NeuronScales.of(policy, scenes, "decoder.0", quantile=0)


def planted_scales(n=40, dead=()):
    """Neuron i and i + n/2 are alike; no others are."""
    rng = np.random.default_rng(0)
    traits = np.tile(rng.uniform(0.1, 1, (4, n // 2)), 2)
    high = traits[0].copy()
    high[list(dead)] = 0
    return NeuronScales(MLPSite("decoder.0"), high, *traits[1:])


def test_the_nearest_match_is_the_twin():
    scales = planted_scales()
    for seed in range(3):
        found = scales.matched((0, 3, 8), seed=seed, nearest=1)
        assert sorted(found) == [20, 23, 28]


def test_matches_are_others_that_fire_and_differ_between_draws():
    scales = planted_scales(dead=range(30, 40))
    draws = [scales.matched(range(8), seed=seed) for seed in range(20)]
    for drawn in draws:
        assert len(set(drawn)) == 8
        assert not set(drawn) & {*range(8), *range(30, 40)}
    assert len(set(draws)) > 15
    assert scales.matched(range(8), seed=4) == draws[4]


def test_matches_are_more_alike_than_random_neurons():
    rng = np.random.default_rng(1)
    traits = rng.lognormal(size=(4, 1000))
    scales = NeuronScales(MLPSite("decoder.0"), *traits)
    mine = np.argsort(-traits[0])[:20].tolist()
    drawn = scales.matched(mine, seed=0)
    random = rng.choice(np.setdiff1d(np.arange(1000), mine), 20, replace=False)
    apart = lambda other: abs(np.log(traits[0, mine].mean() / traits[0, other].mean()))
    assert apart(list(drawn)) < apart(random) / 2


@pytest.mark.parametrize(
    ("neurons", "message"),
    [((), "Give different"), ((1, 1), "Give different"), ((40,), "0..39"), ((2, 31), "31 of")],
)
def test_neurons_without_a_dose_are_refused(neurons, message):
    scales = planted_scales(dead=range(30, 40))
    with pytest.raises(InterventionError, match=message):
        scales.matched(neurons)
    with pytest.raises(InterventionError, match=message):
        Clamp().intervention(None, scales, neurons, 1.0)


def test_too_few_others_are_an_error():
    assert len(set(planted_scales(dead=range(30, 40)).matched(range(15)))) == 15
    with pytest.raises(InterventionError, match="only 14 others"):
        planted_scales(dead=range(30, 40)).matched(range(16))


# ── doses ────────────────────────────────────────────────────────────────────────────────────


def chunk_under(model, scene, hooks):
    with model.hooks(fwd_hooks=hooks):
        return model.predict_action_chunk(scene.observation)[0].numpy()


@pytest.mark.parametrize("block", ["decoder.0", "encoder.0"])
@pytest.mark.parametrize("dose", [-1.5, 0.0, 2.0])
def test_doses_do_what_hooks_by_hand_do(block, dose, policy, scenes):
    scales = NeuronScales.of(policy, scenes, block, quantile=1)
    neurons = (2, 5, 7)
    values = policy.get_submodule(f"{block}.mlp").W_out.detach()

    def held(post, hook):
        post = post.clone()
        for neuron in neurons:
            post[..., neuron] = dose * float(scales.high[neuron])
        return post

    def added(out, hook):
        return out + sum(dose * float(scales.high[n]) * values[n] for n in neurons)

    for dosing, hook in (
        (Clamp(), (f"{block}.mlp.hook_post", held)),
        (AddValues(), (f"{block}.hook_mlp_out", added)),
    ):
        what = dosing.intervention(policy, scales, neurons, dose)
        expected = chunk_under(policy, scenes[0], [hook])
        if what is None:
            assert (dosing, dose) == (AddValues(), 0.0)
            np.testing.assert_array_equal(expected, chunk_under(policy, scenes[0], []))
            continue
        found = chunk_under(policy, scenes[0], as_hooks(policy, what))
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert np.abs(found - chunk_under(policy, scenes[0], [])).max() > 1e-3
        assert Intervention.from_json(what.to_json()) == what


# ── displacement ─────────────────────────────────────────────────────────────────────────────


def episode(states):
    """A rollout that stood in these joint positions."""
    n = len(states)
    tip = SO101_SIMULATED.tip(states)
    result = RolloutResult(
        False, 0.0, 0, False, states.astype(np.float32), states[1:].astype(np.float32), tip,
        np.zeros((n, 4)), np.zeros(n, bool), None,
    )  # fmt: skip
    return Episode("any", Start((0.2, 0.0), 0), result, ())


def test_displacement_is_taken_along_the_promised_joints_and_the_way_they_take_the_tip():
    rng = np.random.default_rng(2)
    plain = HOME + rng.normal(0, 5, (7, 6))
    moved = plain + rng.normal(0, 3, (7, 6))
    moved[:, 5] = plain[:, 5]
    claim = Claim("some", (0,), (3.0, 0, -4.0, 0, 0, 0))
    found = displacement(episode(moved), episode(plain), claim)
    difference = moved - plain
    np.testing.assert_allclose(
        found["along_deg"], 0.6 * difference[:, 0] - 0.8 * difference[:, 2], atol=1e-4
    )
    np.testing.assert_allclose(found["apart_deg"], np.linalg.norm(difference, axis=1), atol=1e-4)
    tip, base = SO101_SIMULATED.tip(moved), SO101_SIMULATED.tip(plain)
    np.testing.assert_allclose(found["apart_mm"], 1000 * np.linalg.norm(tip - base, axis=1))
    step = 1e-4 * np.array([0.6, 0, -0.8, 0, 0, 0])  # finite differences
    way = SO101_SIMULATED.tip(plain + step) - SO101_SIMULATED.tip(plain - step)
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    np.testing.assert_allclose(found["along_mm"], 1000 * ((tip - base) * way).sum(1), atol=1e-3)


def test_a_motion_as_promised_is_all_along_and_a_roll_moves_no_gripper():
    plain = HOME + np.zeros((4, 6))
    small = 0.01 * np.array([1.0, 0, 0, 0, 0, 0])
    found = displacement(episode(plain + small), episode(plain), LEFT)
    np.testing.assert_allclose(found["along_mm"], found["apart_mm"], rtol=1e-4)
    np.testing.assert_allclose(found["along_deg"], found["apart_deg"])
    roll = Claim("roll", (0,), (0, 0, 0, 0, 1.0, 0))
    assert np.isnan(displacement(episode(plain + small), episode(plain), roll)["along_mm"]).all()


@pytest.mark.parametrize("direction", [(), (0.0,) * 6, (1.0,) * 7, (np.nan, 0, 0, 0, 0, 0)])
def test_a_claim_promises_a_motion_of_six_joints(direction):
    with pytest.raises(InterventionError, match="6 joints"):
        _ = Claim("none", (0,), direction).unit


# ── rollouts ─────────────────────────────────────────────────────────────────────────────────

OPTIONS = SteeringOptions(draws=4, steps=12)


@pytest.fixture(scope="module")
def steered(policy, env, scales):
    told = []
    claims = [LEFT, Claim("right", LIFT, (-1.0, 0, 0, 0, 0, 0))]
    found = steer(
        policy, draw_starts(6), scales, claims, options=OPTIONS, env=env,
        progress=lambda *done: told.append(done),
    )  # fmt: skip
    rollouts = 6 * (2 + 2 * (4 + 2 * 4))  # nothing is done, and rolled out, at dose 0
    assert told == [(i + 1, rollouts) for i in range(rollouts)]
    return found


def test_true_claims_are_told_from_false_ones(steered):
    summary = steered.summary().set_index(["claim", "dose"])
    for dose in (-2.0, 2.0):
        true, false = summary.loc["left", dose], summary.loc["right", dose]
        assert np.sign(dose) * true.along_deg > 1
        assert np.sign(dose) * true.along_mm > 1
        assert true.along_deg_low <= true.along_deg <= true.along_deg_high
        assert true.straight * np.sign(dose) > 0.9
        assert abs(false.straight) < 0.4
        assert true.as_far == 0
        assert true.p == pytest.approx(2 / 2**6)
        assert abs(true.matched_deg) < 0.3 * abs(true.along_deg)
        assert abs(true.more_deg - (true.along_deg - true.matched_deg)) < 1e-9
    nothing = summary.loc["left", 0.0]
    assert (nothing.along_deg, nothing.apart_mm, nothing.draws) == (0, 0, 0)
    assert np.isnan(nothing.p)
    assert summary.loc["left", 1.0].success_change == 0


def test_a_true_claims_dose_response_rises(steered):
    table = steered.dose_response().set_index("claim")
    true = table.loc["left"]
    assert true.doses == 5
    assert true.tau_low == pytest.approx(1)
    assert true.slope_deg > 0.5
    # The same by numpy and by counting pairs.
    frame = steered.frame()
    slopes, taus = [], []
    for _, rows in frame[frame.draw.isna() & (frame.claim == "right")].groupby("start"):
        x, y = rows.dose.to_numpy(), rows.along_deg.to_numpy()
        slopes.append(np.polyfit(x, y, 1)[0])
        signs = np.sign(np.subtract.outer(x, x) * np.subtract.outer(y, y))
        taus.append(signs.sum() / 20)
    assert table.loc["right"].slope_deg == pytest.approx(np.mean(slopes))
    assert table.loc["right"].tau == pytest.approx(np.mean(taus))


def test_the_frame_says_of_every_rollout_how_far_it_went(steered):
    frame = steered.frame(at=6)
    assert len(frame) == 6 * 2 * (5 + 2 * 4)
    one = next(t for t in steered.treatments if t.name == "left +2, matched 3")
    row = frame[(frame.claim == "left") & (frame.dose == 2) & (frame.draw == 2)].iloc[4]
    found, plain = (steered.closed_loop.episodes[n][4] for n in (one.name, "undisturbed"))
    pan = (found.result.states - plain.result.states)[:, 0]
    assert row.along_deg == pytest.approx(pan[1:].mean(), abs=1e-5)
    assert row.along_deg_at == pytest.approx(pan[6], abs=1e-5)
    with pytest.raises(InterventionError, match="1 to 12"):
        steered.frame(at=13)


def test_p_is_that_of_the_permutation_of_starts(steered):
    frame = steered.frame()
    mine = frame[(frame.claim == "right") & (frame.dose == 2)]
    own = mine[mine.draw.isna()].set_index("start").along_deg
    others = mine[mine.draw.notna()].groupby("start").along_deg.mean()
    expected = stats.permutation_test(
        (own.to_numpy(), others.to_numpy()), lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type="samples", n_resamples=np.inf, vectorized=True,
    ).pvalue  # fmt: skip
    summary = steered.summary().set_index(["claim", "dose"]).loc["right", 2.0]
    assert summary.p == pytest.approx(expected)
    by_draw = mine[mine.draw.notna()].groupby("draw").along_deg.mean()
    assert summary.as_far == (by_draw >= own.mean()).sum()


def test_matched_neurons_write_as_much(steered, policy, scales):
    matched = [one for one in steered.treatments if one.draw is not None]
    assert len({one.neurons for one in matched if one.claim is LEFT}) > 1
    for one in matched:
        assert not set(one.neurons) & set(one.claim.neurons)
        length = lambda neurons: np.linalg.norm(scales.write(policy, neurons))
        assert one.times * length(one.neurons) == pytest.approx(length(one.claim.neurons))
    without = SteeringOptions(doses=(1.0,), controlled=(1.0,), steps=2, equal_writes=False)
    found = steer(policy, draw_starts(1), scales, [LEFT], options=without, env=SeenCube())
    assert {one.times for one in found.treatments} == {1.0}


def test_clamped_neurons_are_rolled_out_at_dose_zero_too(policy, env, scales):
    options = SteeringOptions(Clamp(), doses=(0.0,), controlled=(), steps=N_ACTION_STEPS)
    found = steer(policy, draw_starts(2), scales, [LEFT], options=options, env=env)
    frame = found.frame()
    assert (frame.apart_deg > 0).all()
    assert found.dose_response().empty
    assert found.summary().draws.eq(0).all()


@pytest.mark.parametrize(
    "wrong",
    [{"doses": ()}, {"doses": (1.0, 1.0)}, {"controlled": (3.0,)}, {"draws": -1}],
)
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InterventionError, match="different doses"):
        SteeringOptions(**wrong)


def test_claims_are_checked_before_anything_is_rolled_out(policy, env, scales):
    never = lambda done, total: pytest.fail("something was rolled out")
    go = lambda *claims: steer(policy, draw_starts(1), scales, claims, env=env, progress=never)
    with pytest.raises(InterventionError, match="no claim"):
        go()
    with pytest.raises(InterventionError, match="6 joints"):
        go(Claim("none", (0,), (0.0,) * 6))
    with pytest.raises(InterventionError, match="differ"):
        go(LEFT, LEFT)
    with pytest.raises(SceneError, match="environment_state"):  # of the simulator that is made
        steer(policy, draw_starts(1), scales, [LEFT], progress=never)


# ── report ───────────────────────────────────────────────────────────────────────────────────


def shown(renderable):
    out = io.StringIO()
    Console(file=out, width=80).print(renderable)
    return out.getvalue()


def test_the_report_fits_80_columns_and_says_what_was_found(steered):
    summary, doses = steered.summary(), steered.dose_response()
    hostile = summary.replace({"claim": {"right": "[red]right[/red]\x1b[31m"}})
    text = shown(render_steering(hostile, doses, policy="tiny", dosing="values added"))
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    flat = " ".join(text.split())
    row = summary.set_index(["claim", "dose"]).loc["left", 2.0]
    along = f"{row.along_mm:+.1f} ({row.along_mm_low:+.1f}…{row.along_mm_high:+.1f})"
    assert f"left +2 {along} {row.matched_mm:+.1f} 0/4 {row.p:.3f} {row.q:.3f}" in flat
    assert "[red]right" in flat
    assert "p >= 0.031" in flat
    assert "p = 0.2 over neurons" in flat


def test_the_report_of_a_roll_speaks_of_joints(policy, env, scales):
    roll = Claim("roll", (0,), (0, 0, 0, 0, 1.0, 0))
    options = SteeringOptions(doses=(1.0,), controlled=(), steps=2)
    found = steer(policy, draw_starts(1), scales, [roll], options=options, env=env)
    text = shown(
        render_steering(found.summary(), found.dose_response(), policy="tiny", dosing="added")
    )
    assert " deg " in text
    assert "5 are needed" in text
    assert "Does more do more?" not in text
    assert "nan" not in text
