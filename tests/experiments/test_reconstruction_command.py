"""`python -m experiments.reconstruction`, on a tiny policy and few episodes."""

import json

import pandas as pd
import pytest

from experiments.reconstruction import main
from tests.experiments.test_patching_command import save_tiny_policy

DATA = ["--dataset.repo-id", "so101-pick-cube", "--dataset.episodes", *map(str, range(8))]
UNSEEN = ["--unseen.repo-id", "so101-pick-cube-unseen", "--unseen.episodes"]
UNSEEN += [*map(str, (0, 1, 30, 31, 60, 61))]
SMALL = ["--size", "12", "16"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return f"--policy.path={save_tiny_policy(tmp_path_factory.mktemp('tiny') / 'policy')}"


def test_a_run_reports_claims_pictures_places_and_controls(policy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([policy, *DATA, *UNSEEN, *SMALL, "--output-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    flat = " ".join(said.split())
    for expected in (
        "what does the action vector hold?",
        "holds all of the environment",
        "Pictures, frame 0: drawn",
        "Pictures, frame 0, taught",
        "Pictures, 40% of the episode",
        "beside its controls",
    ):
        assert expected in flat
    state = pd.read_csv(tmp_path / "state.csv")
    assert set(state.scenes) == {"demonstrations", "new places", "held-out cells", "strip beyond"}
    assert set(state.moment) == {"frame 0", "40% of the episode"}
    pictures = pd.read_csv(tmp_path / "pictures.csv")
    assert {"mean", "joint state", "what can be drawn", "action vector"} <= set(pictures.source)
    exact = pictures[pictures.source == "real picture"]
    assert (exact.explained == 1).all()
    assert (tmp_path / "provenance.json").is_file()
    assert (tmp_path / "reconstructions.png").stat().st_size > 1000
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png" in page
    assert "held-out cells" in page


def test_json_and_no_unseen_scenes(policy, tmp_path, capsys):
    options = [policy, *DATA, *SMALL, "--quick", "--json", "--output-dir", str(tmp_path)]
    assert main(options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["claims"] == found["cubes"] == []
    assert {row["scenes"] for row in found["state"]} == {"demonstrations"}
    assert {row["moment"] for row in found["pictures"]} == {"frame 0"}


def test_moments_and_positions_that_are_not_there_are_errors(policy, tmp_path, capsys):
    folder = tmp_path / "out"
    for options, said in (
        (["--later", "2"], "between 0 and 1"),
        (["--query", "99"], "position 99"),
    ):
        assert main([policy, *DATA, *options, "--output-dir", str(folder)]) == 3
        assert said in " ".join(capsys.readouterr().err.split())
    assert not folder.exists()
