"""tonyzhaozh/act and act-plus-plus checkpoints: inferred, renamed, or refused with a reason."""

import checkpoint_folders as folders
import pytest
import torch
from checkpoint_folders import STATE

from actlens.checkpoints import DecoderLayersUsed, expected_shapes, load_checkpoint, save_checkpoint
from actlens.errors import CheckpointError
from actlens.normalization import Normalizer

CAMERAS = ["top", "side_cam"]
OPTIONS = {"cameras": CAMERAS, "image_size": (64, 96), "n_heads": 2}


@pytest.fixture(scope="session")
def state(camera_weights):
    return folders.original_state({k: v.float() for k, v in camera_weights.items()})


@pytest.fixture(scope="session")
def original_folder(state, tmp_path_factory):
    return folders.write_original(tmp_path_factory.mktemp("original"), state)


def rewritten(tmp_path, state, **options):
    return folders.write_original(tmp_path / "p", state, **options)


def small(state):
    """The same state without the backbone: for refusals that come before it matters."""
    return {key: tensor for key, tensor in state.items() if "backbones" not in key}


def test_sizes_are_inferred_and_names_mapped(original_folder, camera_weights):
    checkpoint = load_checkpoint(original_folder, **OPTIONS)
    config = checkpoint.config
    assert (config.d_model, config.d_mlp, config.chunk, config.n_action_steps) == (8, 12, 5, 5)
    assert (config.action_dim, config.state_dim, config.latent_dim) == (2, 3, 4)
    assert (config.n_encoder_layers, config.n_vae_encoder_layers) == (2, 1)
    assert [camera.name for camera in config.cameras] == CAMERAS
    assert checkpoint.weights.keys() == expected_shapes(config).keys() == camera_weights.keys()
    for name, tensor in checkpoint.weights.items():
        assert torch.equal(tensor, camera_weights[name].float()), name


@pytest.mark.parametrize("asked", [None, "first"])
def test_the_first_decoder_layer_lives_and_untrained_ones_are_kept_aside(
    asked, original_folder, state
):
    checkpoint = load_checkpoint(original_folder, decoder_layers_used=asked, **OPTIONS)
    assert checkpoint.config.n_decoder_layers == 1
    layers = {name.split(".")[2] for name in checkpoint.dead_weights if name.startswith("decoder")}
    assert layers == set("123456")
    assert "is_pad_head.weight" in checkpoint.dead_weights
    name = "layers.3.linear1.bias"
    theirs = state[f"model.transformer.decoder.{name}"]
    assert torch.equal(checkpoint.dead_weights[f"decoder.{name}"], theirs)
    assert any("layers 1 to 6 of 7 are dead" in note for note in checkpoint.notes)


def trained_up_to(tmp_path, weights, layer):
    state = folders.original_state({k: v.float() for k, v in weights.items()}, trained=layer)
    return rewritten(tmp_path, state)


@pytest.mark.parametrize("asked", [None, "all", DecoderLayersUsed.ALL])
def test_a_fork_that_used_the_last_layer_is_known_by_its_biases(asked, camera_weights, tmp_path):
    folder = trained_up_to(tmp_path, camera_weights, 7)
    checkpoint = load_checkpoint(folder, decoder_layers_used=asked, **OPTIONS)
    assert checkpoint.config.n_decoder_layers == 7
    assert checkpoint.dead_weights.keys() == {"is_pad_head.weight", "is_pad_head.bias"}
    assert any("all 7 decoder layers count" in note for note in checkpoint.notes)


def test_a_fork_that_used_a_layer_in_between_is_known_too(camera_weights, tmp_path):
    checkpoint = load_checkpoint(trained_up_to(tmp_path, camera_weights, 3), **OPTIONS)
    assert checkpoint.config.n_decoder_layers == 3
    assert any("layers 3 to 6 of 7 are dead" in note for note in checkpoint.notes)


def test_dead_layers_are_not_counted_as_live(original_folder):
    with pytest.raises(CheckpointError, match=r"layers 1 to 6 of 7 were never trained"):
        load_checkpoint(original_folder, decoder_layers_used="all", **OPTIONS)


