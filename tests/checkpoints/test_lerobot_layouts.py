"""Every LeRobot layout loads, with the same weights and normalisation."""

import checkpoint_folders as folders
import pytest
import torch
from checkpoint_folders import ENV, STATE

from actlens.checkpoints import expected_shapes, load_checkpoint
from actlens.config import Activation, Backbone, Camera
from actlens.errors import CheckpointError
from actlens.normalization import NormalizationMode, Normalizer

LAYOUTS = {
    "0.4": folders.write_processors_layout,
    "0.3": folders.write_buffers_layout,
    "2024": folders.write_first_layout,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_weights_and_config(layout, tmp_path):
    checkpoint = load_checkpoint(LAYOUTS[layout](tmp_path / "p"))
    expected = folders.weights()
    assert checkpoint.weights.keys() == expected.keys()
    assert all(torch.equal(checkpoint.weights[name], expected[name]) for name in expected)
    config = checkpoint.config
    assert (config.action_dim, config.state_dim, config.env_state_dim) == (2, 3, 4)
    assert (config.d_model, config.n_heads, config.d_mlp, config.chunk) == (8, 2, 12, 5)
    assert (config.n_encoder_layers, config.n_decoder_layers) == (2, 1)
    assert (config.backbone, config.activation) == (Backbone.RESNET18, Activation.RELU)
    assert len(checkpoint.sha256) == 64
    assert checkpoint.source == str(tmp_path / "p")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_normalises_by_the_same_statistics(layout, tmp_path):
    checkpoint = load_checkpoint(LAYOUTS[layout](tmp_path / "p"))
    stats = folders.statistics()
    assert checkpoint.normalization[STATE].mode is NormalizationMode.MEAN_STD
    assert checkpoint.normalization[ENV].mode is NormalizationMode.MIN_MAX
    normalizer = Normalizer(checkpoint.normalization)
    x = torch.randn(3)
    theirs = (x - stats[STATE]["mean"]) / (stats[STATE]["std"] + 1e-8)
    assert torch.equal(normalizer.normalize(STATE, x), theirs)
    y = torch.randn(2)
    theirs = y * stats["action"]["std"] + stats["action"]["mean"]
    assert torch.equal(normalizer.unnormalize("action", y), theirs)


@pytest.mark.parametrize(("layout", "is_old"), [("0.4", False), ("0.3", True), ("2024", True)])
def test_min_max_follows_the_formula_of_its_release(layout, is_old, tmp_path):
    """0.3.3 adds 1e-8 to every range; 0.4 only puts it in place of zero."""
    make = LAYOUTS[layout]
    stats = folders.statistics()
    low, high = stats[ENV]["min"].clone(), stats[ENV]["max"].clone()
    # A constant component, and one so narrow that the epsilon shows.
    high[0], high[1] = low[0], low[1] + 1e-6
    stats[ENV] |= {"min": low, "max": high}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "statistics", lambda *cameras: stats)
        checkpoint = load_checkpoint(make(tmp_path / "p"))
    x = low + torch.tensor([0.0, 5e-7, 1.0, 1.0])
    if is_old:
        theirs = (x - low) / (high - low + 1e-8) * 2 - 1
    else:
        width = torch.where(high == low, torch.tensor(1e-8), high - low)
        theirs = 2 * (x - low) / width - 1
    ours = Normalizer(checkpoint.normalization).normalize(ENV, x)
    assert torch.equal(ours, theirs)
    assert ours[0] == -1


@pytest.mark.parametrize(
    ("mode", "low", "high"), [("QUANTILES", "q01", "q99"), ("QUANTILE10", "q10", "q90")]
)
def test_quantile_modes_use_their_quantiles(mode, low, high, tmp_path):
    modes = {"STATE": mode, "ENV": "IDENTITY", "ACTION": mode}
    checkpoint = load_checkpoint(
        folders.write_processors_layout(tmp_path / "p", normalization_mapping=modes)
    )
    stats = folders.statistics()[STATE]
    x = torch.randn(3)
    theirs = 2.0 * (x - stats[low]) / (stats[high] - stats[low]) - 1.0
    normalizer = Normalizer(checkpoint.normalization)
    assert torch.equal(normalizer.normalize(STATE, x), theirs)
    assert torch.equal(normalizer.normalize(ENV, x), x)
    y = torch.randn(2)
    stats = folders.statistics()["action"]
    theirs = (y + 1.0) * (stats[high] - stats[low]) / 2.0 + stats[low]
    assert torch.equal(normalizer.unnormalize("action", y), theirs)


