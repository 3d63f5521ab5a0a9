"""Edits held against whole forwards of the edited policy, on every architecture and block."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from actlens.rome import (
    NO_JITTER,
    Adam,
    EditError,
    EditOptions,
    Jitter,
    JointLimits,
    KeyMetric,
    MLPRuns,
    MLPSite,
    NullSpace,
    Offset,
    Request,
    SoftLeastSquares,
    apply_edits,
    edited_actions,
    key_statistics,
    make_edit,
    prepare,
    solve_edit,
    sweep_ridges,
)
from tests.interventions.conftest import ARCHITECTURES
from tests.rome.conftest import PAN, asked, chunk_of, scene, scenes

SOME = ("act", "pre_norm_three_decoder_layers", "two_decoder_layers", "gelu_and_environment_state")


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_state(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ── the edited policy does what was asked for ────────────────────────────────────────────────


@pytest.mark.parametrize("architecture", SOME)
@pytest.mark.parametrize("where", ["encoder.0", "encoder.1", "decoder.0", "last"])
def test_the_edited_policy_gives_the_target_in_the_scene(build, architecture, where):
    model = build(**ARCHITECTURES[architecture])
    block = f"decoder.{model.config.n_decoder_layers - 1}" if where == "last" else where
    metric = KeyMetric.of(key_statistics(model, scenes(24), block), 1e-2)
    one = scene(5)
    wanted, before = asked(model, one), state(model)
    edit = make_edit(model, [Request(one, PAN)], metric, jitter=NO_JITTER)
    assert same_state(model, before)
    with edit.apply(model):
        found = chunk_of(model, one)
        torch.testing.assert_close(found[:3], wanted[:3], rtol=0, atol=1e-8)
        assert not torch.allclose(found[3:], chunk_of(model, scene(6))[3:])
        changed = [n for n, v in model.state_dict().items() if not torch.equal(v, before[n])]
        assert changed == [f"{block}.mlp.linear2.weight"]
    assert same_state(model, before)


@pytest.mark.parametrize("block", ["encoder.1", "decoder.0"])
def test_an_averaged_key_reaches_the_target_just_as_well(policy, block, unchanged):
    metric = KeyMetric.of(key_statistics(policy, scenes(24), block), 1e-2)
    one = scene(5)
    request = Request(one, PAN, neighbours=(scene(4), scene(6)))
    edit = make_edit(policy, [request], metric, jitter=Jitter(n_views=3))
    with edit.apply(policy):
        torch.testing.assert_close(
            chunk_of(policy, one)[:3], asked_before(policy, edit, one)[:3], rtol=0, atol=1e-8
        )


def asked_before(model, edit, one):
    """The target from the edit's own record, checked here against a forward without it."""
    (record,) = edit.record.requests
    target = torch.full((5, 3), torch.nan, dtype=torch.float64)
    shift, scale = (model.normalizer._part(part, "action") for part in ("shift", "unscale"))
    target[list(record.positions)] = (
        torch.tensor(record.target, dtype=torch.float64) - shift
    ) / scale
    return target


def test_in_single_precision_the_target_is_reached_to_rounding(build):
    model = build().float()
    metric = KeyMetric.of(key_statistics(model, scenes(24), "decoder.0"), 1e-2)
    one = scene(5)
    wanted = asked(model, one)
    with make_edit(model, [Request(one, PAN)], metric).apply(model):
        torch.testing.assert_close(chunk_of(model, one)[:3], wanted[:3], rtol=0, atol=1e-4)


def test_by_default_what_is_executed_is_edited(build, metric, policy):
    (record,) = make_edit(policy, [Request(scene(3), PAN)], metric).record.requests
    assert record.positions == (0, 1, 2)
    ensembling = build(n_action_steps=1, temporal_ensemble_coeff=0.01)
    (record,) = make_edit(ensembling, [Request(scene(3), PAN)], metric).record.requests
    assert record.positions == (0, 1, 2, 3, 4)


def test_other_positions_and_whole_targets_can_be_asked_for(policy, metric, unchanged):
    one = scene(3)
    target = policy(one)[0].detach() + torch.linspace(-0.2, 0.2, 15).view(5, 3)
    edit = make_edit(policy, [Request(one, target, positions=(4, 1))], metric)
    with edit.apply(policy):
        found = policy(one)[0].detach()
    torch.testing.assert_close(found[[1, 4]], target[[1, 4]], rtol=0, atol=1e-8)
    assert edit.rank == 2


