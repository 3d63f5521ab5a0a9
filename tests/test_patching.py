"""The sweep against a planted circuit, the naive loop, and identities that must hold."""

import numpy as np
import pytest
import torch
from relay import DENOISE_MAP, relay_policy

from actlens.config import ACTConfig, Camera
from actlens.errors import SceneError
from actlens.metrics import project
from actlens.model.act import HookedACT
from actlens.patching import (
    ALL_TOKENS,
    CHANGED,
    Direction,
    SweepOptions,
    Unit,
    differing_tokens,
    parts_of,
    patch_pairs,
)
from actlens.scene import Scene, ScenePair

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
        action_dim=6, state_dim=6, chunk=4, n_action_steps=4, d_model=32, n_heads=4, d_mlp=48,
        n_encoder_layers=2, n_vae_encoder_layers=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return perturb(HookedACT(config), 1).eval()


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


def naive(model, pair, part):
    """TransformerLens' way: a whole forward with one hook, for one part."""
    _, clean = model.run_with_cache(pair.clean)
    where = {k: v for k, v in (("token", part.token), ("head", part.head)) if v is not None}
    index = model.hook_point(part.hook).index(where)

    def put(activation, hook):
        activation[index] = clean[part.hook][index]

    normalised = lambda run: run[1]["hook_actions_normalized"][0]
    with model.hooks(fwd_hooks=[(part.hook, put)]):
        patched = normalised(model.run_with_cache(pair.corrupt))
    corrupt = normalised(model.run_with_cache(pair.corrupt))
    return float(project(patched, corrupt, clean["hook_actions_normalized"][0]).share)


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
