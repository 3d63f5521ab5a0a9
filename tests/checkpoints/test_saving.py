"""A saved checkpoint loses no bit, never half-exists, and never replaces somebody else's files."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import checkpoint_folders as folders
import pytest
import torch
from checkpoint_folders import ENV, POST, POST_STATE, PRE, PRE_STATE, STATE
from safetensors.torch import load_file

from actlens.checkpoints import load_checkpoint, save_checkpoint, writing
from actlens.errors import CheckpointError
from actlens.normalization import NormalizationMode

LAYOUTS = {
    "0.4": folders.write_processors_layout,
    "0.3": folders.write_buffers_layout,
    "2024": folders.write_first_layout,
}


@pytest.fixture(autouse=True)
def fast_disks(monkeypatch):
    """Waiting for the disk is no part of what is tested here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def bits(tensor):
    return tensor.contiguous().view(torch.uint8) if tensor.ndim else tensor


def assert_same(first, second):
    assert first.config == second.config
    assert first.weights.keys() == second.weights.keys()
    for name, tensor in first.weights.items():
        assert tensor.dtype == second.weights[name].dtype
        assert torch.equal(bits(tensor), bits(second.weights[name])), name
    assert first.statistics.keys() == second.statistics.keys()
    for key, entries in first.statistics.items():
        assert entries.keys() == second.statistics[key].keys()
        for name, tensor in entries.items():
            assert tensor.dtype == second.statistics[key][name].dtype
            assert torch.equal(tensor, second.statistics[key][name])
    assert {key: affine.mode for key, affine in first.normalization.items()} == {
        key: affine.mode for key, affine in second.normalization.items()
    }
    assert (first.eps, first.renames) == (second.eps, second.renames)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_load_save_load_is_bit_exact(layout, tmp_path):
    first = load_checkpoint(LAYOUTS[layout](tmp_path / "p"))
    second = load_checkpoint(save_checkpoint(first, tmp_path / "saved"))
    assert_same(first, second)
    third = load_checkpoint(save_checkpoint(second, tmp_path / "again"))
    assert third.raw_config == second.raw_config


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes_are_kept(dtype, folder, tmp_path):
    folders.write_weights(folder, folders.weights(dtype))
    first = load_checkpoint(folder)
    assert_same(first, load_checkpoint(save_checkpoint(first, tmp_path / "saved")))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_edit_too_small_for_16_bits_is_saved_whole_and_the_rest_as_it_was(
    dtype, folder, tmp_path
):
    from actlens.model.act import HookedACT

    folders.write_weights(folder, folders.weights(dtype))
    model = HookedACT.from_pretrained(folder)
    with torch.no_grad():
        model.decoder[0].mlp.W_out.mul_(1 + 1e-6)
    again = HookedACT.from_pretrained(model.save_pretrained(tmp_path / "edited"))
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    kept = {name for name, tensor in again.checkpoint.weights.items() if tensor.dtype is dtype}
    assert again.checkpoint.weights.keys() - kept == {"decoder.layers.0.linear2.weight"}


def test_a_float64_network_keeps_every_digit_of_float64_weights(folder):
    from actlens.model.act import HookedACT

    checkpoint = load_checkpoint(folder)
    exact = {name: tensor.double() * (1 + 1e-12) for name, tensor in checkpoint.weights.items()}
    model = HookedACT.from_checkpoint(replace(checkpoint, weights=exact), dtype=torch.float64)
    assert torch.equal(model.action_head.weight, exact["action_head.weight"])


def test_a_saved_lerobot_checkpoint_has_lerobots_own_bytes(camera_folder, tmp_path):
    saved = save_checkpoint(load_checkpoint(camera_folder), tmp_path / "saved")
    for name in ("model.safetensors", PRE_STATE, POST_STATE):
        assert (saved / name).read_bytes() == (camera_folder / name).read_bytes(), name
    for name in (PRE, POST):
        assert json.loads((saved / name).read_text()) == json.loads(
            (camera_folder / name).read_text()
        )


def test_config_keeps_lerobots_fields_and_drops_only_those_that_say_nothing(folder, tmp_path):
    saved = save_checkpoint(load_checkpoint(folder), tmp_path / "saved")
    before = json.loads((folder / "config.json").read_text())
    after = json.loads((saved / "config.json").read_text())
    for field in ("use_peft", "pretrained_path"):
        del before[field]
    assert after == before
    assert next(iter(after)) == "type" or after["type"] == "act"


def test_a_pinned_base_policy_is_kept(folder, tmp_path):
    folders.edit_json(folder / "config.json", lambda c: c.update(pretrained_path="a/b"))
    saved = save_checkpoint(load_checkpoint(folder), tmp_path / "saved")
    assert json.loads((saved / "config.json").read_text())["pretrained_path"] == "a/b"