def test_a_kind_without_a_mode_is_not_normalised(tmp_path):
    modes = {"STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
    checkpoint = load_checkpoint(
        folders.write_processors_layout(tmp_path / "p", normalization_mapping=modes)
    )
    assert checkpoint.normalization[ENV].mode is NormalizationMode.IDENTITY


@pytest.mark.parametrize(
    "place",
    [
        "outputs/train/job",
        "outputs/train/job/checkpoints",
        "outputs/train/job/checkpoints/last",
        "outputs/train/job/checkpoints/000200",
        "outputs/train/job/checkpoints/last/pretrained_model",
    ],
)
def test_any_folder_of_a_training_run_leads_to_its_policy(place, tmp_path):
    steps = tmp_path / "outputs/train/job/checkpoints"
    folders.write_processors_layout(steps / "000200" / "pretrained_model")
    (steps / "last").symlink_to("000200")
    assert load_checkpoint(tmp_path / place).config.chunk == 5


def test_without_its_last_link_a_run_leads_to_its_latest_step(tmp_path):
    for step, chunk in (("9", 3), ("100", 5)):
        folders.write_processors_layout(
            tmp_path / "checkpoints" / step / "pretrained_model", chunk_size=chunk
        )
    assert load_checkpoint(tmp_path).config.chunk == 5


def test_cameras_keep_the_order_of_the_config(camera_folder):
    checkpoint = load_checkpoint(camera_folder)
    assert checkpoint.config.cameras == (
        Camera("observation.images.top", 64, 96),
        Camera("observation.images.side_cam", 64, 96),
    )
    assert checkpoint.normalization["observation.images.top"].shift.shape == (3, 1, 1)


def test_cameras_of_the_buffer_layout_are_matched_with_underscores(tmp_path, camera_weights):
    names = {STATE: ("mean", "std"), "action": ("mean", "std")}
    names |= dict.fromkeys(folders.CAMERAS, ("mean", "std"))
    folder = folders.write_buffers_layout(
        tmp_path / "p", cameras=folders.CAMERAS, env=False, tensors=camera_weights, names=names
    )
    checkpoint = load_checkpoint(folder)
    stats = folders.statistics(folders.CAMERAS.keys())
    shift = checkpoint.normalization["observation.images.side_cam"].shift
    assert torch.isfinite(shift).all()
    assert stats["observation.images.side_cam"]["mean"].shape == shift.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_keep_the_dtype_of_the_file(dtype, folder):
    folders.write_weights(folder, folders.weights(dtype))
    checkpoint = load_checkpoint(folder)
    assert {tensor.dtype for tensor in checkpoint.weights.values()} == {dtype}


def test_loaded_weights_do_not_depend_on_the_file(folder):
    checkpoint = load_checkpoint(folder)
    before = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
    (folder / "model.safetensors").write_bytes(bytes(100_000))
    assert all(torch.equal(checkpoint.weights[name], before[name]) for name in before)


def test_a_compiled_policys_names_are_unwrapped(folder):
    tensors = {f"_orig_mod.{name}": tensor for name, tensor in folders.weights().items()}
    folders.write_weights(folder, tensors)
    checkpoint = load_checkpoint(folder)
    assert "action_head.bias" in checkpoint.weights
    assert any("older name" in note for note in checkpoint.notes)


def test_fields_that_lerobot_defaults_are_defaulted_and_noted(folder):
    folders.edit_json(folder / "config.json", lambda config: config.pop("dropout"))
    checkpoint = load_checkpoint(folder)
    assert checkpoint.config.dropout == 0.1
    assert any("dropout" in note for note in checkpoint.notes)


def test_training_fields_are_kept_as_they_were(folder):
    raw = load_checkpoint(folder).raw_config
    assert raw["repo_id"] == "someone/something"
    assert raw["optimizer_lr"] == 1e-5


def test_features_that_act_never_uses_are_noted(folder):
    def edit(config):
        config["input_features"]["observation.gripper"] = {"type": "STATE", "shape": [1]}

    folders.edit_json(folder / "config.json", edit)
    notes = load_checkpoint(folder).notes
    assert any(
        "'observation.gripper' (STATE) is declared, but ACT never uses it" in n for n in notes
    )


def test_a_rename_step_is_kept_and_noted(folder):
    def edit(content):
        content["steps"][0]["config"]["rename_map"] = {"observation.joints": STATE}

    folders.edit_json(folder / folders.PRE, edit)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.renames == {"observation.joints": STATE}
    assert any("renames observations" in note for note in checkpoint.notes)


def test_steps_are_found_by_name_wherever_they_stand(folder):
    def edit(content):
        content["steps"] = [content["steps"][3], content["steps"][2]]

    folders.edit_json(folder / folders.PRE, edit)
    assert load_checkpoint(folder).normalization.keys() == {STATE, ENV, "action"}


def test_the_processor_files_mode_wins_over_the_configs(folder):
    def edit(config):
        config["normalization_mapping"]["STATE"] = "MIN_MAX"

    folders.edit_json(folder / "config.json", edit)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.normalization[STATE].mode is NormalizationMode.MEAN_STD
    assert any("LeRobot obeys the latter" in note for note in checkpoint.notes)


def test_flat_image_statistics_are_read_per_channel(camera_folder):
    """LeRobot 0.6.1 reshapes them the same way."""
    from safetensors.torch import load_file, save_file

    path = camera_folder / folders.PRE_STATE
    stats = {name: tensor.flatten().clone() for name, tensor in load_file(path).items()}
    save_file(stats, path)
    checkpoint = load_checkpoint(camera_folder)
    assert checkpoint.normalization["observation.images.top"].shift.shape == (3, 1, 1)


def test_expected_shapes_are_the_written_out_ones(folder, camera_folder):
    assert expected_shapes(load_checkpoint(folder).config) == folders.shapes()
    cameras = {
        name: shape
        for name, shape in expected_shapes(load_checkpoint(camera_folder).config).items()
        if not name.startswith("backbone.")
    }
    assert cameras == folders.shapes(cameras=folders.CAMERAS, env=False)


def test_joint_names_can_be_given(folder):
    checkpoint = load_checkpoint(folder, joints=("lift", "grip"))
    assert checkpoint.config.joints == ("lift", "grip")
    with pytest.raises(CheckpointError, match="3 joint names for 2 action dimensions"):
        load_checkpoint(folder, joints=("a", "b", "c"))
