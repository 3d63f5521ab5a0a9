"""The rivals of an edit against torch on the whole policy, and against closed forms."""

import numpy as np
import pytest
import torch

from actlens.model.mlp_site import MLPSite
from actlens.rome import (
    NO_JITTER,
    EditError,
    MLPRuns,
    Offset,
    Request,
    edited_actions,
    key_statistics,
    prepare,
    solve_edit,
)
from actlens.rome.fine_tuning import FineTuning, fine_tune
from actlens.rome.overlay import overlay, same_phase_radius
from actlens.rome.rivals import (
    along_random_directions,
    at_random_keys,
    head_shift,
    within_neurons,
    without_statistics,
)
from tests.rome.conftest import PAN, asked, chunk_of, scene, scenes

EXECUTED = [0, 1, 2]


def prepared_for(model, *requests, block="decoder.0"):
    return prepare(model, requests, block, jitter=NO_JITTER)


@pytest.fixture(scope="module")
def prepared(policy):
    return prepared_for(policy, Request(scene(3), PAN))


@pytest.fixture(scope="module")
def edit(prepared, metric):
    return solve_edit(prepared, metric)


@pytest.fixture(scope="module")
def elsewhere(policy):
    """Runs of some scenes, the request's among them."""
    return MLPRuns.of(policy, MLPSite("decoder.0"), scenes(6))


@pytest.fixture
def loaded(policy):
    """Whole forwards with a change of one MLP's output weights, which are put back."""

    def actions(change, some):
        weight = change.site.layer(policy).weight
        before = weight.detach().clone()
        try:
            with torch.no_grad():
                weight.add_(change.delta)
            return torch.stack([chunk_of(policy, one) for one in some])
        finally:
            with torch.no_grad():
                weight.copy_(before)

    return actions


# ── fine-tuning ──────────────────────────────────────────────────────────────────────────────


def tuned_by_torch(model, block, requests, *, rate, steps, cap=None):
    """Adam on the policy itself: a backward through all of it, every other weight frozen."""
    weight = MLPSite(block).layer(model).weight
    before, entry = weight.detach().clone(), float(weight.detach().square().mean().sqrt())
    targets = [asked(model, one.scene, one.target)[EXECUTED] for one in requests]
    adam = torch.optim.Adam([weight], lr=rate * entry)
    for _ in range(steps):
        adam.zero_grad()
        missing = torch.cat(
            [
                model.predict(model.prepare(one.scene))[0][EXECUTED] - target
                for one, target in zip(requests, targets, strict=True)
            ]
        )
        missing.square().sum(1).mean().backward()
        adam.step()
        if cap is not None:
            with torch.no_grad():
                weight.copy_(before + (weight - before).clamp(-cap * entry, cap * entry))
    found = weight.detach() - before
    with torch.no_grad():
        weight.copy_(before)
    model.zero_grad()
    return found


@pytest.mark.parametrize("block", ["decoder.0", "encoder.1"])
@pytest.mark.parametrize("cap", [None, 0.08])
def test_fine_tuning_is_adam_on_the_whole_policy(policy, unchanged, block, cap):
    requests = (Request(scene(3), PAN), Request(scene(8), Offset({"lift": -0.2})))
    options = FineTuning(learning_rate=0.03, max_steps=6, tolerance=1e-9, cap=cap)
    ours = fine_tune(prepared_for(policy, *requests, block=block), options)
    theirs = tuned_by_torch(policy, block, requests, rate=0.03, steps=6, cap=cap)
    assert ours.n_steps == 6
    assert not ours.reached
    torch.testing.assert_close(ours.change.delta, theirs, rtol=1e-6, atol=1e-10)
    assert ours.change.delta.abs().max() > 0


def test_its_weights_loaded_into_the_policy_do_what_the_change_says(
    policy, prepared, elsewhere, loaded, unchanged
):
    tuned = fine_tune(prepared, FineTuning(max_steps=400, tolerance=1e-3))
    torch.testing.assert_close(
        tuned(elsewhere), loaded(tuned.change, scenes(6)), rtol=1e-9, atol=1e-10
    )


