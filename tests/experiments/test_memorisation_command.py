"""`python -m experiments.memorisation`, on a tiny policy and few episodes."""

import json

import pandas as pd
import pytest
from report_pages import read_page

from experiments.memorisation import Config, main, shortened
from tests.experiments.test_patching_command import save_tiny_policy

DATA = ["--dataset.repo-id", "so101-pick-cube", "--dataset.episodes", *map(str, range(10))]
UNSEEN = ["--unseen.repo-id", "so101-pick-cube-unseen", "--unseen.episodes"]
UNSEEN += [*map(str, (0, 1, 2, 30, 31, 32, 60, 61, 62))]
SMALL = ["--moments", "2", "--positions", "3", "--decoders", "8", "--stops", "20", "40"]
LATE = ["--steps", "30", "--sizes", "3", "--trainings", "1"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return f"--policy.path={save_tiny_policy(tmp_path_factory.mktemp('tiny') / 'policy')}"


def test_a_run_reports_memorisation_and_late_generalisation(policy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([policy, *DATA, *UNSEEN, *SMALL, *LATE, "--output-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    flat = " ".join(said.split())
    for expected in ("learnt by heart?", "is memory", "Unseen scenes", "arrive late?", "linear"):
        assert expected in flat
    table = pd.read_csv(tmp_path / "memorisation.csv")
    assert list(table.steps) == [20, 40, 20, 40, 0]
    assert (table.n_decoders == 8).all()
    assert table["error, strip"].notna().sum() == 3
    assert len(pd.read_csv(tmp_path / "episodes.csv")) == 10
    curves = pd.read_csv(tmp_path / "curves.csv")
    assert set(curves.scenes) == {"trained", "new places", "held-out cells", "strip"}
    assert set(curves.n_episodes) == {3, 10}
    assert set(pd.read_csv(tmp_path / "late.csv").late) <= {"supported", "refuted", "undecided"}
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "provenance.json").read_text())["frames"] == [0, 37]
    assert read_page(tmp_path).tags.count("table") > 1


def test_json_without_unseen_scenes_has_no_long_training(policy, tmp_path, capsys):
    assert main([policy, *DATA, *SMALL, "--json", "--output-dir", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "late" not in found
    assert found["matched_steps"] in (20, 40)
    assert {row["decoders"] for row in found["memorisation"]} == {
        "demonstrations",
        "shuffled",
        "linear read-out",
    }


def test_quick_shortens_everything_but_never_lengthens():
    quick = shortened(Config(moments=1, steps=100, stops=(500,)))
    assert (quick.moments, quick.steps, quick.stops, quick.trainings) == (1, 100, (500,), 1)
    assert shortened(Config()).stops == (50, 100, 200)


def test_too_few_decoders_are_an_error(policy, tmp_path, capsys):
    folder = tmp_path / "out"
    asked = [policy, *DATA, "--decoders", "2", "--output-dir", str(folder)]
    assert main(asked) == 3
    assert "4 decoders at least" in " ".join(capsys.readouterr().err.split())
    assert not folder.exists()
