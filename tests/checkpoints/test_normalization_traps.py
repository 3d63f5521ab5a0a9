"""What LeRobot runs un-normalised in silence is refused here, with the way to mend it."""

import checkpoint_folders as folders
import pytest
import torch
from checkpoint_folders import ENV, POST, POST_STATE, PRE, PRE_STATE, STATE
from safetensors.torch import load_file, save_file

from actlens.checkpoints import load_checkpoint
from actlens.errors import CheckpointError, UnsafeFileError

SIDE = "observation.images.side_cam"
MANGLED = "observation.images.side.cam"


def edit_statistics(path, edit):
    stats = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(stats)
    save_file(stats, path)


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    return str(caught.value)


@pytest.mark.parametrize("key", [STATE, ENV])
def test_missing_statistics_of_an_input_are_refused(key, folder):
    def drop(stats):
        for name in [name for name in stats if name.startswith(key + ".")]:
            del stats[name]

    edit_statistics(folder / PRE_STATE, drop)
    message = refusal(folder)
    assert PRE_STATE in message
    assert f"{key!r} has no statistics, so LeRobot passes it un-normalised" in message


def test_missing_statistics_of_the_action_are_refused_where_actions_are_undone(folder):
    edit_statistics(
        folder / POST_STATE, lambda stats: [stats.pop(n) for n in list(stats) if n[0] == "a"]
    )
    message = refusal(folder)
    assert POST_STATE in message
    assert "'action' has no statistics" in message


def test_one_missing_statistic_is_named(folder):
    edit_statistics(folder / PRE_STATE, lambda stats: stats.pop(f"{STATE}.std"))
    assert "MEAN_STD needs mean and std, but std is missing" in refusal(folder)


def test_a_camera_name_that_the_migration_script_mangled_is_refused_with_both_names(camera_folder):
    for path in (camera_folder / PRE_STATE, camera_folder / POST_STATE):
        edit_statistics(
            path,
            lambda stats: [
                stats.__setitem__(name.replace(SIDE, MANGLED), stats.pop(name))
                for name in list(stats)
                if name.startswith(SIDE)
            ],
        )
    message = refusal(camera_folder)
    assert repr(SIDE) in message
    assert repr(MANGLED) in message
    assert f"rename it to {SIDE!r} in {PRE_STATE}" in message


def test_a_mangled_name_in_the_processors_features_is_refused_too(camera_folder):
    def edit(content):
        features = content["steps"][3]["config"]["features"]
        features[MANGLED] = features.pop(SIDE)

    folders.edit_json(camera_folder / PRE, edit)
    message = refusal(camera_folder)
    assert f"has no feature {SIDE!r}" in message
    assert repr(MANGLED) in message


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("statistic", ["mean", "std"])
def test_statistics_that_were_never_filled_in_are_refused(statistic, value, folder):
    edit_statistics(folder / PRE_STATE, lambda stats: stats[f"{STATE}.{statistic}"].fill_(value))
    assert f"{statistic} is not finite, so the statistics were never filled in" in refusal(folder)


def test_never_filled_buffers_of_the_old_layout_are_refused(tmp_path):
    folder = folders.write_buffers_layout(tmp_path / "p")
    edit_statistics(
        folder / "model.safetensors",
        lambda tensors: tensors["normalize_inputs.buffer_observation_state.std"].fill_(torch.inf),
    )
    assert "std is not finite" in refusal(folder)


def test_old_buffers_of_no_declared_feature_are_refused(tmp_path):
    folder = folders.write_buffers_layout(tmp_path / "p")
    edit_statistics(
        folder / "model.safetensors",
        lambda tensors: tensors.__setitem__(
            "normalize_inputs.buffer_observation_joints.mean", torch.zeros(3)
        ),
    )
    assert "is a statistic of no declared feature" in refusal(folder)


def test_missing_old_buffers_are_refused(tmp_path):
    names = {STATE: ("mean", "std"), "action": ("mean", "std")}
    folder = folders.write_buffers_layout(tmp_path / "p", names=names)
    assert "MIN_MAX needs min and max, but min, max is missing" in refusal(folder)


def test_old_targets_and_outputs_with_different_statistics_are_refused(tmp_path):
    folder = folders.write_buffers_layout(tmp_path / "p")
    edit_statistics(
        folder / "model.safetensors",
        lambda tensors: tensors["unnormalize_outputs.buffer_action.mean"].add_(1),
    )
    assert "other statistics than they were trained with" in refusal(folder)


