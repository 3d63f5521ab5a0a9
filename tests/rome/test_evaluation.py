"""Evaluated edits against arithmetic by hand, and in policies where the answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from actlens.config import ACTION_KEY
from actlens.rome import (
    NO_JITTER,
    EditError,
    KeyMetric,
    MLPSite,
    Offset,
    Request,
    key_statistics,
    make_edit,
)
from actlens.rome.cases import Kind, cases_of
from actlens.rome.evaluation import (
    MEASURES,
    Evaluated,
    Measure,
    Scale,
    evaluate,
    measure,
    noise_drift,
    nothing,
)
from actlens.rome.evaluation_result import RomeEvaluation, score
from actlens.rome.probes import Group, Role
from actlens.rome.request import JointLimits
from actlens.rome.rivals import head_shift
from actlens.rome.situations import Situation
from actlens.rome.targets import Standing, Target, TargetSet, kept_runs
from actlens.rome.ways import plain_edits
from tests.rome.conftest import same_keys, scene, scenes
from tests.rome.test_planted import table  # noqa: F401 - a fixture

GROUPS = tuple(
    Group(role.name.lower(), role)
    for role in (Role.OWN, Role.VIEW, Role.NEAR, Role.FAR, Role.OTHER)
)
AT = {name: i for i, name in enumerate(MEASURES)}
SCALE = Scale(0.01, None)


def looked_at(model, numbers, twins=True):
    """Targets in some scenes; near is a scene that the policy cannot tell from it, if there is."""
    order, targets = [], []
    for number in numbers:
        own = scene(number)
        own = replace(own, episode=number)
        near = replace(same_keys(own, own), frame=9) if twins else scene(number + 100)
        probes = [own, near, near, scene(number + 1), scene(number + 2)]
        start = len(order)
        order += probes
        situation = Situation((100.0 * number,), 0.0)
        targets.append(Target(own, situation, tuple((start + i,) for i in range(5))))
    runs = kept_runs(model, MLPSite.of(model, "decoder.0"), order)
    grid = tuple(Standing(i, one.episode, 0.0) for i, one in enumerate(order))
    return TargetSet(tuple(targets), GROUPS, runs, tuple(order), grid)


@pytest.fixture(scope="module")
def found(policy):
    return looked_at(policy, range(0, 18, 3))


@pytest.fixture(scope="module")
def cases(policy, found):
    return cases_of(policy, found, Kind.ONE_JOINT, "pan", 0.3, limits=None)


def column(evaluated, name):
    return evaluated.values[:, :, AT[name]]


def test_a_change_that_changes_nothing_grants_nothing_and_drifts_nowhere(cases, found):
    one = evaluate("nothing", lambda case: nothing, cases, found, SCALE)
    for name in (Measure.CARRIED, Measure.GRANTED, Measure.OVER_HALF, Measure.DRIFT,
                 Measure.OTHER_JOINTS, Measure.NOT_ASKED):  # fmt: skip
        assert (column(one, name) == 0).all(), name
    assert (column(one, Measure.ROUGHNESS) == 1).all()
    total = score(one, GROUPS)
    assert (total.efficacy.estimate, total.near.estimate, total.far.estimate) == (0, 0, 0)
    assert total.total.estimate == 0


def test_a_bias_of_the_head_does_everywhere_all_that_was_asked_for(cases, found):
    one = evaluate("bias", lambda case: head_shift(case.prepared), cases, found, SCALE)
    for name in (Measure.CARRIED, Measure.GRANTED, Measure.OVER_HALF, Measure.DRIFT,
                 Measure.NOT_ASKED, Measure.ROUGHNESS):  # fmt: skip
        np.testing.assert_allclose(column(one, name), 1, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(column(one, Measure.OTHER_JOINTS), 0, atol=1e-9)
    found_score = score(one, GROUPS)
    assert found_score.total.estimate == pytest.approx(0, abs=1e-9)
    assert found_score.efficacy.low < 1 == found_score.efficacy.estimate


def test_every_measure_by_hand(policy, cases, found):
    """Two of three asked-for positions half of the way, and another joint a little."""
    case = cases[0]
    unit = float(policy.normalizer._part("unscale", ACTION_KEY)[0])
    asked = 0.3 / unit
    torch.testing.assert_close(case.asked[:, 0], torch.full((3,), asked).double())
    shift = torch.zeros(5, 3).double()
    shift[:2, 0], shift[4, 0], shift[1, 2] = asked / 2, -asked, 0.25 * asked
    values = measure(case, lambda runs: runs.actions + shift, found, Scale(0.16, None))
    for row in values:
        assert row[AT[Measure.CARRIED]] == pytest.approx((0.5 + 0.5 + 0) / 3)
        assert row[AT[Measure.OVER_HALF]] == 0
        assert row[AT[Measure.GRANTED]] == 0  # the third position misses by 0.3
        assert row[AT[Measure.DRIFT]] == pytest.approx((0.5 + 0.5 + 0) / 3)
        assert row[AT[Measure.OTHER_JOINTS]] == pytest.approx(0.25 / 6)
        assert row[AT[Measure.NOT_ASKED]] == pytest.approx((0 + 1) / 2)
    own = found.runs.actions[0].double()
    rough = lambda x: np.abs(np.diff(x, n=2)).mean()
    expected = rough((own + shift)[:, 0].numpy()) / rough(own[:, 0].numpy())
    assert values[0, AT[Measure.ROUGHNESS]] == pytest.approx(expected)


def test_what_is_granted_depends_on_the_tolerance_in_dataset_units(cases, found):
    half = lambda case: lambda runs: runs.actions + 0.5 * head_shift(case.prepared).shift
    for tolerance, expected in ((0.149, 0), (0.151, 1)):
        one = evaluate("half", half, cases, found, Scale(tolerance, None))
        assert (column(one, Measure.GRANTED) == expected).all()


@pytest.mark.parametrize(("share", "expected"), [(0.45, 0), (0.55, 1)])
def test_over_half_is_half(cases, found, share, expected):
    part = lambda case: lambda runs: runs.actions + share * head_shift(case.prepared).shift
    one = evaluate("part", part, cases, found, SCALE)
    assert (column(one, Measure.OVER_HALF) == expected).all()


def test_a_group_is_the_mean_of_its_scenes(cases, found):
    """The scenes' order in the runs is told by how much each is moved."""
    case = cases[0]
    probes = ((0,), (), (1, 2), (3,), (4, 5, 6))
    some = replace(case, target=replace(case.target, probes=probes))
    moved = torch.arange(7).double()[:, None, None] * head_shift(case.prepared).shift
    values = measure(some, lambda runs: runs.actions + moved, found, SCALE)
    expected = [0, np.nan, 1.5, 3, 5]
    np.testing.assert_allclose(values[:, AT[Measure.CARRIED]], expected, atol=1e-9)


