"""`python -m experiments.generalization`, on a tiny policy and few episodes."""

import json

import pandas as pd
import pytest
from PIL import Image
from report_pages import read_page

from actlens.sim.series import pack
from experiments.generalization import main
from experiments.series import main as series
from tests.experiments.test_patching_command import save_tiny_policy
from tests.sim.conftest import renderer  # noqa: F401  a fixture: skips where nothing can be drawn

DATA = ["--dataset.repo-id", "so101-pick-cube", "--dataset.episodes", *map(str, range(8))]
UNSEEN = ["--unseen.repo-id", "so101-pick-cube-unseen", "--unseen.episodes"]
UNSEEN += [*map(str, (0, 1, 30, 31, 60, 61))]
SMALL = ["--frames", "0", "25"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "policy"
    return f"--policy.path={save_tiny_policy(folder, ('top',), (24, 32), chunk=45)}"


def test_a_run_reports_errors_and_doses_and_draws_both(policy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([policy, *DATA, *UNSEEN, *SMALL, "--output-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    flat = " ".join(said.split())
    for expected in ("how far beyond", "Off the expert, frame 0", "Closed loop, % lifted"):
        assert expected in flat
    indices = pd.read_csv(tmp_path / "indices.csv")
    assert set(indices.region) == {"new places", "held-out cells", "strip", "between", "all"}
    assert len(pd.read_csv(tmp_path / "unseen_episodes.csv")) == 6
    assert len(pd.read_csv(tmp_path / "demonstrated_episodes.csv")) == 8
    for name in ("map.png", "doses.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300
    assert (tmp_path / "provenance.json").is_file()
    assert read_page(tmp_path).tags.count("table") > 1


def test_rollouts_are_by_cell(
    renderer,  # noqa: F811
    policy,
    tmp_path,
    capsys,
):
    flags = ["--rollout", "1", "--json", "--output-dir", str(tmp_path)]
    assert main([policy, *DATA, *UNSEEN, *SMALL, *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["rollouts"]) == 44
    assert {row["region"]: row["rollouts"] for row in found["success"]} == {
        "new places": 27, "held-out cells": 9, "strip": 8
    }  # fmt: skip


def test_a_folder_without_a_finished_run_is_an_error(policy, tmp_path, capsys):
    flags = ["--series", str(tmp_path / "none"), "--output-dir", str(tmp_path / "out")]
    assert main([policy, *DATA, *UNSEEN, *SMALL, *flags]) == 3
    assert "no finished run" in " ".join(capsys.readouterr().err.split())


def test_frame_0_is_needed(policy, tmp_path, capsys):
    assert main([policy, *DATA, *UNSEEN, "--frames", "10", "--output-dir", str(tmp_path)]) == 3
    assert "Frame 0" in capsys.readouterr().err


def test_a_series_of_no_such_runs_is_an_error(tmp_path, capsys):
    assert series(["--folder", str(tmp_path), "--only", "nothing"]) == 3
    assert "No run" in capsys.readouterr().err


def test_records_can_be_packed_without_training(tmp_path, capsys):
    (tmp_path / "records").mkdir()
    for seed in (1, 0):
        record = {"arm": {"demonstrations": 5, "positions": None}, "training_seed": seed}
        (tmp_path / f"records/demonstrations-5-seed-{seed}.json").write_text(json.dumps(record))
    target = tmp_path / "packed.json.gz"
    assert series(["--folder", str(tmp_path), "--pack", str(target)]) == 0
    again = tmp_path / "again.json.gz"
    arm = {"demonstrations": 5, "positions": None}
    pack([{"arm": arm, "training_seed": seed} for seed in (0, 1)], again)
    assert target.read_bytes() == again.read_bytes()