def test_pre_and_postprocessor_with_different_action_statistics_are_refused(folder):
    edit_statistics(folder / POST_STATE, lambda stats: stats["action.mean"].add_(1))
    assert "mean of 'action' differs from the preprocessor's" in refusal(folder)


def test_pre_and_postprocessor_with_different_epsilons_are_refused(folder):
    folders.edit_json(folder / POST, lambda content: content["steps"][0]["config"].update(eps=1e-3))
    assert "make them equal" in refusal(folder)


def test_a_policy_saved_without_its_processors_is_refused(folder):
    for name in (PRE, POST, PRE_STATE, POST_STATE):
        (folder / name).unlink()
    message = refusal(folder)
    assert "holds no normalisation" in message
    assert "Copy the processor files" in message


def test_a_policy_that_wants_no_normalisation_needs_no_processors(folder):
    for name in (PRE, POST, PRE_STATE, POST_STATE):
        (folder / name).unlink()
    identity = dict.fromkeys(("STATE", "ENV", "VISUAL", "ACTION"), "IDENTITY")
    folders.edit_json(
        folder / "config.json", lambda config: config.update(normalization_mapping=identity)
    )
    assert load_checkpoint(folder).normalization.keys() == {STATE, ENV, "action"}


@pytest.mark.parametrize("name", [PRE, POST, PRE_STATE, POST_STATE])
def test_half_a_set_of_processor_files_is_refused(name, folder):
    (folder / name).unlink()
    assert name in refusal(folder)


def test_statistics_of_another_size_are_refused(folder):
    edit_statistics(
        folder / PRE_STATE, lambda stats: stats.update({f"{STATE}.mean": torch.zeros(4)})
    )
    assert "mean must have shape (3,), found (4,)" in refusal(folder)


def test_min_above_max_is_refused(folder):
    edit_statistics(folder / PRE_STATE, lambda stats: stats[f"{ENV}.min"].fill_(100.0))
    assert "min lies above max" in refusal(folder)


def test_statistics_in_both_places_are_refused(tmp_path):
    folder = folders.write_buffers_layout(tmp_path / "p")
    donor = folders.write_processors_layout(tmp_path / "donor")
    for name in (PRE, POST, PRE_STATE, POST_STATE):
        (donor / name).rename(folder / name)
    assert "beside processor files that hold them too" in refusal(folder)


def test_a_normaliser_that_leaves_a_feature_out_is_refused(folder):
    folders.edit_json(
        folder / PRE,
        lambda content: content["steps"][3]["config"].update(normalize_observation_keys=[ENV]),
    )
    assert f"normalize_observation_keys leaves out {STATE!r}" in refusal(folder)


def test_a_pipeline_without_its_normaliser_is_refused(folder):
    folders.edit_json(folder / PRE, lambda content: content["steps"].pop())
    assert "has no step 'normalizer_processor'" in refusal(folder)


def test_a_step_twice_is_refused(folder):
    folders.edit_json(folder / PRE, lambda content: content["steps"].append(content["steps"][3]))
    assert "has the step 'normalizer_processor' twice" in refusal(folder)


def test_renaming_after_normalising_is_refused(folder):
    def edit(content):
        content["steps"][0]["config"]["rename_map"] = {"a": STATE}
        content["steps"] = content["steps"][1:] + content["steps"][:1]

    folders.edit_json(folder / PRE, edit)
    assert "renames observations after it has normalised them" in refusal(folder)


@pytest.mark.parametrize("name", ["tokenizer_processor", "delta_action", "", None, 3, ["x"], {}])
def test_unknown_steps_are_refused_by_name(name, folder):
    folders.edit_json(
        folder / PRE, lambda content: content["steps"].append({"registry_name": name})
    )
    assert "unknown step" in refusal(folder)


@pytest.mark.parametrize(
    "path", ["os.system", "lerobot.processor.normalize_processor.NormalizerProcessorStep", "x", 7]
)
def test_a_step_that_names_a_class_is_refused_and_never_imported(path, folder, monkeypatch):
    import importlib

    def never(*arguments, **options):
        raise AssertionError("importlib was called")

    monkeypatch.setattr(importlib, "import_module", never)
    folders.edit_json(folder / POST, lambda content: content["steps"].insert(0, {"class": path}))
    with pytest.raises(UnsafeFileError, match="never imports code"):
        load_checkpoint(folder)