@pytest.mark.parametrize("block", ["encoder.1", "decoder.0"])
def test_several_scenes_are_edited_at_once(policy, block, unchanged):
    metric = KeyMetric.of(key_statistics(policy, scenes(24), block), 1e-2)
    some = [scene(number) for number in (0, 4, 8, 12)]
    offsets = [Offset({"pan": 0.2 * i, "lift": -0.1}) for i in (1, -1, 2, -2)]
    wanted = [asked(policy, s, o) for s, o in zip(some, offsets, strict=True)]
    requests = [Request(s, o) for s, o in zip(some, offsets, strict=True)]
    edit = make_edit(policy, requests, metric, jitter=Jitter(n_views=2))
    with edit.apply(policy):
        for one, target in zip(some, wanted, strict=True):
            torch.testing.assert_close(chunk_of(policy, one)[:3], target[:3], rtol=0, atol=1e-8)
    assert edit.rank <= len(edit.left.T) <= 32  # also of 84 tokens' keys
    assert len(edit.keys) == (12 if block == "decoder.0" else 4 * policy.config.n_tokens)
    assert all(r.left_over < 1e-8 for r in edit.record.requests)


def test_asking_for_what_is_done_anyway_changes_nothing(policy, metric):
    one = scene(3)
    edit = make_edit(policy, [Request(one, Offset({"pan": 0.0}))], metric)
    assert not edit.delta.any()
    assert (edit.norm, edit.rank, edit.record.n_steps) == (0, 0, 0)
    before = state(policy)
    with edit.apply(policy):
        assert same_state(policy, before)
    same = make_edit(policy, [Request(one, policy(one)[0].detach())], metric)
    assert same.relative_norm < 1e-12
    adam = EditOptions(values=Adam(n_steps=5))
    assert not make_edit(policy, [Request(one, Offset({"pan": 0.0}))], metric, options=adam).norm


def test_effects_without_a_forward_are_those_of_the_edited_policy(policy, metric, unchanged):
    some = scenes(6)
    runs = MLPRuns.of(policy, MLPSite("decoder.0"), some)
    edits = [make_edit(policy, [Request(scene(n), PAN)], metric) for n in (3, 9)]
    with apply_edits(policy, *edits):
        expected = torch.stack([chunk_of(policy, one) for one in some])
    torch.testing.assert_close(edited_actions(runs, *edits), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        edited_actions(runs), torch.stack([chunk_of(policy, one) for one in some])
    )
    with pytest.raises(EditError, match=r"kept at encoder\.1"):
        edited_actions(MLPRuns.of(policy, MLPSite("encoder.1"), some), edits[0])


# ── the key ──────────────────────────────────────────────────────────────────────────────────


def test_the_key_is_the_mean_over_views_and_neighbours(policy, metric):
    one, jitter, near = scene(3), Jitter(n_views=3, seed=4), (scene(4), scene(5))
    request = Request(one, PAN, neighbours=near)
    edit = make_edit(policy, [request], metric, jitter=jitter)
    alike = [one, *jitter.views(policy, one), *near]
    keys = [
        policy.run_with_cache(view)[1]["decoder.0.mlp.hook_post"][0, :3].detach() for view in alike
    ]
    torch.testing.assert_close(edit.keys, torch.stack(keys).mean(0))


def test_one_and_the_same_key_is_in_numerator_and_denominator(policy, metric, statistics):
    """One position: W' = W + (v* - W k*) (C^-1 k*)^T / (k*^T C^-1 k*), all from the averaged k*."""
    request = Request(scene(3), PAN, positions=(1,), neighbours=(scene(4),))
    edit = make_edit(policy, [request], metric)
    c = statistics.moment.numpy()
    ridged = c + metric.ridge * np.trace(c) / len(c) * np.eye(len(c))
    k = edit.keys[0].numpy()
    c_inverse_k = np.linalg.solve(ridged, k)
    written = edit.delta.numpy() @ k
    np.testing.assert_allclose(
        edit.delta.numpy(), np.outer(written, c_inverse_k) / (k @ c_inverse_k), atol=1e-10
    )
    own = policy.run_with_cache(scene(3))[1]["decoder.0.mlp.hook_post"][0, 1].detach().numpy()
    assert np.abs(own - k).max() > 1e-3


def test_views_are_drawn_by_the_seed_and_stay_near_the_scene(build):
    model, one = build(env_state_dim=4), scene(3)
    draw = lambda **options: list(Jitter(n_views=4, **options).views(model, one))
    first, again, other = draw(), draw(), draw(seed=1)
    for a, b, c in zip(first, again, other, strict=True):
        for key in a.observation:
            assert torch.equal(a.observation[key], b.observation[key])
            assert not torch.equal(a.observation[key], c.observation[key])
            assert a.observation[key].dtype == one.observation[key].dtype
    still = draw(light=0.0, shift=0, state=0.0)
    for key, value in one.observation.items():
        torch.testing.assert_close(still[0].observation[key], value)
    assert not list(NO_JITTER.views(model, one))
    with pytest.raises(EditError, match="counts and shares"):
        Jitter(light=1.5)


