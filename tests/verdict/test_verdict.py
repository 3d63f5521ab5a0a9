"""The verdict from two axes: every quadrant, what stays open, and planted policies."""

import itertools

import numpy as np
import pytest

from actlens.mechanism import JUMP, MechanismAxis, Part, Placed, mechanism_axis
from actlens.planted import (
    FeatureRule,
    LinearRule,
    Region,
    Stored,
    Table,
    World,
    plant,
)
from actlens.retrieval import (
    TaskState,
    Undefined,
    Yardstick,
    function_axis,
    run_demonstrations,
    sites_of,
)
from actlens.statistics import Interval
from actlens.verdict import Answer, index_of, judge

LOW, HIGH, EITHER = (0.1, 0.3), (0.7, 0.9), (0.4, 0.6)


def interval(bounds):
    return Interval(np.asarray(np.mean(bounds)), *(np.asarray(x) for x in bounds))


def axis(bounds, *, rule=0.0, table=1.0, no_table=""):
    jump = Placed(JUMP, float(np.mean(bounds)), *bounds, rule, table, np.nan)
    return MechanismAxis((jump,), 0.0, np.nan, no_table, 40, 40)


def answer(inside, jump, beyond=None, **parts):
    return judge(
        interval(inside),
        axis(jump),
        beyond=None if beyond is None else interval(beyond),
        parts={Part[name]: interval(bounds) for name, bounds in parts.items()},
    )


@pytest.mark.parametrize(
    ("inside", "jump", "beyond", "expected"),
    [
        (LOW, HIGH, LOW, Answer.LOOKUP_TABLE),
        (LOW, HIGH, HIGH, Answer.LOOKUP_TABLE),
        (LOW, LOW, LOW, Answer.SMOOTH_MEMORISER),
        (HIGH, LOW, LOW, Answer.INTERPOLATOR),
        (HIGH, LOW, HIGH, Answer.GENERAL_RULE),
        (HIGH, HIGH, HIGH, Answer.UNDECIDED),
        (EITHER, HIGH, LOW, Answer.UNDECIDED),
        (LOW, EITHER, LOW, Answer.UNDECIDED),
        (HIGH, LOW, EITHER, Answer.UNDECIDED),
        (LOW, LOW, EITHER, Answer.SMOOTH_MEMORISER),
    ],
)
def test_an_answer_needs_every_axis_that_it_depends_on(inside, jump, beyond, expected):
    assert answer(inside, jump, beyond).answer is expected


def test_an_answer_is_always_the_only_candidate_and_what_is_open_is_said():
    for sides in itertools.product((LOW, EITHER, HIGH), repeat=3):
        found = answer(*sides)
        if found.answer is Answer.UNDECIDED:
            assert found.missing
            assert found.site is None
        else:
            assert found.candidates == (found.answer,)


def test_neither_axis_alone_makes_a_lookup_table():
    for other in (LOW, EITHER, HIGH):
        if other is not LOW:
            assert answer(other, HIGH, LOW).answer is not Answer.LOOKUP_TABLE
        if other is not HIGH:
            assert answer(LOW, other, LOW).answer is not Answer.LOOKUP_TABLE


def test_without_scenes_beyond_the_demonstrations_a_rule_is_not_told_from_an_interpolator():
    found = answer(HIGH, LOW)
    assert found.answer is Answer.UNDECIDED
    assert found.candidates == (Answer.INTERPOLATOR, Answer.GENERAL_RULE)
    assert "beyond" in found.missing[0]
    assert answer(LOW, LOW).answer is Answer.SMOOTH_MEMORISER  # it does not matter there


def test_few_episodes_and_undefined_indices_are_named_as_what_is_missing():
    few = Interval(np.asarray(0.9), np.asarray(np.nan), np.asarray(np.nan))
    found = judge(few, axis(LOW), beyond=interval(LOW))
    assert found.answer is Answer.UNDECIDED
    assert any("5 episodes" in reason for reason in found.missing)
    found = judge(Undefined("no headroom"), axis(LOW), beyond=interval(LOW))
    assert found.answer is Answer.UNDECIDED
    assert any("no headroom" in reason for reason in found.missing)
    assert found.frame().says[0] == "undefined: no headroom"


@pytest.mark.parametrize(("rule", "table"), [(0.3, 1.0), (0.0, 0.4)])
def test_a_statistic_that_cannot_tell_planted_twins_apart_decides_nothing(rule, table):
    found = judge(interval(LOW), axis(HIGH, rule=rule, table=table), beyond=interval(LOW))
    assert found.answer is Answer.UNDECIDED
    assert any("planted" in reason for reason in found.missing)


def test_a_table_that_could_not_be_planted_is_said_but_does_not_stop_the_verdict():
    blind = axis(LOW, table=np.nan, no_table="entries are alike")
    found = judge(interval(LOW), blind, beyond=interval(LOW))
    assert found.answer is Answer.SMOOTH_MEMORISER
    assert any("entries are alike" in reason for reason in found.missing)


@pytest.mark.parametrize(
    ("mlp", "attention", "encoder", "site"),
    [
        (HIGH, HIGH, HIGH, Part.DECODER_MLP),
        (LOW, HIGH, HIGH, Part.CROSS_ATTENTION),
        (LOW, LOW, HIGH, Part.ENCODER),
        (EITHER, HIGH, HIGH, None),
        (LOW, EITHER, HIGH, None),
    ],
)
def test_the_site_is_the_last_part_that_jumps(mlp, attention, encoder, site):
    found = answer(LOW, mlp, LOW, CROSS_ATTENTION=attention, ENCODER=encoder)
    assert found.answer is Answer.LOOKUP_TABLE
    assert found.site is site


def test_evidence_has_a_row_for_every_figure():
    found = answer(HIGH, LOW, HIGH, ENCODER=LOW).frame()
    assert list(found.axis) == ["function", "function", "mechanism", "mechanism"]
    assert found.says.tolist() == [*["better than the nearest demonstration"] * 2, *["smooth"] * 2]
    assert (found.low <= found.value).all()
    assert (found.value <= found.high).all()


# ── planted policies, through the real axes ──────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("mechanism", "everywhere", "expected"),
    [
        (Table(), False, Answer.LOOKUP_TABLE),
        (FeatureRule(), True, Answer.GENERAL_RULE),
        (LinearRule(), False, Answer.INTERPOLATOR),
    ],
    ids=["table", "rule of everywhere", "rule of the demonstrations"],
)
def test_planted_policies_are_what_they_were_made_to_be(mechanism, everywhere, expected):
    world = World(seed=1001)
    regions = {region: world.positions(region, 100, seed=5) for region in Region}
    shown = world.scenes(world.positions(Region.TRAIN, 40))
    taught = shown
    if everywhere:
        taught = world.scenes(np.concatenate(list(regions.values())), first_episode=500)
    blank = world.policy()
    model = plant(blank, Stored.of(blank, taught), mechanism, readout=world.readout).model
    run = lambda scenes: run_demonstrations(model, scenes, sites_of(model)[:1], batch_size=128)
    known = run(shown)
    yardstick = Yardstick.of(known.actions, known.counted)
    task = TaskState.of(known, yardstick, ["cube_x", "cube_y"])

    def index(region):
        new = world.scenes(world.positions(region, 150, seed=6), first_episode=1000)
        return index_of(function_axis(known, run(new), yardstick, task))

    found = judge(
        index(Region.GAP),
        mechanism_axis(model, shown),
        beyond=index(Region.OUTSIDE),
    )
    assert found.answer is expected, found
    assert found.site is (Part.DECODER_MLP if expected is Answer.LOOKUP_TABLE else None)