def test_live_layers_are_not_left_out(camera_weights, tmp_path):
    folder = trained_up_to(tmp_path, camera_weights, 7)
    with pytest.raises(CheckpointError, match=r"layers 1 to 6 of 7 were trained"):
        load_checkpoint(folder, decoder_layers_used="first", **OPTIONS)


def untrained(state):
    """As before the first step of training: no bias that starts at zero has moved."""
    return {
        key: torch.zeros_like(tensor)
        if ".decoder.layers." in key and ("norm" in key or "attn" in key) and "bias" in key
        else tensor
        for key, tensor in state.items()
    }


@pytest.mark.parametrize(("asked", "layers"), [(None, 1), ("first", 1), ("all", 7)])
def test_before_any_training_what_is_asked_for_decides(asked, layers, state, tmp_path):
    folder = rewritten(tmp_path, untrained(state))
    checkpoint = load_checkpoint(folder, decoder_layers_used=asked, **OPTIONS)
    assert checkpoint.config.n_decoder_layers == layers


def test_normalisation_is_the_originals(original_folder):
    """ImageNet's for images and no epsilon anywhere."""
    normalizer = Normalizer(load_checkpoint(original_folder, **OPTIONS).normalization)
    stats = {name: torch.from_numpy(array) for name, array in folders.original_statistics().items()}
    x = torch.randn(3)
    assert torch.equal(normalizer.normalize(STATE, x), (x - stats["qpos_mean"]) / stats["qpos_std"])
    y = torch.randn(2)
    undone = normalizer.unnormalize("action", y)
    assert torch.equal(undone, y * stats["action_std"] + stats["action_mean"])
    image = torch.rand(3, 4, 5)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    for camera in CAMERAS:
        ours = normalizer.normalize(f"observation.images.{camera}", image)
        assert torch.equal(ours, (image - mean) / std)


def test_an_original_saved_for_lerobot_keeps_its_weights(original_folder, tmp_path):
    checkpoint = load_checkpoint(original_folder, **OPTIONS)
    again = load_checkpoint(save_checkpoint(checkpoint, tmp_path / "saved"))
    assert again.config == checkpoint.config
    assert again.eps == 0
    assert all(torch.equal(again.weights[k], checkpoint.weights[k]) for k in checkpoint.weights)
    for key, affine in checkpoint.normalization.items():
        assert torch.equal(again.normalization[key].scale, affine.scale)


def test_the_file_itself_can_be_named(original_folder):
    path = original_folder / "policy_best.ckpt"
    assert load_checkpoint(path, **OPTIONS).source == str(path)


def test_best_comes_before_last_and_last_before_the_latest_epoch(tmp_path):
    from actlens.checkpoints.original_act import find_original

    for name in ("policy_epoch_900_seed_0.ckpt", "policy_epoch_1000_seed_0.ckpt"):
        (tmp_path / name).touch()
    assert find_original(tmp_path).name == "policy_epoch_1000_seed_0.ckpt"
    (tmp_path / "policy_last.ckpt").touch()
    assert find_original(tmp_path).name == "policy_last.ckpt"
    (tmp_path / "policy_best.ckpt").touch()
    assert find_original(tmp_path).name == "policy_best.ckpt"


def test_legacy_files_load_too(state, tmp_path):
    folder = rewritten(tmp_path, state, _use_new_zipfile_serialization=False)
    assert load_checkpoint(folder, **OPTIONS).config.chunk == 5


def test_camera_names_are_required(original_folder):
    with pytest.raises(CheckpointError, match=r"give cameras=\[…\].*camera_names"):
        load_checkpoint(original_folder)


def test_wrong_numbers_of_heads_are_refused(original_folder):
    with pytest.raises(CheckpointError, match="not a multiple of n_heads 3"):
        load_checkpoint(original_folder, cameras=CAMERAS, n_heads=3)


def test_options_of_the_original_are_refused_for_lerobot_folders(folder):
    with pytest.raises(CheckpointError, match=r"its config.json says its cameras, n_heads"):
        load_checkpoint(folder, cameras=CAMERAS, n_heads=8)
    with pytest.raises(CheckpointError, match=r"its config.json says its decoder_layers_used"):
        load_checkpoint(folder, decoder_layers_used="all")