def test_features_that_act_never_uses_are_kept(folder, tmp_path):
    unused = {"type": "STATE", "shape": [1]}
    folders.edit_json(
        folder / "config.json", lambda c: c["input_features"].update({"observation.extra": unused})
    )
    saved = save_checkpoint(load_checkpoint(folder), tmp_path / "saved")
    assert (
        json.loads((saved / "config.json").read_text())["input_features"]["observation.extra"]
        == unused
    )


def test_obsolete_fields_of_2024_are_not_written(tmp_path):
    saved = save_checkpoint(
        load_checkpoint(folders.write_first_layout(tmp_path / "p")), tmp_path / "saved"
    )
    config = json.loads((saved / "config.json").read_text())
    assert not any("shapes" in field or "modes" in field for field in config)
    assert config["input_features"][ENV] == {"type": "ENV", "shape": [4]}


def test_joint_names_and_renames_come_back(folder, tmp_path):
    first = load_checkpoint(folder, joints=("lift", "grip"))
    first = replace(first, renames={"observation.joints": STATE})
    again = load_checkpoint(save_checkpoint(first, tmp_path / "saved"))
    assert again.config.joints == ("lift", "grip")
    assert again.renames == {"observation.joints": STATE}


def test_weights_that_share_memory_are_saved(folder, tmp_path):
    first = load_checkpoint(folder)
    shared = torch.randn(8)
    weights = {**first.weights, "decoder.norm.weight": shared, "decoder.norm.bias": shared}
    again = load_checkpoint(save_checkpoint(replace(first, weights=weights), tmp_path / "saved"))
    assert torch.equal(again.weights["decoder.norm.weight"], shared)
    assert torch.equal(again.weights["decoder.norm.bias"], shared)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda w: w.pop("action_head.bias"), "1 missing"),
        (lambda w: w.update(extra=torch.zeros(1)), "1 unexpected"),
        (lambda w: w.update({"action_head.bias": torch.zeros(3)}), "wrong shape"),
        (lambda w: w.update({"action_head.bias": torch.tensor([0, torch.nan])}), "NaN or infinite"),
    ],
    ids=["missing", "extra", "shape", "nan"],
)
def test_weights_that_lerobot_could_not_load_are_not_saved(change, match, folder, tmp_path):
    first = load_checkpoint(folder)
    weights = dict(first.weights)
    change(weights)
    with pytest.raises(CheckpointError, match=match):
        save_checkpoint(replace(first, weights=weights), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_modes_that_lerobots_files_cannot_hold_are_refused(camera_folder, tmp_path):
    first = load_checkpoint(camera_folder)
    key = "observation.images.top"
    changed = replace(first.normalization[key], mode=NormalizationMode.IDENTITY)
    normalization = {**first.normalization, key: changed}
    with pytest.raises(CheckpointError, match="one mode for all of a kind"):
        save_checkpoint(replace(first, normalization=normalization), tmp_path / "saved")


def test_missing_normalisation_or_statistics_are_refused(folder, tmp_path):
    first = load_checkpoint(folder)
    without = {k: v for k, v in first.normalization.items() if k != STATE}
    with pytest.raises(CheckpointError, match=r"no normalisation for 'observation.state'"):
        save_checkpoint(replace(first, normalization=without), tmp_path / "saved")
    without = {k: v for k, v in first.statistics.items() if k != STATE}
    with pytest.raises(CheckpointError, match=r"no statistics for 'observation.state'"):
        save_checkpoint(replace(first, statistics=without), tmp_path / "saved")


def test_a_map_that_its_statistics_do_not_give_is_refused(folder, tmp_path):
    first = load_checkpoint(folder)
    shifted = replace(first.normalization[STATE], shift=first.normalization[STATE].shift + 1)
    changed = replace(first, normalization={**first.normalization, STATE: shifted})
    with pytest.raises(CheckpointError, match="is not what its statistics say"):
        save_checkpoint(changed, tmp_path / "saved")


def test_old_ranges_are_saved_with_a_note_about_their_epsilon(tmp_path):
    first = load_checkpoint(folders.write_buffers_layout(tmp_path / "p"))
    assert any("adds 1e-8 to every MIN_MAX range" in note for note in first.notes)
    again = load_checkpoint(save_checkpoint(first, tmp_path / "saved"))
    close = torch.isclose(again.normalization[ENV].scale, first.normalization[ENV].scale, atol=1e-8)
    assert close.all()


def test_a_folder_of_somebody_else_is_not_touched(folder, tmp_path):
    checkpoint = load_checkpoint(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match="overwrite=True"):
        save_checkpoint(checkpoint, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file"):
        save_checkpoint(checkpoint, tmp_path / "file")


def test_own_folders_are_replaced_and_others_if_asked(folder, tmp_path):
    checkpoint = load_checkpoint(folder)
    saved = save_checkpoint(checkpoint, tmp_path / "saved")
    changed = replace(checkpoint, weights={k: v + 1 for k, v in checkpoint.weights.items()})
    assert_same(load_checkpoint(save_checkpoint(changed, saved)), changed)
    (folder / "train_config.json").write_text("{}")
    assert_same(load_checkpoint(save_checkpoint(changed, folder, overwrite=True)), changed)
    assert (folder / "train_config.json").exists()


def test_a_model_card_that_somebody_wrote_is_kept(folder, tmp_path):
    checkpoint = load_checkpoint(folder)
    saved = save_checkpoint(checkpoint, tmp_path / "saved")
    (saved / "README.md").write_text("My policy.")
    save_checkpoint(checkpoint, saved)
    assert (saved / "README.md").read_text() == "My policy."


def test_an_empty_folder_and_missing_parents_are_fine(folder, tmp_path):
    checkpoint = load_checkpoint(folder)
    (tmp_path / "empty").mkdir()
    save_checkpoint(checkpoint, tmp_path / "empty")
    save_checkpoint(checkpoint, tmp_path / "a/b/c")
    assert load_checkpoint(tmp_path / "a/b/c").config == checkpoint.config


def faults(monkeypatch, at):
    """Let the `at`-th writing or moving of a file fail; the count of all so far."""
    count = {"n": 0}

    def counted(original):
        def step(*arguments, **options):
            count["n"] += 1
            if count["n"] == at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*arguments, **options)

        return step

    monkeypatch.setattr(writing, "_write", counted(writing._write))
    monkeypatch.setattr(Path, "replace", counted(Path.replace))
    return count


def refusal(folder):
    """Why a folder is refused; nothing if it loads."""
    try:
        load_checkpoint(folder)
    except CheckpointError as error:
        return str(error)
    return ""


def count_steps(monkeypatch, save):
    with monkeypatch.context() as patch:
        count = faults(patch, at=None)
        save()
    return count["n"]


def test_a_failure_at_any_step_of_a_first_save_leaves_nothing(folder, tmp_path, monkeypatch):
    checkpoint = load_checkpoint(folder)
    steps = count_steps(monkeypatch, lambda: save_checkpoint(checkpoint, tmp_path / "probe"))
    assert steps == 9
    for at in range(1, steps + 1):
        target = tmp_path / "places" / str(at)
        with monkeypatch.context() as patch:
            faults(patch, at)
            with pytest.raises(CheckpointError, match="No space left on device"):
                save_checkpoint(checkpoint, target)
        assert not target.exists()
    assert list((tmp_path / "places").iterdir()) == []


def test_a_failure_at_any_step_of_a_replacement_is_never_a_mixture(folder, tmp_path, monkeypatch):
    """The old one whole, the new one whole, or a folder that says it was interrupted."""
    old = load_checkpoint(folder)
    new = replace(old, weights={name: tensor + 1 for name, tensor in old.weights.items()})
    probe = save_checkpoint(old, tmp_path / "probe")
    steps = count_steps(monkeypatch, lambda: save_checkpoint(new, probe))
    seen = set()
    for at in range(1, steps + 1):
        target = save_checkpoint(old, tmp_path / "places" / str(at))
        with monkeypatch.context() as patch:
            faults(patch, at)
            with pytest.raises(CheckpointError, match="No space left on device"):
                save_checkpoint(new, target)
        if outcome := refusal(target):
            assert "was interrupted" in outcome
        else:
            assert_same(load_checkpoint(target), old)
        seen.add(bool(outcome))
        assert_same(load_checkpoint(save_checkpoint(new, target)), new)
    assert seen == {True, False}
    assert len(list((tmp_path / "places").iterdir())) == steps


def test_a_read_only_place_is_refused(folder, tmp_path, monkeypatch):
    def refuse(self, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    checkpoint = load_checkpoint(folder)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        save_checkpoint(checkpoint, tmp_path / "saved")


def test_every_feature_of_both_processors_is_described(camera_folder, tmp_path):
    saved = save_checkpoint(load_checkpoint(camera_folder), tmp_path / "saved")
    config = json.loads((saved / "config.json").read_text())
    normalizer = json.loads((saved / PRE).read_text())["steps"][3]["config"]
    assert normalizer["features"] == config["input_features"] | config["output_features"]
    assert normalizer["norm_map"] == config["normalization_mapping"]
    assert "action.mean" in load_file(saved / PRE_STATE)
    assert (saved / "README.md").read_text().startswith("---\nlibrary_name: lerobot")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ('{"written_by": "actlens", "complete": true, "joints": ["a"]}', "names 1 joints"),
        ('{"written_by": "actlens", "complete": true, "joints": 3}', "must be a list of names"),
        ('{"written_by": "actlens", "complete": false, "joints": []}', "was interrupted"),
        ("{", "is not valid JSON"),
    ],
)
def test_a_damaged_sidecar_is_refused(content, match, folder):
    (folder / "actlens.json").write_text(content)
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(folder)