def test_noise_on_joints_is_a_share_of_their_spread(policy):
    one = scene(3)
    views = list(Jitter(n_views=400, light=0.0, shift=0, state=0.2).views(policy, one))
    noise = torch.stack([v.observation["observation.state"] for v in views])
    spread = policy.normalizer._part("unscale", "observation.state")
    torch.testing.assert_close(
        noise.std(0) / spread, torch.full((6,), 0.2).double(), rtol=0.15, atol=0
    )


# ── what is asked for ────────────────────────────────────────────────────────────────────────


def test_requests_that_make_no_sense_are_errors(policy, metric, statistics, build):
    one = scene(3)
    refused = {
        r"no joint 'pn'.* Did you mean 'pan'": Request(one, Offset({"pn": 1.0})),
        "asks for nothing": Request(one, Offset({})),
        r"out of 0\.\.4": Request(one, PAN, positions=(0, 5)),
        r"\(1, 1\) must be different": Request(one, PAN, positions=(1, 1)),
        r"shape \(2, 3\); give a whole chunk, \(5, 3\)": Request(one, torch.zeros(2, 3)),
        "NaN or infinite": Request(one, Offset({"pan": float("nan")})),
    }
    for message, request in refused.items():
        with pytest.raises(EditError, match=message):
            make_edit(policy, [request], metric)
    with pytest.raises(EditError, match="There is no request"):
        make_edit(policy, [], metric)
    with pytest.raises(EditError, match="call `eval"):
        make_edit(build().train(), [Request(one, PAN)], metric)
    prepared = prepare(policy, [Request(one, PAN)], "encoder.0")
    with pytest.raises(EditError, match=r"are of decoder\.0; .* for encoder\.0"):
        solve_edit(prepared, metric)
    encoder = KeyMetric.of(key_statistics(policy, scenes(24), "encoder.0"))
    earlier = [make_edit(policy, [Request(one, PAN)], metric)]
    with pytest.raises(EditError, match=r"earlier edit is of decoder\.0"):
        make_edit(policy, [Request(one, PAN)], encoder, earlier=earlier)
    other = build()
    other.embed.latent_proj.bias.data += 1
    with pytest.raises(EditError, match="belong to other weights"):
        make_edit(other, [Request(one, PAN)], metric)


def test_a_target_that_no_weights_can_give_is_an_error(policy, metric):
    """LayerNorm bounds what a stream can say."""
    far = [Request(scene(3), Offset({"pan": 1e3}))]
    anywhere = JointLimits((-1e4,) * 3, (1e4,) * 3, "the arm reaches from")
    with pytest.raises(EditError, match="cannot be reached"):
        make_edit(policy, far, metric, limits=anywhere)
    with pytest.raises(EditError, match=r"target of pan is 1\d\d\d"):
        make_edit(policy, far, metric)
    with pytest.raises(EditError, match="limits are of 2 and 3 joints; the policy has 3"):
        make_edit(policy, far, metric, limits=replace(anywhere, low=(0.0, 0.0)))


# ── the value of an edit ─────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def edit(policy, metric):
    return make_edit(policy, [Request(scene(3), PAN)], metric)


def test_an_edit_says_how_large_it_is(policy, edit):
    weight = policy.decoder[0].mlp.linear2.weight.detach()
    torch.testing.assert_close(edit.delta, edit.left @ edit.right)
    assert edit.norm == pytest.approx(float(torch.linalg.norm(edit.delta)))
    assert edit.relative_norm == pytest.approx(edit.norm / float(torch.linalg.norm(weight)))
    assert edit.rank == np.linalg.matrix_rank(edit.delta.numpy(), tol=1e-9) == 3
    torch.testing.assert_close(edit.on(weight), weight + edit.delta)


def test_spill_is_the_share_of_the_edit_that_other_keys_get(policy, metric, edit, statistics):
    one = make_edit(policy, [Request(scene(3), PAN, positions=(0,))], metric, jitter=NO_JITTER)
    k, others = one.keys[0], statistics.sample
    read = metric.solve(k[None])[0]
    torch.testing.assert_close(one.spill(others), (others @ read).abs() / (k @ read))
    assert one.spill(one.keys) == pytest.approx(1.0)
    assert edit.spill(edit.keys).square().mean() == pytest.approx(1.0)