def test_equal_backbones_of_act_plus_plus_become_one(state, tmp_path):
    second = {
        key.replace("backbones.0", "backbones.1"): tensor
        for key, tensor in state.items()
        if "backbones.0" in key
    }
    folder = rewritten(tmp_path, state | second)
    checkpoint = load_checkpoint(folder, **OPTIONS)
    assert any("2 backbones are equal" in note for note in checkpoint.notes)
    with pytest.raises(CheckpointError, match="for each of 2 cameras, but 1 were named"):
        load_checkpoint(folder, cameras=["top"], n_heads=2)


def test_different_backbones_are_refused(state, tmp_path):
    second = {
        key.replace("backbones.0", "backbones.1"): tensor + 1
        for key, tensor in state.items()
        if "backbones.0" in key
    }
    with pytest.raises(CheckpointError, match="2 different backbones"):
        load_checkpoint(rewritten(tmp_path, state | second), **OPTIONS)


def test_a_quantised_latent_is_refused(state, tmp_path):
    wide = state | {"model.latent_out_proj.weight": torch.zeros(8, 64)}
    with pytest.raises(CheckpointError, match="latent is quantised"):
        load_checkpoint(rewritten(tmp_path, small(wide)), **OPTIONS)


def test_learned_pixel_positions_are_refused(state, tmp_path):
    learned = state | {"model.backbones.0.1.row_embed.weight": torch.zeros(50, 4)}
    with pytest.raises(CheckpointError, match="learned pixel positions"):
        load_checkpoint(
            rewritten(
                tmp_path, small(state) | {k: v for k, v in learned.items() if "row_embed" in k}
            ),
            **OPTIONS,
        )


def test_tensors_of_another_policy_are_refused(tmp_path):
    folder = rewritten(tmp_path, {"model.unet.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"'model.unet.weight'.*another policy"):
        load_checkpoint(folder, **OPTIONS)


@pytest.mark.parametrize(
    "key",
    [
        "model.query_embed.weight",
        "model.action_head.bias",
        "model.pos_table",
        "model.transformer.decoder.norm.weight",
        "model.latent_out_proj.weight",
    ],
)
def test_missing_tensors_are_refused(key, state, tmp_path):
    with pytest.raises(CheckpointError, match=r"missing|has no"):
        load_checkpoint(
            rewritten(tmp_path, {k: v for k, v in state.items() if k != key}), **OPTIONS
        )


def test_weights_that_are_not_finite_are_refused(state, tmp_path):
    bad = state | {"model.action_head.bias": torch.tensor([1.0, float("nan")])}
    with pytest.raises(CheckpointError, match=r"'action_head.bias' holds 1 values"):
        load_checkpoint(rewritten(tmp_path, bad), **OPTIONS)


@pytest.mark.parametrize(
    "value", [3, [1], {"epoch": 3}, {"a": torch.zeros(2, dtype=torch.int64)}, {}], ids=range(5)
)
def test_what_is_no_state_dict_is_refused(value, tmp_path):
    with pytest.raises(CheckpointError, match=r"policy_best.ckpt"):
        load_checkpoint(rewritten(tmp_path, value), **OPTIONS)


def test_missing_statistics_are_refused(state, tmp_path):
    folder = rewritten(tmp_path, state)
    (folder / "dataset_stats.pkl").unlink()
    with pytest.raises(CheckpointError, match=r"dataset_stats.pkl: is missing"):
        load_checkpoint(folder, **OPTIONS)


def test_statistics_of_another_robot_are_refused(state, tmp_path):
    import numpy as np

    stats = folders.original_statistics() | {"qpos_mean": np.zeros(14, np.float32)}
    with pytest.raises(CheckpointError, match=r"qpos_mean must have shape \(3,\), found \(14,\)"):
        load_checkpoint(rewritten(tmp_path, state, stats=stats), **OPTIONS)


def test_incomplete_statistics_are_refused(state, tmp_path):
    stats = folders.original_statistics()
    del stats["action_std"]
    with pytest.raises(CheckpointError, match="action_std is missing; it holds"):
        load_checkpoint(rewritten(tmp_path, state, stats=stats), **OPTIONS)