def test_actions_beyond_the_limits_are_counted(policy, cases, found):
    units = policy.normalizer.unnormalize(ACTION_KEY, found.runs.actions)
    low, high = (tuple(x.tolist()) for x in (units.amin((0, 1)), units.amax((0, 1))))
    limits = JointLimits(low, high, "seen")
    far_up = lambda case: lambda runs: runs.actions + torch.tensor([1e3, 0, 0])
    one = evaluate("far up", far_up, cases, found, Scale(0.01, limits))
    np.testing.assert_allclose(column(one, Measure.BEYOND), 1 / 3)
    still = evaluate("nothing", lambda case: nothing, cases, found, Scale(0.01, limits))
    assert (column(still, Measure.BEYOND) == 0).all()


def test_in_a_lookup_table_the_entry_changes_and_no_other(table):  # noqa: F811
    numbers = (0, 1, 2, 3)
    found = looked_at(table, numbers)
    cases = cases_of(table, found, Kind.ONE_JOINT, "pan", 0.3, limits=None)
    metric = KeyMetric.of(key_statistics(table, scenes(6), "decoder.0"), 1e-8)
    one = evaluate("ROME", plain_edits(metric), cases, found, SCALE)
    np.testing.assert_allclose(column(one, Measure.CARRIED)[:, :3], 1, atol=1e-6)
    # The scenes two further on are entries of the table for the first cases.
    np.testing.assert_allclose(column(one, Measure.DRIFT)[:3, 3:], 0, atol=1e-4)
    assert (column(one, Measure.GRANTED)[:, :3] == 1).all()
    total = score(replace(one, values=one.values[:3]), GROUPS).total
    assert total.estimate == pytest.approx(1, abs=1e-4)


def test_a_request_for_what_is_done_already_changes_nothing(policy, statistics, found):
    target = found.targets[0]
    request = Request(target.scene, Offset({"pan": 0.0}))
    edit = make_edit(policy, [request], KeyMetric.of(statistics, 1e-2), jitter=NO_JITTER)
    assert edit.norm == 0


