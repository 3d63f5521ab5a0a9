"""What a run says about itself is true, and enough to repeat it."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import actlens
from actlens import provenance as module
from actlens.provenance import provenance, scenes_hash, sha256_of, write_json

needs_git = pytest.mark.skipif(
    shutil.which("git") is None and not os.environ.get("CI"), reason="git is not installed"
)


@dataclass(frozen=True)
class Options:
    dataset: Path
    seed: int = 3
    parts: tuple[str, ...] = ("a", "b")


def test_it_holds_versions_hashes_options_and_the_time(model, tmp_path):
    said = provenance(model, Options(tmp_path), seconds=1.26, facts={"tables": (Path("x"), 2)})
    assert said["actlens"] == actlens.__version__
    assert said["packages"]["torch"] == torch.__version__.split("+")[0]
    assert said["config"] == {"dataset": str(tmp_path), "seed": 3, "parts": ["a", "b"]}
    assert (said["seconds"], said["device"], said["dtype"]) == (1.3, "cpu", "float32")
    assert said["weights_sha256"] is None  # made in memory
    assert said["tables"] == ["x", 2]
    json.dumps(said)


def test_the_command_can_be_pasted_into_a_shell(model, monkeypatch):
    flags = ["--policy.path=my policies/a", "--note=it's", "--pairs=2"]
    monkeypatch.setattr(sys, "argv", ["patching.py", *flags])
    monkeypatch.setitem(
        sys.modules, "__main__", SimpleNamespace(__spec__=SimpleNamespace(name="experiments.x"))
    )
    command = provenance(model, {}, seconds=0, facts={})["command"]
    assert shlex.split(command) == ["python", "-m", "experiments.x", *flags]


def test_home_and_working_folder_are_left_out(model, monkeypatch, tmp_path):
    (tmp_path / "place").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.setattr(sys, "argv", ["x", f"--a={tmp_path}/home/b", f"--c={tmp_path}/place/d"])
    said = provenance(model, Options(tmp_path / "home" / "data"), seconds=0, facts={})
    assert said["command"].endswith("--a=b --c=d")
    assert said["config"]["dataset"] == "data"
    assert str(tmp_path) not in json.dumps(said)


def git(folder, *words):
    identity = ("-c", "user.name=x", "-c", "user.email=x@y", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", "-C", folder, *identity, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with a package `actlens` in it, which the tested module takes for its own."""
    package = tmp_path / "actlens"
    package.mkdir()
    (package / "__init__.py").write_text("a = 1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    monkeypatch.setattr(
        module, "actlens", SimpleNamespace(__file__=str(package / "__init__.py"), __version__="0")
    )
    return tmp_path


@needs_git
def test_the_commit_is_marked_where_files_were_changed(model, checkout):
    commit = lambda: provenance(model, {}, seconds=0, facts={})["commit"]
    head = git(checkout, "rev-parse", "HEAD")
    assert commit() == head
    (checkout / "notes").touch()  # not part of the program
    assert commit() == head
    (checkout / "actlens" / "__init__.py").write_text("a = 2\n")
    assert commit() == f"{head} with changes"


@needs_git
def test_the_commit_of_a_repository_around_the_environment_is_not_ours(
    model, checkout, monkeypatch
):
    installed = checkout / ".venv/lib/site-packages/actlens/__init__.py"
    monkeypatch.setattr(
        module, "actlens", SimpleNamespace(__file__=str(installed), __version__="0")
    )
    installed.parent.mkdir(parents=True)
    installed.touch()
    assert provenance(model, {}, seconds=0, facts={})["commit"] is None


def test_without_git_there_is_no_commit(model, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance(model, {}, seconds=0, facts={})["commit"] is None


def test_the_hash_of_scenes_sees_every_value_key_and_their_order():
    one, two = {"a": torch.zeros(2), "b": torch.ones(1)}, {"a": torch.ones(2)}
    hashes = {
        scenes_hash(scenes)
        for scenes in (
            [one], [two], [one, two], [two, one], [{"a": torch.zeros(2), "c": torch.ones(1)}],
        )
    }  # fmt: skip
    assert len(hashes) == 5
    assert scenes_hash([one]) == scenes_hash([dict(reversed(one.items()))])


def test_a_files_hash_is_that_of_its_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x").startswith("ba7816bf8f01cfea")  # FIPS 180-4's example


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "facts.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
