"""Offline errors of the series: known answers in, known figures out."""

from dataclasses import replace

import numpy as np
import pytest

from actlens.retrieval import TIP, Demonstrations
from actlens.scenes.dataset import open_dataset
from actlens.sim.series import ALL, DEGREES, FIRST, Offline, offline, reference_of
from actlens.sim.series.closed_loop import starts_where_shown
from actlens.sim.series.evaluation import (
    EvaluationOptions,
    demonstrated_starts,
    mechanism,
    verdicts,
)
from actlens.sim.series.offline import regions_of, with_degrees
from tests.sim.test_series_pictures import small_policy

FRAMES = (0, 25)


def some(name, episodes):
    dataset = open_dataset(name)
    return replace(dataset, episodes=tuple(dataset.episode(i) for i in episodes))


@pytest.fixture(scope="module")
def known():
    return some("so101-pick-cube", range(12))


@pytest.fixture(scope="module")
def unseen():
    return some("so101-pick-cube-unseen", [*range(6), *range(30, 36), *range(60, 66)])


@pytest.fixture(scope="module")
def found(known, unseen):
    model = small_policy()
    reference = reference_of(known, model.config.chunk, FRAMES)
    return offline(model, known, range(12), unseen, reference, frames=FRAMES)


def answering(scenes: Demonstrations, predicted) -> Demonstrations:
    return replace(scenes, predicted=predicted)


def test_the_reference_does_not_depend_on_the_policy(known, found):
    again = reference_of(known, found.trained.actions.shape[1], FRAMES)
    assert np.array_equal(again.yardstick.spread, found.reference.yardstick.spread)
    assert np.array_equal(again.task.factor, found.reference.task.factor)


def test_scenes_are_told_apart_by_where_their_episode_starts(found):
    names, counts = np.unique(regions_of(found.unseen), return_counts=True)
    assert dict(zip(names, counts, strict=True)) == {
        "held-out cells": 12, "new places": 12, "strip": 12
    }  # fmt: skip


def test_an_expert_generalises_and_has_no_error(found):
    expert = Offline(
        answering(found.trained, found.trained.actions),
        answering(found.unseen, found.unseen.actions),
        found.reference,
    )
    indices = expert.frames()["indices"]
    assert (indices.policy_unseen == 0).all()
    known = indices[indices.undefined == ""]
    assert len(known) > 20
    assert known["index"].to_numpy() == pytest.approx(1.0)


def test_the_nearest_demonstration_itself_has_index_zero(found):
    """A policy that answers with what the oracle retrieves, and knows its own demonstrations."""
    task = found.reference.task
    keys, asked = task.keys(found.trained), task.keys(found.unseen)
    nearest = ((asked[:, None] - keys[None]) ** 2).sum(-1).argmin(1)
    table = Offline(
        answering(found.trained, found.trained.actions),
        answering(found.unseen, found.trained.actions[nearest]),
        found.reference,
    )
    tables = table.frames()
    known = tables["indices"][tables["indices"].undefined == ""]
    whole = known[known.frames == ALL]
    assert whole["index"].to_numpy() == pytest.approx(0.0, abs=1e-9)
    assert {DEGREES, TIP} <= set(known.measure)
    first = tables["snaps"].query("rank == 1 and frames == @ALL")
    assert first.snap.to_numpy() == pytest.approx(1.0)


def test_degrees_are_the_mean_over_the_joints_of_the_arm(found):
    yardstick, scenes = found.reference.yardstick, found.unseen
    errors = with_degrees(yardstick.errors(scenes.predicted, scenes.actions, scenes.counted))
    apart = np.abs(scenes.predicted - scenes.actions)[..., :5].mean(-1)
    expected = (apart * scenes.counted).sum(1)
    assert errors.of(DEGREES) == pytest.approx(expected, rel=1e-5)


def test_one_row_an_episode_with_its_first_frame_apart(found):
    rows = found.episodes()
    assert len(rows) == 18
    assert (rows[f"{DEGREES}, {FIRST}"] != rows[DEGREES]).all()
    whole = found.frames()["indices"]
    strip = whole.query("region == 'strip' and frames == @FIRST and measure == @DEGREES")
    mean = rows[rows.region == "strip"][f"{DEGREES}, {FIRST}"].mean()
    assert mean == pytest.approx(strip.policy_unseen.item())


def test_starts_where_it_was_shown_are_at_demonstrated_places(known):
    shown = demonstrated_starts(known, range(12))
    assert {tuple(place) for place in shown.tolist()} == {
        (float(label["cube_x"][0]), float(label["cube_y"][0]))
        for label in map(known.labels, range(12))
    }
    few, many = starts_where_shown(shown, 4), starts_where_shown(shown, 30)
    assert [start.cube_xy for start in few] == [tuple(p) for p in shown[::3].tolist()]
    assert {start.cube_xy for start in many} == {tuple(p) for p in shown.tolist()}
    assert len({start.seed for start in many}) == 30


def test_a_policy_of_few_demonstrations_has_no_contest_and_yet_a_mechanism(known, unseen):
    options = EvaluationOptions(frames=(0,), mechanism_scenes=6)
    axis = mechanism(small_policy(), known, tuple(range(6)), unseen, options)
    names = {one.statistic for one in axis.placed}
    assert "jump between neighbours" in names
    assert "smooth against table surrogate" not in names


def test_the_verdict_is_given_at_frame_0_and_at_all(found, known, unseen):
    options = EvaluationOptions(frames=(0,), mechanism_scenes=6)
    axis = mechanism(small_policy(), known, tuple(range(6)), unseen, options)
    rows = verdicts(found.axes, axis)
    assert set(rows.frames) == {FIRST, ALL}
    assert set(rows.axis) == {"function", "mechanism"}
    index = found.axes["strip", FIRST].indices[0]
    assert index.measure not in ("", None)
    assert rows.groupby("frames").answer.nunique().eq(1).all()
