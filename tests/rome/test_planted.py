"""Policies in which what an edit must do is known by construction."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from actlens.rome import (
    NO_JITTER,
    EditOptions,
    KeyMetric,
    NullSpace,
    Offset,
    Request,
    key_statistics,
    make_edit,
)
from tests.rome.conftest import PAN, chunk_of, scene, scenes

N_SCENES, CHUNK = 6, 5
N_ENTRIES = N_SCENES * CHUNK


def read_by_mlp(model, one):
    return model.run_with_cache(one)[1]["decoder.0.hook_action_vector"][0].detach()


@pytest.fixture(scope="module")
def table(build):
    """A decoder MLP that is a lookup table: one neuron for each scene and chunk position.

    The neuron's key row is solved for, so that it is 1 at its own entry and off at all others.
    """
    model = build(d_mlp=N_ENTRIES, chunk=CHUNK)
    entries = torch.cat([read_by_mlp(model, one) for one in scenes(N_SCENES)])
    affine = torch.cat([entries, torch.ones(N_ENTRIES, 1).double()], 1)
    wanted = 2 * torch.eye(N_ENTRIES).double() - 1
    solved = torch.linalg.lstsq(affine, wanted).solution
    mlp = model.decoder[0].mlp
    with torch.no_grad():
        mlp.linear1.weight.copy_(solved[:-1].T)
        mlp.linear1.bias.copy_(solved[-1])
    coefficients = torch.relu(affine @ solved)
    torch.testing.assert_close(coefficients, torch.eye(N_ENTRIES).double(), atol=1e-6, rtol=0)
    return model


def test_an_edit_of_a_table_changes_the_entries_it_is_asked_for_and_no_other(table):
    statistics = key_statistics(table, scenes(N_SCENES), "decoder.0")
    assert statistics.n_active == N_ENTRIES
    request = Request(scene(2), PAN)
    edit = make_edit(table, [request], KeyMetric.of(statistics), jitter=NO_JITTER)
    others = [n for n in range(N_SCENES) if n != 2]
    before = {n: chunk_of(table, scene(n)) for n in range(N_SCENES)}
    with edit.apply(table):
        after = {n: chunk_of(table, scene(n)) for n in range(N_SCENES)}
    for n in others:
        torch.testing.assert_close(after[n], before[n], rtol=0, atol=1e-5)
    torch.testing.assert_close(after[2][3:], before[2][3:], rtol=0, atol=1e-5)
    step = 0.3 / table.normalizer._part("unscale", "action")[0]
    torch.testing.assert_close(
        after[2][:3, 0] - before[2][:3, 0], step.double().expand(3), rtol=0, atol=1e-8
    )
    columns = edit.delta.norm(dim=0)
    assert edit.delta.norm() > 0.01
    assert columns[[10, 11, 12]].square().sum() > (1 - 1e-9) * columns.square().sum()
    spill = edit.spill(torch.eye(N_ENTRIES))
    assert np.delete(spill.numpy(), [10, 11, 12]).max() < 1e-5


def test_the_rules_agree_where_keys_are_orthogonal(table):
    """In a table whose other entries the data use, no rule has anything to trade."""
    rest = key_statistics(table, scenes(N_SCENES), "decoder.0")
    request = Request(scene(2), Offset({"lift": 0.2}))
    exact = make_edit(table, [request], KeyMetric.of(rest), jitter=NO_JITTER)
    for ridge in (1e-6, 1.0):
        other = make_edit(table, [request], KeyMetric.of(rest, ridge), jitter=NO_JITTER)
        torch.testing.assert_close(other.delta, exact.delta, rtol=0, atol=1e-5)


def test_in_the_null_space_data_that_were_seen_stay_as_they_are(table):
    """Statistics over all entries but one scene's: the others lie outside of the null space."""
    known = key_statistics(table, scenes(N_SCENES), "decoder.0")
    own = torch.arange(10, 15)
    moment = known.moment.clone()
    moment[own] = 0
    moment[:, own] = 0
    unseen = replace(known, moment=moment)
    rule = NullSpace.of(unseen, threshold=0.5, alpha=1e-9)
    assert rule.n_directions == 5
    metric = KeyMetric.of(unseen)
    edit = make_edit(
        table, [Request(scene(2), PAN)], metric, options=EditOptions(rule), jitter=NO_JITTER
    )
    others = torch.eye(N_ENTRIES)[[n for n in range(N_ENTRIES) if n not in own]]
    assert edit.written_at(others).abs().max() < 1e-9
    assert edit.record.requests[0].left_over < 1e-6


def test_the_spill_of_a_linear_mlp_is_in_closed_form(build):
    """With every neuron on, keys are affine in what the MLP reads; an edit spills along them."""
    model = build()
    with torch.no_grad():
        model.decoder[0].mlp.linear1.bias.add_(100.0)
    some = scenes(24)
    statistics = key_statistics(model, some, "decoder.0")
    assert statistics.n_active == 24
    metric = KeyMetric.of(statistics, 1e-4)
    request = Request(scene(3), PAN, positions=(1,))
    edit = make_edit(model, [request], metric, jitter=NO_JITTER)
    first = model.decoder[0].mlp.linear1
    weight, bias = first.weight.detach(), first.bias.detach()
    affine = lambda one: (read_by_mlp(model, one) @ weight.T + bias).numpy()
    keys = np.concatenate([affine(one) for one in some])
    c = keys.T @ keys / len(keys)
    inverse = np.linalg.inv(c + 1e-4 * np.trace(c) / 24 * np.eye(24))
    k = affine(scene(3))[1]
    for number in (0, 3, 17):
        one = scene(number)
        share = affine(one) @ inverse @ k / (k @ inverse @ k)
        before = mlp_writes(model, one)
        with edit.apply(model):
            moved = mlp_writes(model, one) - before
        own = edit.written_at(edit.keys)[0]
        torch.testing.assert_close(moved, torch.tensor(share)[:, None] * own, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(edit.spill(torch.tensor(affine(one))), np.abs(share), rtol=1e-6)


def mlp_writes(model, one):
    return model.run_with_cache(one)[1]["decoder.0.hook_mlp_out"][0].detach()
