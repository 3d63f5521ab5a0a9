"""`python -m experiments.probing`, on a tiny policy and few episodes."""

import json

import pandas as pd
import pytest
from report_pages import read_page

from experiments.probing import main
from tests.experiments.test_patching_command import save_tiny_policy

DATA = ["--dataset.repo-id", "so101-pick-cube", "--dataset.episodes", *map(str, range(10))]
UNSEEN = ["--unseen.repo-id", "so101-pick-cube-unseen", "--unseen.episodes"]
UNSEEN += [*map(str, (0, 1, 30, 31, 60, 61))]
SMALL = ["--frames", "1", "--controls", "9", "--follow", "1"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return f"--policy.path={save_tiny_policy(tmp_path_factory.mktemp('tiny') / 'policy')}"


def test_a_run_reports_sites_unseen_places_and_what_is_used(policy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([policy, *DATA, *UNSEEN, *SMALL, "--output-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    flat = " ".join(said.split())
    for expected in ("what can be read off", "cube place, frame 0", "not fitted on", "Is it used?"):
        assert expected in flat
    probes = pd.read_csv(tmp_path / "probes.csv")
    assert {"frame 0", "all frames"} == set(probes.frames)
    assert {"pixels", "action vector", "action vector, untrained"} <= set(probes.site)
    held_out = pd.read_csv(tmp_path / "held_out.csv")
    assert set(held_out.scenes) == {"new places", "held_out", "strip"}
    used = pd.read_csv(tmp_path / "used.csv")
    assert len(used) == 2 * 3
    assert (tmp_path / "provenance.json").is_file()
    assert read_page(tmp_path).tags.count("table") > 1


def test_json_and_no_unseen_scenes(policy, tmp_path, capsys):
    assert main([policy, *DATA, *SMALL, "--json", "--output-dir", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["held_out"] == found["used"] == []
    assert len(found["probes"]) > 50


def test_a_position_that_is_not_there_is_an_error(policy, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main([policy, *DATA, "--query", "999", "--output-dir", str(folder)]) == 3
    assert "no chunk position 999" in " ".join(capsys.readouterr().err.split())
    assert not folder.exists()