def test_weights_come_back_bit_for_bit_also_after_an_exception(build, edit):
    model = build()
    before = state(model)
    applied = edit.apply(model)
    assert not same_state(model, before)
    applied.undo()
    assert same_state(model, before)
    with pytest.raises(KeyboardInterrupt), edit.apply(model):
        raise KeyboardInterrupt
    assert same_state(model, before)
    single = model.float()  # the same policy, rounded
    before = state(single)
    with edit.apply(single):
        assert not same_state(single, before)
    assert same_state(single, before)


def test_an_edit_is_not_applied_twice_nor_undone_twice(build, edit):
    model = build()
    applied = edit.apply(model)
    once = state(model)
    with pytest.raises(EditError, match="applied already"):
        edit.apply(model)
    assert same_state(model, once)
    applied.undo()
    before = state(model)
    with pytest.raises(EditError, match="applied already"):
        apply_edits(model, edit, edit)
    assert same_state(model, before)
    with pytest.raises(EditError, match="undone already"):
        applied.undo()


@pytest.mark.parametrize("name", ["embed.latent_proj.bias", "decoder.0.mlp.linear2.weight"])
def test_an_edit_is_refused_by_other_weights(build, edit, name):
    model = build()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] += 1e-3
    before = state(model)
    with pytest.raises(EditError, match="made for other weights"):
        edit.apply(model)
    assert same_state(model, before)


def test_edits_made_side_by_side_add_up(build, metric, edit):
    model = build()
    before = state(model)
    other = make_edit(model, [Request(scene(9), PAN)], metric)
    with apply_edits(model, edit, other):
        torch.testing.assert_close(
            model.decoder[0].mlp.linear2.weight.detach(),
            before["decoder.0.mlp.linear2.weight"] + edit.delta + other.delta,
        )
    assert same_state(model, before)


def test_edits_made_in_turn_follow_one_another(build, metric, edit):
    model = build()
    before = state(model)
    encoder = KeyMetric.of(key_statistics(model, scenes(24), "encoder.1"), 1e-2)
    first_target, one = asked(model, scene(3)), scene(9)
    with edit.apply(model):
        second = make_edit(model, [Request(one, PAN)], metric, earlier=[edit])
        second_target = asked(model, one)
        with second.apply(model):
            both = state(model)
    with pytest.raises(EditError, match="made for other weights"):
        second.apply(model)
    with apply_edits(model, edit, second):
        assert same_state(model, both)
        torch.testing.assert_close(chunk_of(model, one)[:3], second_target[:3], rtol=0, atol=1e-8)
        at_first = second.written_at(edit.keys)
        assert at_first.abs().max() < 1e-9
        third = make_edit(model, [Request(scene(12), PAN)], encoder)
        third_target = asked(model, scene(12))
    with apply_edits(model, edit, second, third):
        found = chunk_of(model, scene(12))
        torch.testing.assert_close(found[:3], third_target[:3], rtol=0, atol=1e-8)
    assert same_state(model, before)
    assert torch.isfinite(first_target).all()


def test_an_earlier_edit_keeps_its_target_under_a_later_one(build, metric):
    model = build()
    one = scene(3)
    target = asked(model, one)
    first = make_edit(model, [Request(one, PAN)], metric, jitter=NO_JITTER)
    with first.apply(model):
        requests = [Request(scene(4), Offset({"lift": 0.4}))]
        kept = make_edit(model, requests, metric, earlier=[first])
        free = make_edit(model, requests, metric)
    for later, holds in ((kept, True), (free, False)):
        with apply_edits(model, first, later):
            distance = float((chunk_of(model, one)[:3] - target[:3]).abs().max())
        assert (distance < 1e-8) == holds


def test_an_edit_is_undone_before_the_one_it_lies_under(build, metric, edit):
    model = build()
    before = state(model)
    first = edit.apply(model)
    second = make_edit(model, [Request(scene(9), PAN)], metric).apply(model)
    both = state(model)
    with pytest.raises(EditError, match="was changed after this edit"):
        first.undo()
    assert same_state(model, both)
    second.undo()
    first.undo()
    assert same_state(model, before)


def test_the_same_edit_gives_the_same_bits_on_every_machine(edit):
    """One rounding after another, as IEEE 754 has them; a matrix product has its own order."""
    left, right = edit.left.numpy(), edit.right.numpy()
    total = np.zeros((len(left), right.shape[1]))
    for i in range(len(right)):
        total = total + left[:, i : i + 1] * right[i : i + 1]
    np.testing.assert_array_equal(edit.delta.numpy(), total)


