"""Many requests in one matrix, by every rule."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from actlens.rome import (
    NO_JITTER,
    KeyMetric,
    NullSpace,
    Request,
    apply_edits,
    edited_actions,
    key_statistics,
    make_edit,
)
from actlens.rome.cases import Kind, cases_of
from actlens.rome.editing import EditOptions
from actlens.rome.evaluation import Scale
from actlens.rome.many import ManyEdits, compatible, contradicting, edit_many
from actlens.rome.many_rules import at_once, in_turn, joined
from actlens.rome.rivals import head_shift
from actlens.rome.scope import Scope
from actlens.rome.situations import Places
from tests.rome.conftest import scenes
from tests.rome.test_evaluation import looked_at
from tests.rome.test_planted import table  # noqa: F401 - a fixture

PLACES = Places(
    {n: (100.0 * n,) for n in range(40)}, dict.fromkeys(range(40), 3), ("x",), "mm",
    (10.0, 20.0, 40.0, 80.0), 60.0,
)  # fmt: skip
SCALE = Scale(0.01, None)


@pytest.fixture(scope="module")
def found(policy):
    return looked_at(policy, range(0, 18, 3))


def of_kind(model, found, kind, seed=0):
    return cases_of(model, found, kind, "pan", 0.3, limits=None, seed=seed)


def own_actions(change, cases, found):
    return change(joined(cases, found).runs)


@pytest.mark.parametrize("keep", [True, False])
def test_edits_in_turn_are_those_of_the_edited_policies(policy, metric, found, keep):
    """Against edits that are applied to the policy, run anew, one after the other."""
    cases = of_kind(policy, found, Kind.EITHER_WAY)[:3]
    change = in_turn(cases, metric, keep=keep)
    edits = []
    units = policy.normalizer.unnormalize
    for case in cases:
        target = units("action", found.runs.actions[case.target.probes[0][0]].double())
        target[:3] = units("action", case.prepared.resolved[0].target)
        request = Request(case.target.scene, target)
        applied = apply_edits(policy, *edits) if edits else None
        edits.append(
            make_edit(policy, [request], metric, jitter=NO_JITTER, earlier=edits if keep else ())
        )
        if applied is not None:
            applied.undo()
    expected = edited_actions(found.runs, *edits)
    torch.testing.assert_close(change(found.runs), expected, rtol=0, atol=1e-7)


def test_edits_that_are_kept_apart_all_hold_and_in_turn_alone_only_the_last(policy, metric, found):
    cases = of_kind(policy, found, Kind.EITHER_WAY)[:3]  # nine keys of 24 neurons
    rules = {
        "exact": lambda some, found: at_once(some, found, metric),
        "kept": lambda some, found: in_turn(some, metric, keep=True),
        "in turn": lambda some, found: in_turn(some, metric, keep=False),
    }
    exact, kept, turn = edit_many(cases, found, rules, [len(cases)], SCALE, PLACES)
    assert exact.granted.all()
    assert kept.granted.all()
    assert turn.granted[-1]
    assert not turn.granted.all()


def test_in_a_table_many_entries_change_and_nothing_else(table):  # noqa: F811
    found = looked_at(table, range(3), twins=False)
    cases = of_kind(table, found, Kind.EITHER_WAY)
    statistics = key_statistics(table, scenes(6), "decoder.0")
    metric = KeyMetric.of(statistics, 1e-8)
    change = at_once(cases, found, metric)
    wanted = torch.stack([case.prepared.resolved[0].target for case in cases])
    torch.testing.assert_close(own_actions(change, cases, found)[:, :3], wanted, rtol=0, atol=1e-6)
    entry = found.grid[len(found.grid) - 1].number  # of the table, and not asked for
    moved = change(found.runs) - found.runs.actions
    assert moved[entry].abs().max() < 1e-4


def test_drift_is_in_dataset_units_and_of_unrelated_scenes_alone(policy, found):
    cases = of_kind(policy, found, Kind.ONE_JOINT)
    bias = {"bias": lambda some, found: head_shift(some[0].prepared)}
    one, all_ = edit_many(cases, found, bias, [1, 6], SCALE, PLACES)
    np.testing.assert_allclose(one.drift, 0.3)
    taken = {case.target.scene.episode for case in cases}
    others = {one.episode for one in found.grid} - taken
    assert len(all_.drift) == len(others) < len(one.drift)
    assert all_.near == pytest.approx(np.ones(6))
    frame = ManyEdits((one, all_)).frame()
    assert frame.drift.to_numpy() == pytest.approx([0.3, 0.3])
    assert list(frame.requests) == [1, 6]


def test_opposite_requests_in_alike_scenes_are_left_out_or_paired(policy, found, metric):
    cases = of_kind(policy, found, Kind.EITHER_WAY, seed=3)
    signs = np.array([float(case.asked[0, 0]) > 0 for case in cases])
    assert 0 < signs.sum() < len(signs)
    assert len(compatible(cases, PLACES, Scope())) == len(cases)
    kept = compatible(cases, replace(PLACES, alike=1e6), Scope())
    assert len({float(case.asked[0, 0]) > 0 for case in kept}) == 1
    pairs = contradicting(cases, found, PLACES, 2)
    assert len(pairs) == 4
    for mine, other in zip(pairs[::2], pairs[1::2], strict=True):
        torch.testing.assert_close(other.asked, -mine.asked)
        assert torch.equal(mine.prepared.keys[0], other.prepared.keys[0])  # the near one is a twin
    (refused,) = edit_many(
        pairs, found, {"exact": lambda some, found: at_once(some, found, metric)}, [4], SCALE,
        PLACES, contradictory=True,
    )  # fmt: skip
    assert "cannot be reached" in refused.failure
    assert not refused.granted.any()


def test_soft_rules_grant_nearly_all(policy, statistics, metric, found):
    cases = of_kind(policy, found, Kind.EITHER_WAY)
    null_space = EditOptions(NullSpace.of(statistics, threshold=0.5, alpha=1e-9))
    change = at_once(cases[:1], found, metric, null_space)
    wanted = cases[0].prepared.resolved[0].target
    torch.testing.assert_close(
        own_actions(change, cases[:1], found)[0, :3], wanted, rtol=0, atol=1e-5
    )
