"""`python -m experiments.retrieval`, in process, on a tiny policy and bundled demonstrations."""

import contextlib
import io
import json

import numpy as np
import pandas as pd
import pytest
from report_pages import read_page

from actlens.errors import SceneError
from experiments import retrieval
from experiments.retrieval_scenes import Sources
from experiments.scene_choice import Data, Policy
from tests.experiments.test_patching_command import save_tiny_policy

DATA = ["--dataset.repo-id=so101-pick-cube", "--dataset.episodes", *map(str, range(12))]
UNSEEN = ["--unseen.repo-id=so101-pick-cube-unseen", "--unseen.episodes"]
UNSEEN += [str(region + i) for region in (0, 30, 60) for i in range(5)]
FEW = ["--moments=2", "--false-alarms=0.2"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = save_tiny_policy(tmp_path_factory.mktemp("tiny") / "policy")
    return f"--policy.path={folder}"


@pytest.fixture(scope="module")
def run(policy, tmp_path_factory):
    """One run: its folder and what it printed at 80 columns."""
    folder = tmp_path_factory.mktemp("run") / "out"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("COLUMNS", "80")
        code = retrieval.main([policy, *DATA, *UNSEEN, *FEW, f"--output-dir={folder}"])
    assert code == 0
    return folder, printed.getvalue()


def test_the_report_fits_80_columns_and_shows_every_section(run):
    _, text = run
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    flat = " ".join(text.split())
    for expected in (
        "is this policy a lookup table?", "24 scenes of so101-pick-cube", "30 unseen",
        "frames 0, 37", "verdict:", "Function: better than the nearest demonstration?",
        "beyond, frame 0", "Drawn to what was demonstrated?", "expert's S",
        "Retrieval at every site", "task state", "Something else in the MLP's place",
        "Could a table hold", "A monitor", "next",
    ):  # fmt: skip
        assert expected in flat, expected


def test_tables_can_be_read_back_and_agree(run):
    folder, _ = run
    names = ("ladder", "generalisation", "snap", "similarity", "scenes", "substitution")
    for name in (*names, "capacity", "monitor"):
        csv, parquet = (
            pd.read_csv(folder / f"{name}.csv"),
            pd.read_parquet(folder / f"{name}.parquet"),
        )
        assert len(csv) == len(parquet) > 0
        for column in parquet.select_dtypes("float"):
            assert csv[column].to_numpy() == pytest.approx(parquet[column].to_numpy(), nan_ok=True)


def test_scenes_are_sorted_by_region_and_by_frame(run):
    folder, _ = run
    scenes = pd.read_csv(folder / "scenes.csv")
    assert scenes.groupby("scenes").size().to_dict() == {
        "new places": 10, "held-out cells": 10, "strip": 10,
    }  # fmt: skip
    assert set(scenes.frame) == {0, 37}
    assert (scenes.distance > 0).all()
    far = scenes.groupby("scenes").distance.median()
    assert far["strip"] > far["new places"]
    axes = pd.read_csv(folder / "generalisation.csv")
    assert {"all unseen", "between", "beyond", "beyond, frame 0"} <= set(axes.scenes)
    assert "strip" not in set(axes.scenes)  # it is all that lies beyond


def test_the_policys_errors_are_the_same_in_every_table(run):
    folder, _ = run
    axes = pd.read_csv(folder / "generalisation.csv").set_index(["scenes", "measure"])
    scenes = pd.read_csv(folder / "scenes.csv")
    # A tiny chunk lies within every episode, so that all scenes weigh alike.
    expected = scenes[scenes.scenes == "strip"]["policy, all joints"].mean()
    assert axes.policy_unseen["beyond", "all joints"] == pytest.approx(expected)
    nearest = scenes[scenes.scenes == "strip"]["nearest, all joints"].mean()
    assert axes.nearest_unseen["beyond", "all joints"] == pytest.approx(nearest)
    ladder = pd.read_csv(folder / "ladder.csv")
    whole = ladder[(ladder.site == "policy") & (ladder.measure == "all joints")]
    at_unseen = whole.set_index("scenes").error["all unseen"]
    assert at_unseen == pytest.approx(axes.policy_unseen["all unseen", "all joints"])


def test_the_page_shows_the_same_and_is_the_first_file(run):
    folder, text = run
    page = read_page(folder)
    assert "Retrieval" in page.words
    assert f"{folder}/report.html{folder}/" in "".join(text.split())


def test_provenance_says_how_to_repeat_the_run(run):
    folder, _ = run
    origin = json.loads((folder / "provenance.json").read_text())
    assert len(origin["weights_sha256"]) == 64
    assert origin["unseen"] == "so101-pick-cube-unseen"
    assert origin["scenes"] == {"demonstrations": 24, "unseen": 30, "frames": [0, 37]}


def test_json_without_unseen_scenes_says_what_is_lacking(policy, tmp_path, capsys):
    arguments = [policy, *DATA, "--moments=1", "--quick", "--json", f"--output-dir={tmp_path}"]
    assert retrieval.main(arguments) == 0
    content = json.loads(capsys.readouterr().out)
    assert any("unseen scenes" in one for one in content["missing"])
    assert "generalisation" not in content
    assert "monitor" not in content
    assert {row["scenes"] for row in content["ladder"]} == {"demonstrations"}
    assert {row["surrogate"] for row in content["substitution"]} >= {"nothing", "nearest entry"}
    if content["answer"] is not None:
        assert content["answer"]["answer"] == "undecided"


def test_episodes_of_the_dataset_can_be_the_unseen_ones(policy):
    data = Data(repo_id="so101-pick-cube", episodes=tuple(range(8)))
    found = Sources.of(Policy(), data, Data(episodes=(6, 7)))
    assert [e.index for e in found.demonstrations.episodes] == list(range(6))
    assert [e.index for e in found.unseen.episodes] == [6, 7]
    assert found.frames(3) == [0, 25, 50]
    with pytest.raises(SceneError, match="none is left"):
        Sources.of(Policy(), data, Data(episodes=tuple(range(8))))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs demonstrations"),
        ([*DATA, "--moments=200"], "--moments"),
        ([*DATA, "--unseen.repo-id=so101-pick-cube", "--unseen.episodes", "3"], "are among the"),
        ([*DATA, "--unseen.episodes", "40"], "no episode 40"),
    ],
    ids=["data", "moments", "overlap", "episode"],
)
def test_bad_use_is_one_clear_line_and_writes_nothing(arguments, message, policy, tmp_path, capsys):
    out = tmp_path / "out"
    assert retrieval.main([policy, *arguments, f"--output-dir={out}"]) == 3
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_places_without_a_label_are_told(policy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    arguments = [policy, *DATA, *UNSEEN, *FEW, "--place", "ball_x", "--quick"]
    assert retrieval.main([*arguments, f"--output-dir={tmp_path}"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 120
    flat = " ".join(text.split())
    assert "labels that say where the object is (ball_x; --place)" in flat
    assert "A monitor" in flat
    assert "Function:" not in flat
    ladder = pd.read_csv(tmp_path / "ladder.csv")
    assert not ladder.site.str.contains("oracle").any()
    assert np.isfinite(ladder.error).all()
