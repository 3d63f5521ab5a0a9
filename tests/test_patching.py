"""The sweep against a planted circuit, the naive loop, and identities that must hold."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from relay import DENOISE_MAP, relay_policy

from actlens.checkpoints import Checkpoint
from actlens.config import ACTION_KEY, ACTConfig, Camera
from actlens.errors import SceneError
from actlens.interventions import run_scene
from actlens.kinematics import SO101_SIMULATED
from actlens.metrics import Positions, project
from actlens.model.act import HookedACT
from actlens.normalization import Affine, NormalizationMode, Normalizer
from actlens.patching import (
    ALL_TOKENS,
    CHANGED,
    Direction,
    Part,
    SweepOptions,
    Unit,
    differing_tokens,
    parts_of,
    patch_pairs,
    sweep_pair,
    token_groups,
)
from actlens.patching.clusters import episode_clusters
from actlens.scene import Scene, ScenePair
from actlens.statistics import pooled_ratio

ANY_EFFECT = SweepOptions(min_effect=0.0)


def perturb(model, seed):
    """Every parameter away from 0 and 1: zeros hide bugs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def camera_policy():
    config = ACTConfig(
        cameras=(Camera("observation.images.top", 64, 96),),
        action_dim=6, state_dim=6, chunk=4, n_action_steps=3, d_model=32, n_heads=4, d_mlp=48,
        n_encoder_layers=2, n_vae_encoder_layers=1, joints=SO101_SIMULATED.joints,
    )  # fmt: skip
    spread = {"mean": torch.tensor([5.0, -40, 30, 50, 0, 20]), "std": torch.arange(4.0, 10)}
    action = Affine.from_stats(NormalizationMode.MEAN_STD, spread, eps=1e-8, what="action")
    torch.manual_seed(0)
    return perturb(HookedACT(config, Normalizer({ACTION_KEY: action})), 1).eval()


def camera_scene(seed, patch=None):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 255, (3, 64, 96), generator=generator, dtype=torch.uint8)
    if patch is not None:
        image[:, 40:50, 70:80] = patch
    state = torch.randn(6, generator=generator)
    return Scene({"observation.images.top": image, "observation.state": state}, episode=seed)


def camera_pair(seed=0):
    return ScenePair(camera_scene(seed, 0), camera_scene(seed, 255), "a square")


