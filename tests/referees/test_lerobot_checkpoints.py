"""Checkpoints between actlens and LeRobot 0.4.4 itself: read, written, converted, refused."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from actlens.checkpoints import expected_shapes, load_checkpoint, save_checkpoint
from actlens.doctor import diagnose
from actlens.errors import CheckpointError
from actlens.normalization import Normalizer

CASES = [
    *("mean_std", "min_max", "quantiles", "quantile10", "seven_layers", "bfloat16", "ensemble"),
]


@pytest.fixture(scope="module")
def written(run_lerobot, tmp_path_factory):
    """A folder with a LeRobot checkpoint for each case, and what LeRobot computed with it."""
    out = tmp_path_factory.mktemp("checkpoints")
    run_lerobot("lerobot_checkpoints.py", "write", out)
    return out


@pytest.mark.parametrize("name", CASES)
def test_lerobots_own_checkpoint_loads_with_every_bit(name, written):
    checkpoint = load_checkpoint(written / name)
    theirs = load_file(written / name / "model.safetensors")
    assert {f"model.{key}" for key in checkpoint.weights} == theirs.keys()
    for key, tensor in checkpoint.weights.items():
        assert tensor.dtype == theirs[f"model.{key}"].dtype
        assert torch.equal(tensor, theirs[f"model.{key}"]), key
    shapes = {key: tuple(tensor.shape) for key, tensor in checkpoint.weights.items()}
    assert shapes == expected_shapes(checkpoint.config)
    assert diagnose(written / name).healthy


@pytest.mark.parametrize("name", CASES)
def test_normalisation_is_lerobots_bit_for_bit(name, written):
    normalizer = Normalizer(load_checkpoint(written / name).normalization)
    saved = load_file(written / f"{name}.safetensors")
    compared = 0
    for key, raw in saved.items():
        if key.startswith("raw."):
            feature = key.removeprefix("raw.")
            theirs = saved[f"normalized.{feature}"]
            assert torch.equal(normalizer.normalize(feature, raw[None]), theirs), feature
            compared += 1
    assert compared >= 2
    undone = normalizer.unnormalize("action", saved["actions.normalized"])
    assert torch.equal(undone, saved["actions.raw"])


def to_old_layout(folder, target, *, keys):
    """The same policy as LeRobot 0.3.3 kept it: statistics among the weights."""
    target.mkdir()
    config = json.loads((folder / "config.json").read_text())
    for field in ("use_peft", "pretrained_path"):
        del config[field]
    (target / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    stats = load_file(next(folder.glob("policy_preprocessor*.safetensors")))
    for key in keys:
        spelt = key.replace(".", "_")
        steps = (
            ("normalize_targets", "unnormalize_outputs")
            if key == "action"
            else ("normalize_inputs",)
        )
        for step in steps:
            for name in ("mean", "std"):
                weights[f"{step}.buffer_{spelt}.{name}"] = stats[f"{key}.{name}"].clone()
    save_file(weights, target / "model.safetensors")
    return target


ALL_KEYS = (
    *("observation.state", "observation.images.top", "observation.images.side_cam", "action"),
)


@pytest.fixture(scope="module")
def verdicts(written, run_lerobot, tmp_path_factory):
    """What LeRobot says of folders written here, by name: `equal` to its own, or what is not."""
    places = tmp_path_factory.mktemp("saved")
    pairs = {name: written / name for name in CASES}
    for name, folder in pairs.items():
        save_checkpoint(load_checkpoint(folder), places / name)
    old = to_old_layout(written / "mean_std", places / "before_0.4", keys=ALL_KEYS)
    save_checkpoint(load_checkpoint(old), places / "converted")
    changed = load_checkpoint(written / "min_max")
    weights = {name: tensor.clone() for name, tensor in changed.weights.items()}
    weights["action_head.bias"][0] += 1e-6
    save_checkpoint(replace(changed, weights=weights), places / "changed")
    pairs |= {"converted": written / "mean_std", "changed": written / "min_max"}
    arguments = [place for name in pairs for place in (pairs[name], places / name)]
    said = run_lerobot("lerobot_checkpoints.py", "compare", *arguments)
    return dict(line.split(": ", 1) for line in said.splitlines() if ": " in line)


@pytest.mark.parametrize("name", CASES)
def test_a_saved_copy_loads_in_lerobot_strictly_with_equal_actions(name, verdicts):
    assert verdicts[name] == "equal"


def test_a_policy_of_the_old_layout_converted_here_acts_in_lerobot_as_it_did(verdicts):
    assert verdicts["converted"] == "equal"


def test_the_comparison_sees_a_change_in_the_last_digits(verdicts):
    """The control for the verdicts above."""
    assert verdicts["changed"] == "weight model.action_head.bias"


def test_what_lerobots_migration_makes_of_an_underscore_is_refused_by_both_names(
    written, run_lerobot, tmp_path
):
    """The trap itself, set by LeRobot's script: the camera would pass un-normalised in silence."""
    old = to_old_layout(written / "mean_std", tmp_path / "old", keys=ALL_KEYS)
    run_lerobot("lerobot_checkpoints.py", "migrate", old, tmp_path / "new")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "new")
    assert "'observation.images.side_cam'" in str(caught.value)
    assert "'observation.images.side.cam'" in str(caught.value)
    assert not diagnose(tmp_path / "new").healthy