# ── contradictions ───────────────────────────────────────────────────────────────────────────


def test_opposite_requests_in_resembling_scenes_are_reported(policy, metric):
    one = scene(3)
    twin = replace(one, observation=next(Jitter(n_views=1).views(policy, one)).observation)
    against = Offset({"pan": -0.3})
    edit = make_edit(policy, [Request(one, PAN), Request(twin, against)], metric, jitter=NO_JITTER)
    (conflict,) = edit.record.conflicts
    assert (conflict.first, conflict.second) == (0, 1)
    # The referee: what the three edits really move, over the data.
    drift = lambda made: float((made.delta @ ridged_moment(metric) * made.delta).sum())
    alone = [
        make_edit(policy, [request], metric, jitter=NO_JITTER)
        for request in (Request(one, PAN), Request(twin, against))
    ]
    paid = (drift(edit) / sum(map(drift, alone))) ** 0.5
    assert edit.record.price == conflict.price
    assert conflict.price == pytest.approx(paid, rel=0.1)
    assert paid > 2
    agreeing = make_edit(policy, [Request(one, PAN), Request(twin, PAN)], metric, jitter=NO_JITTER)
    assert not agreeing.record.conflicts
    assert 0.5**0.5 - 1e-9 < agreeing.record.price < 1
    assert alone[0].record.price == 1
    assert edit.record.condition == pytest.approx(agreeing.record.condition)
    assert edit.record.condition > 10 * alone[0].record.condition


def ridged_moment(metric):
    return metric.factor @ metric.factor.T


def test_opposite_requests_in_one_and_the_same_scene_are_refused(policy, metric):
    one = scene(3)
    requests = [Request(one, PAN), Request(one, Offset({"pan": -0.3}))]
    with pytest.raises(EditError, match="requests 0 and 1 together is impossible"):
        make_edit(policy, requests, metric)
    soft = make_edit(policy, requests, metric, options=EditOptions(SoftLeastSquares()))
    assert soft.record.conflicts[0].price == float("inf")
    assert all(r.left_over > 0.2 for r in soft.record.requests)  # averaged, and said so


def test_the_same_request_twice_is_granted(policy, metric):
    edit = make_edit(policy, [Request(scene(3), PAN)] * 2, metric)
    assert all(r.left_over < 1e-8 for r in edit.record.requests)
    assert not edit.record.conflicts


def test_soft_rules_say_how_far_they_came(policy, metric, statistics):
    requests = [Request(scene(n), PAN) for n in (0, 6, 12)]
    for rule in (SoftLeastSquares(0.05), NullSpace.of(statistics, threshold=1e-2)):
        edit = make_edit(policy, requests, metric, options=EditOptions(rule))
        with edit.apply(policy):
            found = [policy(request.scene)[0].detach() for request in requests]
        for actions, record in zip(found, edit.record.requests, strict=True):
            off = (actions[:3] - torch.tensor(record.target, dtype=torch.float64)).abs().max()
            assert record.left_over == pytest.approx(float(off), rel=1e-4)
            assert 0 < record.left_over < 0.3


# ── the sweep over ridges ────────────────────────────────────────────────────────────────────


def test_the_sweep_measures_what_edits_with_each_ridge_do(policy, statistics):
    requests = [Request(scene(3), PAN), Request(scene(9), PAN)]
    near, far = [[scene(4), scene(5)], []], [[scene(20)], [scene(21), scene(22)]]
    swept = sweep_ridges(
        policy, requests, statistics, near=near, far=far, ridges=(1e-3, 1.0), jitter=NO_JITTER
    )
    np.testing.assert_allclose(swept.reached, 1.0, atol=1e-9)
    assert np.isnan(swept.near[:, 1]).all()
    assert (swept.relative_norm[0] > swept.relative_norm[1]).all()
    edit = make_edit(policy, requests[:1], KeyMetric.of(statistics, 1.0), jitter=NO_JITTER)
    step = asked(policy, scene(3)) - chunk_of(policy, scene(3))
    moved = []
    for one in (scene(4), scene(5), scene(20)):
        before = chunk_of(policy, one)
        with edit.apply(policy):
            moved.append((chunk_of(policy, one) - before)[:3])
    shares = [float((m * step[:3]).sum() / step[:3].square().sum()) for m in moved[:2]]
    assert swept.near[1, 0] == pytest.approx(np.mean(shares))
    assert swept.far[1, 0] == pytest.approx(float(moved[2].norm() / step[:3].norm()))
    assert swept.relative_norm[1, 0] == pytest.approx(edit.relative_norm)