def test_fine_tuning_stops_where_the_target_is_reached(policy, prepared):
    tuned = fine_tune(prepared, FineTuning(max_steps=2000, tolerance=1e-3))
    left = tuned(prepared.runs)[0, EXECUTED] - asked(policy, scene(3))[EXECUTED]
    assert tuned.reached
    assert tuned.n_steps < 2000
    assert float(left.abs().max()) == pytest.approx(tuned.left_over, rel=1e-9)
    assert tuned.left_over <= 1e-3
    one_less = fine_tune(prepared, FineTuning(max_steps=tuned.n_steps - 1, tolerance=1e-3))
    assert not one_less.reached
    assert one_less.left_over > 1e-3


def test_what_is_done_already_needs_no_step(policy):
    tuned = fine_tune(prepared_for(policy, Request(scene(3), Offset({"pan": 0.0}))))
    assert tuned.reached
    assert tuned.n_steps == 0
    assert tuned.relative_norm == 0


def test_no_weight_moves_further_than_the_cap(prepared):
    weight = prepared.weight
    entry = float(weight.square().mean().sqrt())
    tuned = fine_tune(prepared, FineTuning(max_steps=60, tolerance=1e-9, cap=0.05))
    assert float(tuned.change.delta.abs().max()) == pytest.approx(0.05 * entry, rel=1e-12)
    assert tuned.relative_norm == pytest.approx(float(tuned.change.delta.norm() / weight.norm()))


@pytest.mark.parametrize(
    "wrong", [{"learning_rate": 0.0}, {"max_steps": -1}, {"tolerance": 0.0}, {"cap": 0.0}]
)
def test_fine_tuning_refuses_numbers_that_make_no_sense(wrong):
    with pytest.raises(EditError, match="must be positive"):
        FineTuning(**wrong)


# ── the head ─────────────────────────────────────────────────────────────────────────────────


def test_a_head_shift_grants_an_offset_exactly_and_moves_all_else_as_much(
    policy, prepared, elsewhere, unchanged
):
    shift = head_shift(prepared)
    unit = policy.normalizer._part("unscale", "action")
    expected = torch.tensor([0.3, 0.0, 0.0]).double() / unit
    torch.testing.assert_close(shift.shift, expected, rtol=1e-7, atol=1e-14)  # units: float32
    bias = policy.action_head.bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias.add_(shift.shift)
    moved = torch.stack([chunk_of(policy, one) for one in scenes(6)])
    with torch.no_grad():
        bias.copy_(before)
    torch.testing.assert_close(shift(elsewhere), moved, rtol=1e-12, atol=1e-12)
    assert np.isnan(shift.relative_norm)


def test_of_two_requests_it_is_the_mean(policy):
    both = prepared_for(
        policy, Request(scene(3), PAN), Request(scene(8), Offset({"pan": -0.1, "lift": 0.4}))
    )
    unit = policy.normalizer._part("unscale", "action")
    expected = torch.tensor([0.1, 0.2, 0.0]).double() / unit
    torch.testing.assert_close(head_shift(both).shift, expected, rtol=1e-7, atol=1e-14)


# ── edits of equal norm ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", [at_random_keys, along_random_directions])
def test_the_null_has_the_edits_norm_and_its_directions(edit, metric, make):
    other = make(edit, metric, seed=1)
    assert other.norm == pytest.approx(edit.norm, rel=1e-12)
    assert other.relative_norm == pytest.approx(edit.relative_norm, rel=1e-12)
    outside = torch.linalg.lstsq(edit.left, other.delta).solution
    torch.testing.assert_close(edit.left @ outside, other.delta, rtol=1e-8, atol=1e-10)
    cosine = float((other.delta * edit.delta).sum()) / edit.norm**2
    assert abs(cosine) < 0.9
    assert not torch.equal(make(edit, metric, seed=2).delta, other.delta)
    assert torch.equal(make(edit, metric, seed=1).delta, other.delta)


