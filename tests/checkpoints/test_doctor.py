"""The doctor names what is wrong in plain words, never raises, and agrees with the loader."""

import io
import json
import random

import checkpoint_folders as folders
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from actlens.__main__ import main
from actlens.checkpoints import load_checkpoint
from actlens.doctor import Severity, diagnose
from actlens.errors import CheckpointError
from actlens.report.doctor import render, to_json
from actlens.report.plain import plain


def texts(diagnosis, severity):
    return [finding.what for finding in diagnosis.of(severity)]


def shown(diagnosis, width=100):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(render(diagnosis))
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("make", "release"),
    [
        (folders.write_processors_layout, "LeRobot 0.4 to 0.6"),
        (folders.write_buffers_layout, "LeRobot February 2025 to 0.3.3"),
        (folders.write_first_layout, "LeRobot 2024"),
    ],
)
def test_a_healthy_checkpoint_of_every_layout_is_called_healthy(make, release, tmp_path):
    diagnosis = diagnose(make(tmp_path / "p"))
    assert diagnosis.healthy
    assert texts(diagnosis, Severity.WARNING) == []
    assert diagnosis.layout.startswith(release)
    assert sum(diagnosis.parameters.values()) == sum(
        tensor.numel() for tensor in folders.weights().values()
    )
    assert len(diagnosis.sha256) == 64
    assert "Healthy." in shown(diagnosis)


def test_old_layouts_are_noted_because_lerobot_runs_them_unnormalised(tmp_path):
    notes = diagnose(folders.write_buffers_layout(tmp_path / "p")).of(Severity.NOTE)
    assert any("runs it un-normalised" in note.what for note in notes)
    assert any("save_checkpoint(load_checkpoint(old), new)" in note.fix for note in notes)


def test_two_cameras_of_one_size_could_be_swapped_in_silence(camera_folder):
    diagnosis = diagnose(camera_folder)
    assert diagnosis.healthy
    assert any("swapping their images" in note for note in texts(diagnosis, Severity.NOTE))
    assert diagnosis.parameters["backbone"] == 11_186_112


def test_facts_about_idle_parts_are_noted(folder):
    notes = texts(diagnose(folder), Severity.NOTE)
    assert any("VAE encoder only trains" in note for note in notes)
    assert any("self-attention is a constant" in note for note in notes)


def break_config(folder):
    folders.edit_json(folder / "config.json", lambda config: config.update(zzz=1))


def break_shapes(folder):
    folders.edit_json(folder / "config.json", lambda config: config.update(dim_feedforward=13))


def break_values(folder):
    tensors = folders.weights()
    tensors["action_head.bias"][0] = torch.nan
    folders.write_weights(folder, tensors)


def break_statistics(folder):
    path = folder / folders.PRE_STATE
    stats = {k: v for k, v in load_file(path).items() if "environment" not in k}
    save_file(stats, path)


def break_processor(folder):
    folders.edit_json(
        folder / folders.PRE, lambda content: content["steps"].append({"class": "a.B"})
    )


def break_sidecar(folder):
    (folder / "actlens.json").write_text('{"complete": false, "joints": []}')


def break_weights(folder):
    (folder / "model.safetensors").write_bytes(b"nonsense")


def lose_weights(folder):
    (folder / "model.safetensors").unlink()


BREAKS = {
    break_config: ("config.json", "unknown config field 'zzz'"),
    break_shapes: ("weights", "wrong shape"),
    break_values: ("weights", "'action_head.bias' holds 1 values that are NaN"),
    break_statistics: ("normalisation", "'observation.environment_state' has no statistics"),
    break_processor: ("normalisation", "names the class 'a.B'"),
    break_sidecar: ("actlens.json", "was interrupted"),
    break_weights: ("weights", "model.safetensors"),
    lose_weights: ("weights", "has no model.safetensors"),
}


