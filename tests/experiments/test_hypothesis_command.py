"""`python -m experiments.hypothesis`, in process, on a tiny policy and few episodes."""

import contextlib
import io
import json

import pandas as pd
import pytest
from report_pages import read_page

from actlens.claims import Support
from actlens.kinematics import SO101_SIMULATED
from experiments import hypothesis
from tests.experiments.test_patching_command import save_tiny_policy

DATA = ["--dataset.repo-id=so101-pick-cube", "--dataset.episodes", *map(str, range(12))]
UNSEEN = ["--unseen.repo-id=so101-pick-cube-unseen", "--unseen.episodes"]
UNSEEN += [str(region + i) for region in (0, 30, 60) for i in range(6)]
NEW = ["--new.repo-id=so101-pick-cube-unseen", "--new.episodes", *map(str, range(60, 66))]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "policy"
    return f"--policy.path={save_tiny_policy(folder)}"


@pytest.fixture(scope="module")
def run(policy, tmp_path_factory):
    """One run: its folder and what it printed at 80 columns."""
    folder = tmp_path_factory.mktemp("run") / "out"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("COLUMNS", "80")
        # Only the bundled policies' arm is known; this one has its joints.
        patch.setattr(hypothesis, "known_arm", lambda joints, origin: SO101_SIMULATED)
        code = hypothesis.main([policy, *DATA, *UNSEEN, *NEW, "--quick", f"--output-dir={folder}"])
    assert code == 0
    return folder, printed.getvalue()


def test_the_report_fits_80_columns_and_has_every_part(run):
    _, text = run
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    flat = " ".join(text.split())
    for expected in (
        "does the decoder look its actions up", "verdict:", "In short", "it is a lookup table",
        "holds the environment", "knows where the object is and acts wrongly", "by heart",
        "the arm-state token is not among them", "the decoder MLP that must change",
        "Knowing and doing", "next",
    ):  # fmt: skip
        assert expected in flat, expected
    assert "not tested" not in flat


def test_the_page_shows_the_same_and_is_the_first_file(run):
    folder, text = run
    page = read_page(folder)
    assert "Hypothesis" in page.words
    assert f"{folder}/report.html{folder}/" in "".join(text.split())


def test_claims_and_tables_are_written_and_agree_with_the_report(run):
    folder, text = run
    claims = pd.read_csv(folder / "claims.csv")
    assert set(claims.verdict) <= set(Support)
    assert len(claims) > 20
    flat = " ".join(text.split())
    for verdict in Support:  # in short + every reading
        assert flat.count(verdict) >= (claims.verdict == verdict).sum()
    assert (folder / "report.txt").read_text().startswith("hypothesis")
    knowing = pd.read_csv(folder / "dissociation.csv").set_index("scenes")
    assert knowing.n_scenes.to_dict() == {  # of unseen ones every second
        "known": 12,
        "between": 6,
        "beyond": 3,
        "between, taught": 6,
        "beyond, taught": 3,
    }
    for name in ("mechanism", "generalisation", "concentration", "memorisation", "finetuning"):
        assert len(pd.read_csv(folder / f"{name}.csv")), name
    origin = json.loads((folder / "provenance.json").read_text())
    assert list(origin["seconds_by_part"]) == [
        "memory", "knowing", "by heart", "attention", "changing",
    ]  # fmt: skip


def test_what_cannot_be_tested_is_said_and_the_rest_goes_on(tmp_path, capsys):
    policy = f"--policy.path={save_tiny_policy(tmp_path / 'policy')}"  # of an unknown arm
    out = f"--output-dir={tmp_path / 'out'}"
    assert hypothesis.main([policy, *DATA, "--quick", "--json", out]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["not_tested"]) == {"knowing", "changing"}
    assert "new places" in found["not_tested"]["changing"]
    said = {claim["claim"] for claim in found["claims"]}
    assert "the arm-state token is not among them" in said
    assert found["answer"]["answer"] == "undecided"


def test_a_policy_that_cannot_be_loaded_ends_the_command(tmp_path, capsys):
    assert hypothesis.main(["--policy.path=nowhere/at/all", f"--output-dir={tmp_path}"]) == 3