def test_the_null_loaded_into_the_policy_does_what_it_says(
    edit, metric, elsewhere, loaded, unchanged
):
    other = at_random_keys(edit, metric)
    torch.testing.assert_close(other(elsewhere), loaded(other, scenes(6)), rtol=1e-9, atol=1e-10)


def test_a_random_key_is_read_as_an_edits_own(policy, metric):
    request = Request(scene(3), PAN, positions=(1,))
    edit = solve_edit(prepared_for(policy, request), metric)
    outside = set(range(1, 8))
    other = at_random_keys(edit, metric, avoid=outside)
    moment = metric.statistics.moment.numpy()
    ridged = moment + metric.ridge * moment.trace() / len(moment) * np.eye(len(moment))
    cosines = []
    for key, (episode, _, _) in zip(
        metric.statistics.sample, metric.statistics.sampled_from.tolist(), strict=True
    ):
        if episode not in outside:
            u = np.linalg.solve(ridged, key.numpy())
            row = other.delta.numpy().T @ edit.left[:, 0].numpy()
            cosines.append(row @ u / np.linalg.norm(row) / np.linalg.norm(u))
    assert len(cosines) == 3  # the one episode that is left
    assert max(cosines) == pytest.approx(1, rel=1e-9)


def test_random_directions_are_isotropic_in_the_metric(policy, metric):
    request = Request(scene(3), PAN, positions=(1,))
    edit = solve_edit(prepared_for(policy, request), metric)
    total, n = torch.zeros_like(metric.factor), 1500
    for seed in range(n):
        row = edit.left[:, 0] @ along_random_directions(edit, metric, seed=seed).delta
        white = metric.factor.T @ row
        total += torch.outer(white, white) / white.square().sum() / n
    deviation = (24 * total - torch.eye(24).double()).abs().max()
    assert deviation < 5 * (2 / n) ** 0.5


def test_an_edit_of_nothing_has_a_null_of_nothing(policy, metric, elsewhere):
    prepared = prepared_for(policy, Request(scene(3), Offset({"pan": 0.0})))
    other = at_random_keys(solve_edit(prepared, metric), metric)
    assert other.norm == 0
    torch.testing.assert_close(other(elsewhere), elsewhere.actions, rtol=0, atol=1e-12)


def test_more_keys_than_the_sample_has_are_refused(edit, metric):
    with pytest.raises(EditError, match="reads by 3 keys; the statistics' sample has 0"):
        at_random_keys(edit, metric, avoid=range(8))


# ── without statistics, and in some of the neurons ───────────────────────────────────────────


def test_without_statistics_an_edit_reads_by_the_key_itself(policy, metric):
    request = Request(scene(3), PAN, positions=(1,))
    prepared = prepared_for(policy, request)
    edit = solve_edit(prepared, without_statistics(metric))
    (key,) = edit.keys
    expected = torch.outer(edit.written_at(key), key) / key.square().sum()
    torch.testing.assert_close(edit.delta, expected, rtol=1e-9, atol=1e-12)
    missing = edited_actions(prepared.runs, edit)[0, 1] - asked(policy, scene(3))[1]
    assert missing.abs().max() < 1e-10


def test_within_some_neurons_the_same_is_written_by_the_least_change(policy, metric, edit):
    neurons = torch.tensor([0, 2, 3, 7, 8, 11, 12, 13, 15, 17, 20, 22])
    change = within_neurons(edit, metric, neurons)
    others = [n for n in range(24) if n not in neurons]
    assert not change.delta[:, others].any()
    keys = edit.keys.numpy()
    written = change.delta.numpy() @ keys.T
    np.testing.assert_allclose(written, edit.written_at(edit.keys).numpy().T, rtol=1e-8, atol=1e-10)
    ridged = (metric.factor @ metric.factor.T).numpy()[np.ix_(neurons, neurons)]
    k = keys[:, neurons]
    u = np.linalg.solve(ridged, k.T)
    expected = edit.written_at(edit.keys).numpy().T @ np.linalg.solve(k @ u, u.T)
    np.testing.assert_allclose(change.delta[:, neurons].numpy(), expected, rtol=1e-7, atol=1e-9)
    drift = lambda delta: float((delta @ metric.factor).norm())
    assert drift(change.delta) > drift(edit.delta)  # which is the least with all neurons


