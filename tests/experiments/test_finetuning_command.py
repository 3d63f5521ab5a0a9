"""`python -m experiments.finetuning`, on a tiny policy and few episodes."""

import json

import pandas as pd
import pytest
from report_pages import read_page

from actlens import HookedACT
from actlens.finetuning import Budget
from experiments import finetuning
from experiments.finetuning import main
from tests.experiments.test_patching_command import save_tiny_policy
from tests.sim.conftest import renderer  # noqa: F401  a fixture: skips where nothing can be drawn

KNOWN = ["--dataset.repo-id", "so101-pick-cube", "--dataset.episodes", *map(str, range(8))]
NEW = ["--new.repo-id", "so101-pick-cube-unseen", "--new.episodes", "60", "61", "62", "63"]
SMALL = ["--every", "30", "--steps", "6", "--rates", "0.03"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = save_tiny_policy(tmp_path_factory.mktemp("tiny") / "policy", ("top",))
    return [f"--policy.path={folder}", *KNOWN, *NEW, *SMALL]


def test_a_run_reports_places_costs_and_claims(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ["--output-dir", str(tmp_path), "--save", str(tmp_path / "policies")]
    assert main([*words, *arguments, "--rehearsal", "1", "--upper-bound"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    flat = " ".join(said.split())
    for expected in (
        "what must change", "New places", "What it costs", "cross-attention, equal", "rank one",
        "some neurons keep", "it is the decoder MLP that must change",
    ):  # fmt: skip
        assert expected in flat, expected
    table = pd.read_csv(tmp_path / "errors.csv")
    assert set(table.places) == {"new places", "old places"}
    assert "everything behind the tokens" in set(table.part)
    assert (tmp_path / "provenance.json").is_file()
    assert read_page(tmp_path).tags.count("table") > 1
    assert HookedACT.from_pretrained(tmp_path / "policies" / "a").config.d_model == 16


def test_json_with_rollouts_is_one_object(
    words,
    tmp_path,
    monkeypatch,
    capsys,
    renderer,  # noqa: F811
):
    monkeypatch.setattr(finetuning, "STEPS", 5)
    arguments = ["--quick", "--json", "--rollout", "1", "--output-dir", str(tmp_path)]
    assert main([*words, *arguments]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {row["budget"] for row in content["errors"]} == set(Budget)
    assert {row["places"] for row in content["rollouts"]} == {"new places", "old places"}
    assert content["claims"][0]["verdict"] == "undecided"  # four episodes give no interval
    assert len(pd.read_parquet(tmp_path / "rollouts.parquet")) == len(content["rollouts"])


def test_a_policy_of_ones_own_needs_new_places(words, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main([words[0], *KNOWN, "--output-dir", str(folder)]) == 3
    assert "needs demonstrations at new places" in " ".join(capsys.readouterr().err.split())
    assert not folder.exists()