@pytest.mark.parametrize("damage", BREAKS, ids=lambda damage: damage.__name__)
def test_each_fault_is_an_error_where_it_is(damage, folder):
    where, what = BREAKS[damage]
    damage(folder)
    diagnosis = diagnose(folder)
    assert not diagnosis.healthy
    (error,) = diagnosis.of(Severity.ERROR)
    assert error.where == where
    assert what in error.what
    with pytest.raises(CheckpointError):
        load_checkpoint(folder)


def test_several_faults_are_all_found_at_once(folder):
    break_values(folder)
    break_statistics(folder)
    break_sidecar(folder)
    assert {error.where for error in diagnose(folder).of(Severity.ERROR)} == {
        "weights",
        "normalisation",
        "actlens.json",
    }


def test_statistics_of_joints_that_never_moved_are_warned_about(folder):
    for path in (folder / folders.PRE_STATE, folder / folders.POST_STATE):
        stats = load_file(path)
        stats["observation.state.std"][1] = 0
        save_file(stats, path)
    (warning,) = diagnose(folder).of(Severity.WARNING)
    assert "Components [1] of 'observation.state' never moved" in warning.what


def test_image_statistics_in_bytes_are_warned_about(camera_folder):
    for path in (camera_folder / folders.PRE_STATE, camera_folder / folders.POST_STATE):
        stats = load_file(path)
        stats["observation.images.top.mean"].fill_(120.0)
        save_file(stats, path)
    (warning,) = diagnose(camera_folder).of(Severity.WARNING)
    assert "look like pixels of 0 to 255" in warning.what


def test_weight_matrices_of_zeros_are_warned_about(folder):
    tensors = folders.weights()
    tensors["encoder.layers.1.linear1.weight"].zero_()
    folders.write_weights(folder, tensors)
    (warning,) = diagnose(folder).of(Severity.WARNING)
    assert "'encoder.layers.1.linear1.weight'" in warning.what


def test_mixed_dtypes_are_noted(folder):
    tensors = folders.weights()
    tensors["action_head.weight"] = tensors["action_head.weight"].half()
    folders.write_weights(folder, tensors)
    notes = texts(diagnose(folder), Severity.NOTE)
    assert any("different dtypes" in note for note in notes)


@pytest.fixture(scope="module")
def original(tmp_path_factory, camera_weights):
    state = folders.original_state({k: v.float() for k, v in camera_weights.items()})
    return folders.write_original(tmp_path_factory.mktemp("original"), state)


def test_an_original_without_camera_names_is_examined_with_made_up_ones(original):
    diagnosis = diagnose(original, n_heads=2, image_size=(64, 96))
    assert diagnosis.healthy
    assert diagnosis.layout.startswith("original ACT")
    notes = texts(diagnosis, Severity.NOTE)
    assert any("does not say its camera names" in note for note in notes)
    assert any("numbers are dead: decoder layers 1 to 6" in note for note in notes)


def test_an_original_with_camera_names_and_all_layers_has_no_dead_ones(camera_weights, tmp_path):
    state = folders.original_state({k: v.float() for k, v in camera_weights.items()}, trained=7)
    folder = folders.write_original(tmp_path / "fork", state)
    diagnosis = diagnose(folder, cameras=["top"], n_heads=2)
    assert diagnosis.healthy
    notes = texts(diagnosis, Severity.NOTE)
    assert any("all 7 decoder layers count" in note for note in notes)
    assert not any("made-up" in note or "are dead" in note for note in notes)


def test_dead_layers_of_an_original_counted_as_live_are_an_error(original):
    diagnosis = diagnose(original, cameras=["top"], n_heads=2, decoder_layers_used="all")
    (error,) = diagnosis.of(Severity.ERROR)
    assert "layers 1 to 6 of 7 were never trained" in error.what