def relay_pair(seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(6, generator=generator, dtype=torch.float64)
    env = draw()
    scene = lambda state: Scene(
        {"observation.state": state, "observation.environment_state": env}, episode=seed
    )
    return ScenePair(scene(draw()), scene(draw()), "the state")


@pytest.fixture(scope="module")
def relay_result():
    return patch_pairs(relay_policy(), [relay_pair(i) for i in range(6)], options=ANY_EFFECT)


def token_map(result, column):
    frame = result.frame()
    rows = frame[frame.unit == Unit.TOKEN.value]
    return rows.pivot(index="depth", columns="token", values=column).to_numpy()


def test_the_relay_circuits_exact_map_is_found_by_denoising(relay_result):
    np.testing.assert_allclose(token_map(relay_result, "denoise"), DENOISE_MAP, atol=1e-6)


def test_the_relay_circuits_exact_map_is_found_by_noising(relay_result):
    np.testing.assert_allclose(token_map(relay_result, "noise"), DENOISE_MAP, atol=1e-6)


def test_the_relay_head_carries_everything_and_no_other_head_of_its_block_anything(relay_result):
    frame = relay_result.frame().set_index(["hook", "part"])
    heads = frame.loc["encoder.0.attn.hook_z"].denoise
    np.testing.assert_allclose(heads.to_numpy(float), [1, 0], atol=1e-6)


def test_the_decoder_never_attends_to_the_token_that_causes_the_action():
    model = relay_policy()
    _, cache = model.run_with_cache(relay_pair(0).clean)
    assert cache["decoder.0.cross_attn.hook_pattern[head=0, token=state]"].max() < 1e-6


def test_off_axis_movement_of_the_relay_is_nothing(relay_result):
    rows = relay_result.frame()
    assert rows[rows.unit == Unit.TOKEN.value].off_axis.max() < 1e-5


def naive_chunks(model, pair, part):
    """TransformerLens' way, a whole forward with one hook: patched, base and target chunk."""
    _, clean = model.run_with_cache(pair.clean)
    axes = {"token": part.token, "head": part.head, "neuron": part.neuron}
    where = {axis: at for axis, at in axes.items() if at is not None}
    index = model.hook_point(part.hook).index(where)

    def put(activation, hook):
        activation[index] = clean[part.hook][index]

    normalised = lambda run: run[1]["hook_actions_normalized"][0]
    with model.hooks(fwd_hooks=[(part.hook, put)]):
        patched = normalised(model.run_with_cache(pair.corrupt))
    corrupt = normalised(model.run_with_cache(pair.corrupt))
    return patched, corrupt, clean["hook_actions_normalized"][0]


def naive(model, pair, part):
    return float(project(*naive_chunks(model, pair, part)).share)


@torch.no_grad()
def test_every_part_equals_a_whole_forward_with_one_hook(camera_policy):
    pair = camera_pair()
    result = patch_pairs(camera_policy, [pair], options=ANY_EFFECT)
    frame = result.frame()
    for i, part in enumerate(result.parts):
        if part.unit is not Unit.GROUP:
            expected = naive(camera_policy, pair, part)
            assert frame.denoise[i] == pytest.approx(expected, abs=2e-4), part


def test_all_tokens_together_restore_everything_at_every_depth(camera_policy):
    frame = patch_pairs(camera_policy, [camera_pair()], options=ANY_EFFECT).frame()
    whole = frame[frame.part == ALL_TOKENS]
    assert len(whole) == camera_policy.config.n_encoder_layers + 1
    np.testing.assert_allclose(whole.denoise.to_numpy(), 1, atol=1e-4)
    np.testing.assert_allclose(whole.noise.to_numpy(), 1, atol=1e-4)


def test_scene_free_parts_carry_nothing(camera_policy):
    frame = patch_pairs(camera_policy, [camera_pair()], options=ANY_EFFECT).frame()
    dead = frame[
        (frame.hook == "decoder.0.hook_attn_out")
        | ((frame.hook == "encoder.0.hook_resid_pre") & (frame.part == "latent"))
    ]
    assert len(dead) == 2
    assert dead.denoise.abs().max() < 1e-4


def test_the_result_does_not_depend_on_how_many_patches_share_a_forward(camera_policy):
    runs = [
        patch_pairs(camera_policy, [camera_pair()], options=SweepOptions(budget, min_effect=0.0))
        for budget in (30_000, 200_000, 2**28)
    ]
    for other in runs[1:]:
        np.testing.assert_allclose(
            runs[0].frame().denoise, other.frame().denoise, atol=1e-4, equal_nan=True
        )


def test_receipts_show_the_change_at_the_site_and_at_the_output(camera_policy):
    frame = patch_pairs(camera_policy, [camera_pair()], options=ANY_EFFECT).frame()
    touched = frame.site_change > 0
    assert touched.any()
    assert (frame.output_change[~touched.fillna(False)].fillna(0) < 1e-5).all()


def test_no_hook_is_left_on_the_model(camera_policy):
    patch_pairs(camera_policy, [camera_pair()], options=ANY_EFFECT)
    assert not camera_policy.list_hooks()


def test_cells_that_differ_are_the_cells_of_the_changed_pixels(camera_policy):
    # Rows 40-49 and columns 70-79 lie in cell (1, 2) of the stride-32 grid alone.
    cells = differing_tokens(camera_policy, camera_pair(), 24)["top"].reshape(2, 3)
    assert cells.tolist() == [[False, False, False], [False, False, True]]


def test_a_pair_without_differing_cells_has_no_value_there(camera_policy):
    generator = torch.Generator().manual_seed(5)
    clean = camera_scene(0, 0)
    moved = {**clean.observation, "observation.state": torch.randn(6, generator=generator)}
    pair = ScenePair(clean, Scene(moved, episode=9), "the state")
    frame = patch_pairs(camera_policy, [pair], options=ANY_EFFECT).frame()
    assert frame[frame.part == f"top: {CHANGED}"].denoise.isna().all()


def test_pairs_whose_actions_hardly_differ_are_left_out_and_counted(camera_policy):
    same = ScenePair(camera_scene(3, 0), camera_scene(3, 0), "nothing")
    options = SweepOptions(min_effect=1e-6)
    result = patch_pairs(camera_policy, [camera_pair(), same], options=options)
    assert len(result.pairs) == 1
    assert [pair for pair, _ in result.left_out] == [same]


def test_only_equal_pairs_is_an_error_that_says_what_to_do(camera_policy):
    same = ScenePair(camera_scene(3, 0), camera_scene(3, 0), "nothing")
    with pytest.raises(SceneError, match="choose scenes that differ more"):
        patch_pairs(camera_policy, [same], options=SweepOptions(min_effect=1e-6))


def test_the_null_of_a_donor_that_agrees_with_the_corrupt_scene_restores_nothing():
    # The donor's environment equals the corrupt scene's and so does its state: nothing to restore.
    pairs = []
    for seed in range(6):
        pair = relay_pair(seed)
        pairs.append(ScenePair(pair.clean, pair.corrupt, "the state", None, pair.corrupt))
    result = patch_pairs(relay_policy(), pairs, options=ANY_EFFECT)
    frame = result.frame()
    assert np.nanmax(np.abs(frame.null)) < 1e-9
    planted = frame[(frame.hook == "encoder.0.hook_resid_pre") & (frame.part == "state")]
    assert planted.p.item() == pytest.approx(2 / 2**6)


def test_intervals_are_missing_below_five_pairs(camera_policy):
    frame = patch_pairs(camera_policy, [camera_pair()], options=ANY_EFFECT).frame()
    assert frame.denoise_low.isna().all()


def test_heatmap_has_the_cameras_grid_and_the_tables_values(camera_policy):
    result = patch_pairs(camera_policy, [camera_pair()], options=ANY_EFFECT)
    grid = result.heatmap("top", "encoder.1.hook_resid_pre", Direction.NOISE)
    frame = result.frame()
    row = frame[(frame.hook == "encoder.1.hook_resid_pre") & (frame.part == "top[1,2]")]
    assert grid.shape == (2, 3)
    assert grid[1, 2] == pytest.approx(row.noise.item())


def test_per_pair_holds_every_direction_pair_and_part(camera_policy):
    result = patch_pairs(camera_policy, [camera_pair(0), camera_pair(1)], options=ANY_EFFECT)
    assert len(result.per_pair()) == 2 * 2 * len(parts_of(camera_policy))


def test_an_allowed_error_is_audited_and_kept(camera_policy):
    pairs = [camera_pair(0), camera_pair(1)]
    exact = patch_pairs(camera_policy, pairs, options=ANY_EFFECT)
    allowed = SweepOptions(min_effect=0.0, max_error=1e-3)
    within = patch_pairs(camera_policy, pairs, options=allowed)
    assert not exact.audits
    assert len(within.audits) == 4
    assert max(audit.largest for audit in within.audits) <= 1e-3
    np.testing.assert_allclose(
        within.frame().denoise, exact.frame().denoise, atol=0.05, equal_nan=True
    )


def test_the_result_does_not_depend_on_the_number_of_workers(camera_policy):
    pairs = [camera_pair(i) for i in range(3)]
    options = SweepOptions(min_effect=0.0, max_error=1e-3)
    one, three = (
        patch_pairs(camera_policy, pairs, options=options, workers=n).per_pair() for n in (1, 3)
    )
    np.testing.assert_allclose(one.restored, three.restored, atol=1e-6, equal_nan=True)


def test_workers_give_torch_its_threads_back(camera_policy):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        patch_pairs(camera_policy, [camera_pair(0), camera_pair(1)], options=ANY_EFFECT)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_failure_in_one_pair_ends_the_run_with_that_failure(camera_policy):
    broken = ScenePair(camera_scene(0), Scene({"observation.state": torch.zeros(6)}), "nothing")
    with pytest.raises(SceneError, match=r"observation\.images\.top"):
        patch_pairs(
            camera_policy, [camera_pair(0), broken, camera_pair(1)], options=ANY_EFFECT, workers=2
        )


def test_progress_reaches_the_total(camera_policy):
    seen = []
    patch_pairs(
        camera_policy,
        [camera_pair(0), camera_pair(1)],
        options=ANY_EFFECT,
        workers=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1][0] == seen[-1][1] == 2 * 2 * len(parts_of(camera_policy))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def naive_units(model, pair, part):
    """As `naive_chunks`, in dataset units, as numpy's float64."""
    scale = np.arange(4.0, 10)
    mean = np.array([5.0, -40, 30, 50, 0, 20])
    return [c.double().numpy() * scale + mean for c in naive_chunks(model, pair, part)]


SOME_PARTS = [
    Part("encoder.1.hook_resid_pre", Unit.TOKEN, 1, "top[1,2]", token=7),
    Part("encoder.0.attn.hook_z", Unit.HEAD, 0, "head 2", head=2),
    Part("decoder.0.hook_cross_attn_out", Unit.SUBLAYER, 2, ""),
]


def rows_of(table, part):
    return table[(table.hook == part.hook) & (table.part == part.label)]


@pytest.fixture(scope="module")
def camera_result(camera_policy):
    return patch_pairs(camera_policy, [camera_pair()], options=ANY_EFFECT)


@torch.no_grad()
@pytest.mark.parametrize("part", SOME_PARTS, ids=lambda part: part.hook)
def test_joints_are_in_dataset_units_and_equal_a_whole_forward_with_one_hook(
    camera_policy, camera_result, part
):
    patched, corrupt, clean = naive_units(camera_policy, camera_pair(), part)
    rows = rows_of(camera_result.joints(), part)
    np.testing.assert_allclose(rows.effect, np.abs(patched - corrupt).mean(0), atol=2e-3)
    np.testing.assert_allclose(rows["shift"], (patched - corrupt).mean(0), atol=2e-3)
    np.testing.assert_allclose(rows.difference, np.abs(clean - corrupt).mean(0), rtol=1e-4)
    inner = ((patched - corrupt) * (clean - corrupt)).sum(0)
    own = inner / ((clean - corrupt) ** 2).sum(0)
    np.testing.assert_allclose(rows.restored, own, atol=2e-3)


@torch.no_grad()
@pytest.mark.parametrize("part", SOME_PARTS, ids=lambda part: part.hook)
def test_chunk_positions_equal_a_whole_forward_with_one_hook(camera_policy, camera_result, part):
    patched, corrupt, clean = naive_units(camera_policy, camera_pair(), part)
    rows = rows_of(camera_result.chunk_positions(), part)
    assert rows.position.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(rows.effect, np.abs(patched - corrupt).mean(1), atol=2e-3)
    np.testing.assert_allclose(rows.difference, np.abs(clean - corrupt).mean(1), rtol=1e-4)
    patched, corrupt, clean = (c.numpy() for c in naive_chunks(camera_policy, camera_pair(), part))
    inner = ((patched - corrupt) * (clean - corrupt)).sum(1)
    own = inner / ((clean - corrupt) ** 2).sum(1)
    np.testing.assert_allclose(rows.restored, own, atol=2e-3)


@pytest.mark.parametrize("direction", Direction)
def test_components_by_joint_and_by_position_add_up_to_the_restored_share(
    camera_policy, camera_result, direction
):
    frame = camera_result.frame()
    for table in (camera_result.joints(direction), camera_result.chunk_positions(direction)):
        sums = table.component.to_numpy().reshape(len(frame), -1).sum(1)
        np.testing.assert_allclose(sums, frame[direction.value], atol=1e-5)


def test_every_joint_of_the_relay_goes_all_of_its_way_by_the_state_and_none_by_the_rest(
    relay_result,
):
    for table in (relay_result.joints(), relay_result.chunk_positions()):
        tokens = table[(table.hook == "encoder.0.hook_resid_pre") & (table.unit == "token")]
        for token, rows in tokens.groupby("part"):
            np.testing.assert_allclose(rows.restored, float(token == "state"), atol=1e-6)
            goal = rows.difference if token == "state" else 0 * rows.difference
            np.testing.assert_allclose(rows.effect, goal, atol=1e-6)


def test_joints_carry_their_names(camera_result):
    assert set(camera_result.joints().joint) <= {
        *SO101_SIMULATED.joints,
        *map("joint_{}".format, range(6)),
    }
    named = replace(camera_result, joint_names=tuple("abcdef"))
    assert named.joints().joint[:7].tolist() == [*"abcdef", "a"]


def sweep(model, pair, *, options=ANY_EFFECT, parts=None, **facts):
    clean, corrupt = (run_scene(model, scene) for scene in (pair.clean, pair.corrupt))
    return sweep_pair(
        model, corrupt, clean, clean, groups=token_groups(model, pair, 24),
        parts=parts or SOME_PARTS, options=options, **facts,
    )  # fmt: skip


@torch.no_grad()
def test_the_grippers_way_is_that_of_the_tip_under_a_whole_forward_with_one_hook(camera_policy):
    pair = camera_pair()
    found = sweep(camera_policy, pair, arm=SO101_SIMULATED)
    for i, part in enumerate(SOME_PARTS):
        chunks = naive_units(camera_policy, pair, part)
        patched, corrupt, clean = (1000 * SO101_SIMULATED.tip(c) for c in chunks)
        moved = np.linalg.norm(patched - corrupt, axis=1)
        own = np.linalg.norm(clean - corrupt, axis=1)
        # n_action_steps is 3 of 4: position 2 is the last that is executed.
        assert found.gripper_end[i] == pytest.approx(moved[2], abs=0.02)
        assert found.gripper_largest[i] == pytest.approx(moved.max(), abs=0.02)
        assert found.gripper_end_difference == pytest.approx(own[2], abs=0.01)
        assert found.gripper_largest_difference == pytest.approx(own.max(), abs=0.01)
        share = ((patched - corrupt) * (clean - corrupt)).sum() / (own**2).sum()
        assert found.gripper_along[i] / found.gripper_total == pytest.approx(share, abs=2e-3)


def test_the_gripper_of_a_policy_of_unknown_make_is_left_open(camera_policy, camera_result):
    # Its joints have the simulated arm's names, as a real SO-101's have.
    assert sweep(camera_policy, camera_pair()).gripper_end is None
    assert camera_result.frame().gripper_mm.isna().all()
    assert np.isnan(camera_result.gripper_difference_mm)


def test_a_bundled_policys_arm_is_recognised_and_in_the_table(camera_policy):
    model = HookedACT(camera_policy.config, camera_policy.normalizer).eval()
    model.load_state_dict(camera_policy.state_dict())
    model.checkpoint = Checkpoint(model.config, {}, {}, {}, source="bundled:so101-pick-cube")
    result = patch_pairs(model, [camera_pair(0), camera_pair(1)], options=ANY_EFFECT)
    frame = result.frame()
    known = frame[frame.denoise.notna()]
    assert known.gripper_mm.notna().all()
    whole = frame[frame.part == ALL_TOKENS]
    np.testing.assert_allclose(whole.gripper_mm, result.gripper_difference_mm, rtol=1e-3)
    np.testing.assert_allclose(whole.gripper_restored, 1, atol=1e-3)
    per_pair = result.per_pair().query("direction == 'denoise'").set_index(["hook", "part", "pair"])
    means = per_pair.gripper_mm.groupby(["hook", "part"], sort=False).mean()
    np.testing.assert_allclose(means, frame.gripper_mm, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("positions", Positions)
def test_only_the_positions_asked_for_are_measured(camera_policy, positions):
    pair, part = camera_pair(), SOME_PARTS[0]
    options = SweepOptions(min_effect=0.0, positions=positions)
    result = patch_pairs(camera_policy, [pair], options=options)
    n = {Positions.WHOLE: 4, Positions.EXECUTED: 3}[positions]
    patched, corrupt, clean = (c[:n] for c in naive_chunks(camera_policy, pair, part))
    row = rows_of(result.frame(), part)
    expected = project(patched, corrupt, clean)
    assert row.denoise.item() == pytest.approx(expected.share.item(), abs=2e-4)
    assert row.off_axis.item() == pytest.approx(expected.off_axis.item(), abs=1e-3)
    assert row.cosine.item() == pytest.approx(expected.cosine.item(), abs=1e-3)
    recovered = expected.distance_recovered.item()
    assert row.distance_recovered.item() == pytest.approx(recovered, abs=1e-3)
    assert rows_of(result.chunk_positions(), part).position.tolist() == list(range(n))


@torch.no_grad()
def test_positions_after_a_demonstrations_end_are_not_measured(camera_policy):
    pair = camera_pair()
    ended = replace(pair.corrupt, action_is_pad=torch.tensor([False, False, True, True]))
    found = sweep(camera_policy, pair, scenes=(pair.clean, ended), arm=SO101_SIMULATED)
    patched, corrupt, clean = (c[:2] for c in naive_chunks(camera_policy, pair, SOME_PARTS[0]))
    share = found.along[0] / found.total
    assert share == pytest.approx(project(patched, corrupt, clean).share.item(), abs=2e-4)
    first, second = (
        camera_policy.normalizer.unnormalize(ACTION_KEY, chunk) for chunk in (corrupt, clean)
    )
    assert found.effect == pytest.approx((first - second).square().mean().sqrt().item(), rel=1e-4)
    way = 1000 * (SO101_SIMULATED.tip(second) - SO101_SIMULATED.tip(first))
    assert found.gripper_end_difference == pytest.approx(way[1].norm().item(), abs=0.01)
    assert found.gripper_total == pytest.approx(way.square().sum().item(), rel=1e-4)


def test_a_position_that_some_pairs_lack_is_pooled_over_the_others(relay_result):
    sweeps = list(relay_result.sweeps[Direction.DENOISE])
    weights = sweeps[0].weights.copy()
    weights[3] = 0
    blank = lambda array: np.where(weights > 0, array, 0).astype(array.dtype)
    names = ("position_along", "position_size", "position_total", "position_difference")
    sweeps[0] = replace(
        sweeps[0], weights=weights, **{name: blank(getattr(sweeps[0], name)) for name in names}
    )
    part = relay_result.parts[1]
    shortened = replace(relay_result, sweeps={Direction.DENOISE: tuple(sweeps)})
    at = lambda result: rows_of(result.chunk_positions(), part).query("position == 3")
    without = replace(
        relay_result,
        sweeps={Direction.DENOISE: tuple(sweeps[1:])},
        pairs=relay_result.pairs[1:],
    )
    for column in ("effect", "effect_low", "difference", "restored"):
        assert at(shortened)[column].item() == pytest.approx(
            at(without)[column].item(), nan_ok=True
        )
    assert at(shortened).effect.item() != pytest.approx(at(relay_result).effect.item())


def test_positions_can_be_left_out_to_save_memory(camera_policy):
    options = SweepOptions(min_effect=0.0, by_position=False)
    result = patch_pairs(camera_policy, [camera_pair()], options=options)
    assert result.sweeps[Direction.DENOISE][0].position_along is None
    assert len(result.joints()) == 6 * len(result.parts)
    with pytest.raises(SceneError, match="by_position=True"):
        result.chunk_positions()


@torch.no_grad()
def test_a_single_neuron_can_be_a_part(camera_policy):
    parts = [
        Part(hook, Unit.NEURON, 2, f"neuron {n}", neuron=n)
        for hook in ("decoder.0.mlp.hook_post", "encoder.0.mlp.hook_post")
        for n in (3, 17)
    ]
    found = sweep(camera_policy, camera_pair(), parts=parts)
    for part, along in zip(parts, found.along, strict=True):
        expected = naive(camera_policy, camera_pair(), part)
        assert along / found.total == pytest.approx(expected, abs=2e-4)
        assert part.labels["neuron"] == part.neuron


def test_addresses_of_parts_are_sites_of_the_model(camera_policy):
    groups = token_groups(camera_policy, camera_pair(), 24)
    addressed = [part for part in parts_of(camera_policy) if part.address is not None]
    left_out = {part.label for part in parts_of(camera_policy)} - {p.label for p in addressed}
    assert left_out == {"top: cells that differ", "top: other cells"}
    tokens = np.arange(len(camera_policy.tokens))
    for part in addressed:
        site, expected = camera_policy.site(part.address), part.site(groups)
        assert site.name == expected.name
        if part.unit is Unit.GROUP:
            chosen = site.where.get("token", slice(None))
            np.testing.assert_array_equal(tokens[chosen], expected.where["token"])
        else:
            assert site.where == expected.where


def test_labels_say_where_a_part_is(camera_result):
    frame = camera_result.frame().set_index(["hook", "part"])
    token = frame.loc[("encoder.1.hook_resid_pre", "top[1,2]")]
    assert (token.stack, token.layer, token.camera, token.row, token.col) == (
        "encoder",
        1,
        "top",
        1,
        2,
    )
    assert frame.loc[("decoder.0.cross_attn.hook_z", "head 3")]["head"] == 3
    output = frame.loc[("encoder.hook_out", f"top: {CHANGED}")]
    assert output.stack == "encoder"
    assert output.camera == "top"
    assert output[["layer", "row", "col", "token", "head", "neuron"]].isna().all()


def scene_of(episode, source="a"):
    return Scene({}, episode=episode, source=source)


def test_pairs_that_share_an_episode_directly_or_through_another_pair_are_one_cluster():
    pairs = [
        ScenePair(scene_of(0), scene_of(1), ""),
        ScenePair(scene_of(2), scene_of(3), ""),
        ScenePair(scene_of(3), scene_of(4), ""),
        ScenePair(scene_of(5), scene_of(4), ""),
        ScenePair(scene_of(0, "b"), scene_of(1, "b"), ""),
    ]
    assert episode_clusters(pairs).tolist() == [0, 1, 1, 1, 2]
    assert episode_clusters([]).tolist() == []


def test_donors_join_clusters_only_where_they_are_used():
    donor = scene_of(9)
    pairs = [
        ScenePair(scene_of(2 * i), scene_of(2 * i + 1), "", scene_of(0), donor) for i in range(3)
    ]
    assert episode_clusters(pairs).tolist() == [0, 1, 2]
    assert episode_clusters(pairs, with_donors=True).tolist() == [0, 0, 0]


def test_intervals_draw_pairs_of_an_episode_together(relay_result):
    pairs = [
        replace(pair, clean=replace(pair.clean, episode=100 + i // 2 if i < 2 else i))
        for i, pair in enumerate(relay_result.pairs)
    ]
    clustered = replace(relay_result, pairs=tuple(pairs))
    assert len(set(clustered.clusters)) == 5
    assert len(set(relay_result.clusters)) == 6
    state = clustered.parts[1]
    sweeps = clustered.sweeps[Direction.DENOISE]
    expected = pooled_ratio(
        np.array([sweep.joint_size[1, 0] for sweep in sweeps]),
        np.array([sweep.weights.sum() for sweep in sweeps]),
        clusters=np.array([0, 0, 2, 3, 4, 5]),
    )
    low = lambda result: rows_of(result.joints(), state).effect_low.iloc[0]
    assert low(clustered) == pytest.approx(float(expected.low), rel=1e-5)
    assert low(clustered) != pytest.approx(low(relay_result), rel=1e-3)


@pytest.fixture(scope="module")
def relay_with_null():
    """The donor is another pair's corrupt scene, in the state; each from episodes of its own."""
    pairs = []
    for seed in range(7):
        pair, other = relay_pair(seed), relay_pair(50 + seed)
        mixed = {
            **other.clean.observation,
            "observation.state": pair.corrupt.observation["observation.state"],
        }
        pairs.append(replace(pair, unrelated_corrupt=replace(other.clean, observation=mixed)))
    return patch_pairs(relay_policy(), pairs, options=ANY_EFFECT)


def test_the_planted_parts_hold_against_the_largest_of_all_parts(relay_with_null):
    frame = relay_with_null.frame()
    tokens = frame[frame.unit == Unit.TOKEN.value]
    planted = np.array(DENOISE_MAP).ravel() == 1
    np.testing.assert_allclose(tokens[planted].p, 2 / 2**7)
    np.testing.assert_allclose(tokens[planted].p_max_t, 2 / 2**7)
    assert (tokens[~planted].q > 0.05).all()
    assert (frame.p_max_t >= frame.p - 1e-12).all()
    chance = frame[(frame.p > 0.02) & (frame.p < 1)]
    assert len(chance)
    assert (chance.p_max_t > chance.p).all()


def test_tests_by_joint_and_by_position_find_the_planted_part(relay_with_null):
    for table in (relay_with_null.joints(), relay_with_null.chunk_positions()):
        tokens = table[(table.hook == "encoder.0.hook_resid_pre") & (table.unit == "token")]
        planted = tokens.part == "state"
        np.testing.assert_allclose(tokens[planted].p, 2 / 2**7)
        assert (tokens[~planted].q > 0.05).all()
        np.testing.assert_allclose(tokens[planted].null, 0, atol=1e-9)


def test_a_donor_that_all_pairs_share_leaves_nothing_to_permute(relay_with_null):
    donor = relay_with_null.pairs[0].unrelated_corrupt
    shared = tuple(replace(pair, unrelated_corrupt=donor) for pair in relay_with_null.pairs)
    frame = replace(relay_with_null, pairs=shared).frame()
    assert frame[["p", "q", "p_max_t", "null_low"]].isna().all(axis=None)
    assert frame.denoise_low.notna().all()
