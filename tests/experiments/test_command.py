"""How commands end: exit codes, what is said, and what an interrupted run leaves."""

from pathlib import Path

import pytest
from rich.console import Console

from actlens.errors import SceneError
from experiments import keyvalue
from experiments.command import attempt, run_folder


def failing(error):
    def work():
        raise error

    return work


@pytest.fixture
def console():
    return Console(record=True, width=200)


def test_the_exit_code_says_how_it_ended(tmp_path, console):
    assert attempt(lambda: None, tmp_path, console) == 0
    assert attempt(failing(SceneError("no such scene\x1b[31m")), tmp_path, console) == 3
    said = console.export_text()
    assert "SceneError: no such scene" in said
    assert "\x1b" not in said
    with pytest.raises(ZeroDivisionError):  # a bug is no mistake of the user's
        attempt(failing(ZeroDivisionError()), tmp_path, console)


def test_an_interrupted_run_says_what_it_leaves(tmp_path, console):
    assert attempt(failing(KeyboardInterrupt()), tmp_path / "out", console) == 130
    assert attempt(failing(KeyboardInterrupt()), tmp_path, console) == 130
    said = console.export_text()
    assert "interrupted; nothing was written" in said
    assert f"what was finished is in {tmp_path}" in said


def test_files_go_where_they_are_told_to_or_under_runs():
    assert run_folder("x", Path("here")) == Path("here")
    assert run_folder("x", None).parent == Path("runs")
    assert run_folder("x", None).name.startswith("x-20")


def test_ending_the_rollouts_keeps_what_was_found_before(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(keyvalue, "steer_claims", lambda *_, **__: failing(KeyboardInterrupt())())
    words = ["--dataset.repo-id", "so101-pick-cube", "--dataset.episodes", "0", "1", "2"]
    words += ["--frames", "1", "--value-scenes", "2", "--show", "1", "--draws", "9"]
    assert keyvalue.main([*words, "--rollout", "1", "--output-dir", str(tmp_path)]) == 130
    assert (tmp_path / "neurons.parquet").is_file()
    assert (tmp_path / "provenance.json").is_file()
    assert "what does the MLP remember?" in capsys.readouterr().out