def test_dead_layers_of_an_original_in_a_lerobot_folder_are_an_error(tmp_path):
    """Its seven layers taken over one by one: LeRobot would run them all."""
    folder = folders.write_processors_layout(tmp_path / "p", n_decoder_layers=7)
    tensors = folders.weights()
    for layer in range(1, 7):
        for name, shape in folders.decoder_layer(f"decoder.layers.{layer}").items():
            is_bias = name.endswith("bias") and "linear" not in name
            tensors[name] = torch.zeros(shape) if is_bias else torch.randn(shape)
    folders.write_weights(folder, tensors)
    (error,) = diagnose(folder).of(Severity.ERROR)
    assert (error.where, "layers 1 to 6 of 7 were never trained" in error.what) == ("decoder", True)
    with pytest.raises(CheckpointError, match="scramble every action"):
        load_checkpoint(folder)


def test_an_original_with_an_evil_pickle_is_an_error(tmp_path):
    folder = folders.write_original(tmp_path / "p", {"a": object})
    diagnosis = diagnose(folder)
    assert not diagnosis.healthy
    assert "nothing of it was run" in texts(diagnosis, Severity.ERROR)[0]


@pytest.mark.parametrize(
    "place", ["nowhere", "no/where/at/all", "\0", "x" * 5000, "~nobody-x/a", ""]
)
def test_places_without_a_checkpoint_are_an_error_finding(place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert not diagnose(place).healthy


def test_whatever_is_damaged_the_doctor_agrees_with_the_loader_and_never_raises(folder):
    """Random bytes of random files of a checkpoint, 100 times."""
    rng = random.Random(0)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    original = {path: path.read_bytes() for path in files}
    refused = 0
    for _ in range(100):
        path = rng.choice(files)
        damaged = bytearray(original[path])
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])]))
        diagnosis = diagnose(folder)
        try:
            load_checkpoint(folder)
        except CheckpointError:
            refused += 1
            assert not diagnosis.healthy
        else:
            assert diagnosis.healthy
        shown(diagnosis)
        path.write_bytes(original[path])
    assert refused > 30


def test_names_from_files_cannot_command_the_terminal(folder):
    hostile = "\x1b]0;owned\x07[red]x[/oops]\x9b2J\u202eabc"
    folders.edit_json(folder / "config.json", lambda config: config.update({hostile: 1}))
    text = shown(diagnose(folder))
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert "\u202e" not in text
    assert "[red]x[/oops]" in text
    json.loads(to_json(diagnose(folder)))


def test_a_hostile_path_cannot_command_the_terminal(tmp_path, monkeypatch):
    place = tmp_path / "\x1b]0;owned\x07"
    folders.write_processors_layout(place)
    assert "\x1b" not in shown(diagnose(place))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a\x1b[31mb", "a[31mb"), ("a\nb", "a\nb"), ("\u200b\u202ex\ud800", "x"), ("ü→", "ü→")],
)
def test_plain_text_has_no_control_characters(text, expected):
    assert plain(text) == expected
    assert len(plain("x" * 99, limit=10)) == 10


def test_the_command_says_healthy_with_exit_code_0(folder, capsys):
    assert main(["doctor", str(folder)]) == 0
    assert "Healthy." in capsys.readouterr().out


def test_the_command_says_refused_with_exit_code_3(folder, capsys):
    break_values(folder)
    assert main(["doctor", str(folder)]) == 3
    assert "Refused: 1 error." in capsys.readouterr().out


def test_options_of_an_original_act_are_refused_where_the_config_speaks(folder, capsys):
    assert main(["doctor", str(folder), "--n-heads", "4", "--cameras", "top"]) == 3
    assert "config.json says its cameras, n_heads" in " ".join(capsys.readouterr().out.split())


def test_the_command_is_named_as_it_is_called(capsys):
    with pytest.raises(SystemExit):
        main(["doctor"])
    assert "python -m actlens doctor --help" in capsys.readouterr().err


def test_the_command_prints_json_for_programs(folder, capsys):
    break_values(folder)
    assert main(["doctor", str(folder), "--json"]) == 3
    content = json.loads(capsys.readouterr().out)
    assert content["healthy"] is False
    assert any(finding["severity"] == "error" for finding in content["findings"])


@pytest.mark.parametrize("arguments", [[], ["doctor"], ["doctor", "x", "--jsn"], ["cure", "x"]])
def test_bad_use_has_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