# ── the overlay ──────────────────────────────────────────────────────────────────────────────


def test_an_overlay_gives_targets_within_its_radius_and_leaves_all_else_bit_for_bit(
    policy, prepared, elsewhere
):
    looked_up = overlay(prepared, radius=1e-9)
    found = looked_up(elsewhere)
    torch.testing.assert_close(found[3, EXECUTED], asked(policy, scene(3))[EXECUTED])
    assert torch.equal(found[3, EXECUTED], prepared.resolved[0].target)
    assert torch.equal(found[3, 3:], elsewhere.actions[3, 3:])
    others = [0, 1, 2, 4, 5]
    assert torch.equal(found[others], elsewhere.actions[others])
    assert np.isnan(looked_up.relative_norm)


def test_the_radius_is_a_distance_between_keys_at_the_requested_positions(prepared, elsewhere):
    difference = (elsewhere.keys - elsewhere.keys[3])[:, EXECUTED].numpy()
    distance = np.sqrt((difference**2).sum(-1).mean(-1))
    nearest = np.sort(distance)[1]
    inside = overlay(prepared, radius=float(nearest) * (1 + 1e-9))(elsewhere)
    moved = (inside != elsewhere.actions).flatten(1).any(1).numpy()
    np.testing.assert_array_equal(moved, distance <= nearest)
    assert moved.sum() == 2


def test_of_two_stored_requests_the_nearest_is_granted(policy, elsewhere):
    both = prepared_for(policy, Request(scene(3), PAN), Request(scene(4), Offset({"lift": 0.2})))
    found = overlay(both, radius=1e9)(elsewhere)
    assert torch.equal(found[3, EXECUTED], both.resolved[0].target)
    assert torch.equal(found[4, EXECUTED], both.resolved[1].target)


def test_in_an_encoder_block_all_tokens_are_compared(policy):
    prepared = prepared_for(policy, Request(scene(3), PAN), block="encoder.1")
    runs = MLPRuns.of(policy, prepared.runs.site, scenes(6))
    distance = overlay(prepared, radius=0.0).distance(runs.keys)
    expected = (runs.keys - runs.keys[3]).square().sum(-1).mean(-1).sqrt()
    torch.testing.assert_close(distance[:, 0], expected, rtol=1e-9, atol=1e-12)


def test_the_radius_of_the_same_phase_is_a_quantile_over_pairs(policy):
    statistics = key_statistics(policy, scenes(60), "decoder.0")
    found = []
    rows = list(zip(statistics.sampled_from.tolist(), statistics.sample.numpy(), strict=True))
    for (e, f, k), one in rows:
        for (other_e, other_f, other_k), other in rows:
            if e < other_e and f == other_f and abs(k - other_k) <= 1:
                found.append(np.linalg.norm(one - other))
    assert len(found) > 50
    ours = same_phase_radius(statistics, quantile=0.3, slack=1)
    assert ours == pytest.approx(np.quantile(found, 0.3), rel=1e-9)


def test_an_overlay_refuses_what_has_no_radius(policy, prepared):
    few = key_statistics(policy, scenes(6), "decoder.0")
    with pytest.raises(EditError, match=r"has \d pairs .* fewer than 20"):
        same_phase_radius(few)
    with pytest.raises(EditError, match="radius must be 0 or more, got nan"):
        overlay(prepared, radius=float("nan"))


def test_changes_refuse_runs_of_another_mlp(policy, prepared, edit, metric):
    runs = MLPRuns.of(policy, MLPSite("encoder.0"), scenes(2))
    changes = [
        at_random_keys(edit, metric),
        overlay(prepared, radius=1.0),
        fine_tune(prepared, FineTuning(max_steps=1)),
    ]
    for change in changes:
        with pytest.raises(EditError, match=r"change is of decoder\.0; .* kept at encoder\.0"):
            change(runs)