def test_a_case_without_an_edit_counts_as_no_change(cases, found):
    def refuse(case):
        raise EditError("no")

    one = evaluate("refused", refuse, cases, found, SCALE)
    assert one.failures == ("no",) * len(cases)
    assert (column(one, Measure.CARRIED) == 0).all()


def test_the_null_is_how_far_the_other_view_is(policy, cases, found):
    assert (noise_drift(cases, found) == 0).all()  # the views here are the scene itself
    apart = looked_at(policy, range(0, 18, 3), twins=False)
    own = cases_of(policy, apart, Kind.ONE_JOINT, "pan", 0.3, limits=None)
    case, actions = own[0], apart.runs.actions
    expected = (actions[1, :3, 0] - actions[0, :3, 0]).abs().mean() / case.asked[:, 0].abs().mean()
    assert noise_drift(own, apart)[0] == pytest.approx(float(expected))


def fake(granted, near, far):
    """An evaluation with these numbers."""
    values = np.full((len(granted), len(GROUPS), len(MEASURES)), np.nan)
    values[:, 0, AT[Measure.GRANTED]] = granted
    values[:, 2, AT[Measure.CARRIED]] = near
    values[:, 3, AT[Measure.DRIFT]] = far
    return Evaluated("fake", values, np.full(len(granted), 0.5), ("",) * len(granted))


def test_the_score_is_a_harmonic_mean_with_wilson_and_bootstrap():
    rng = np.random.default_rng(0)
    near, far = rng.uniform(0.5, 0.9, 40), rng.uniform(0, 0.2, 40)
    found = score(fake(np.ones(40), near, far), GROUPS)
    parts = np.array([1, near.mean(), 1 - far.mean()])
    assert found.total.estimate == pytest.approx(3 / (1 / parts).sum())
    assert found.efficacy.low == pytest.approx(40 / (40 + 1.959964**2))  # Wilson's, in closed form
    error = near.std(ddof=1) / np.sqrt(40)
    assert found.near.high - found.near.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert found.total.low < found.total.estimate < found.total.high
    assert np.isnan(score(fake(np.ones(3), near[:3], far[:3]), GROUPS).total.low)


def test_groups_without_scenes_are_left_out_of_means():
    near = np.array([1.0, np.nan, 0.0, 0.5, np.nan, 0.5])
    assert score(fake(np.ones(6), near, np.zeros(6)), GROUPS).near.estimate == 0.5


def test_tables_have_a_row_for_every_way_case_and_group(cases, found):
    ways = [evaluate(name, lambda case: nothing, cases, found, SCALE) for name in ("a", "b")]
    result = RomeEvaluation("x", cases, found.groups, tuple(ways), noise_drift(cases, found))
    frame = result.frame()
    assert len(frame) == 2 * len(cases) * len(GROUPS)
    assert set(map(str, MEASURES)) <= set(frame.columns)
    assert len(result.by_group()) == 2 * len(GROUPS)
    assert list(result.scores().way) == ["a", "b"]


def test_directions_that_the_limits_forbid_are_turned(policy, found):
    units = policy.normalizer.unnormalize(ACTION_KEY, found.runs.actions)
    low, high = units.amin((0, 1)) - 1, units.amax((0, 1))
    limits = JointLimits(tuple(low.tolist()), tuple(high.tolist()), "x")
    amount = float(high[0] - units[0, :3, 0].min()) + 0.1
    (first, *_) = cases_of(policy, found, Kind.ONE_JOINT, "pan", amount, limits=None)
    assert (first.asked[:, 0] > 0).all()
    low[0] -= 100
    limits = JointLimits(tuple(low.tolist()), limits.high, "x")
    (first, *_) = cases_of(policy, found, Kind.ONE_JOINT, "pan", amount, limits=limits)
    assert (first.asked[:, 0] < 0).all()


def test_other_kinds_of_request(policy, found):
    several = cases_of(policy, found, Kind.SEVERAL_JOINTS, "pan", 0.3, limits=None)
    assert all(len(case.joints) == 2 for case in several)
    chunks = cases_of(policy, found, Kind.OTHER_SCENE, "pan", 0.3, limits=None)
    for case in chunks:
        far = found.runs.actions[case.target.probes[3][0]][:3]
        torch.testing.assert_close(case.prepared.resolved[0].target, far, atol=1e-9, rtol=0)
    again = cases_of(policy, found, Kind.SEVERAL_JOINTS, "pan", 0.3, limits=None)
    assert all(torch.equal(a.asked, b.asked) for a, b in zip(several, again, strict=True))
