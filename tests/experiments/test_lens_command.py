"""`python -m experiments.lens`, in process, on a tiny policy and bundled demonstrations."""

import contextlib
import io
import json

import numpy as np
import pandas as pd
import pytest
from report_pages import read_page
from test_patching_command import save_tiny_policy

from actlens.scene import Scene
from experiments import lens

EPISODES = ["--dataset.episodes", *map(str, range(0, 60, 5))]
DATA = ["--dataset.repo-id=so101-pick-cube", *EPISODES]
UNSEEN = ["--unseen.repo-id=so101-pick-cube-unseen", "--unseen.episodes", "0", "1", "40", "80"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_tiny_policy(tmp_path_factory.mktemp("tiny") / "policy")


@pytest.fixture(scope="module")
def run(policy, tmp_path_factory):
    """One run over twelve and four episodes: its folder and what it printed at 80 columns."""
    folder = tmp_path_factory.mktemp("run") / "out"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("COLUMNS", "80")
        arguments = [f"--policy.path={policy}", "--moments=2", f"--output-dir={folder}"]
        code = lens.main([*arguments, *DATA, *UNSEEN])
    assert code == 0
    return folder, printed.getvalue()


def test_episodes_are_fitted_on_whole_or_not_at_all():
    scenes = [Scene({}, episode=e, frame=f) for e in range(10) for f in (0, 30)]
    fitted, others = lens.split(scenes, 0.7, seed=0)
    of = lambda some: {scene.episode for scene in some}
    assert (len(fitted), len(others)) == (14, 6)
    assert not of(fitted) & of(others)
    assert of(lens.split(scenes, 0.7, seed=1)[0]) != of(fitted)


def test_the_report_fits_80_columns_and_shows_every_section(run):
    _, text = run
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    for expected in (
        "if its network ended here?", "of 8 demonstrations", "demonstrations: 8 of 4 episodes",
        "The claims", "settled before the last MLP", "How far off is the motion?", "raw/tuned",
        "encoder 0", "cross-attention 0", "mean action", "new places", "is this scene's",
        "From which encoder layer on?", "One cross-attention head alone", "all cameras", "next",
    ):  # fmt: skip
        assert expected in flat, expected
    assert "mm, frame 0" not in flat  # nobody knows this policy's arm


def test_tables_can_be_read_back_and_agree(run):
    folder, _ = run
    for name in ("claims", "errors", "overstatement", "questions", "emergence"):
        csv = pd.read_csv(folder / f"{name}.csv")
        parquet = pd.read_parquet(folder / f"{name}.parquet")
        assert len(csv) == len(parquet) > 0
        for column in parquet.select_dtypes("float"):
            assert csv[column].to_numpy() == pytest.approx(parquet[column].to_numpy(), nan_ok=True)
    errors = pd.read_csv(folder / "errors.csv")
    assert set(errors.set) == {"demonstrations", "new places", "held-out cells", "strip"}
    assert set(errors.when) == {"frame 0", "later"}
    own = errors[(errors.place == "encoder 1") & (errors.against == "policy")]
    assert np.allclose(own.rms, 0)
    assert (folder / "depths.png").stat().st_size > 10_000


def test_the_page_holds_the_report_its_picture_and_all_rows(run):
    folder, _ = run
    tags = read_page(folder).tags
    assert tags.count("table") > 8
    assert "img" in tags


def test_provenance_says_how_to_repeat_the_run(run):
    folder, _ = run
    origin = json.loads((folder / "provenance.json").read_text())
    assert len(origin["weights_sha256"]) == len(origin["scenes_sha256"]) == 64
    assert (origin["dataset"], len(origin["fitted"])) == ("so101-pick-cube", 8)
    assert origin["config"]["moments"] == 2


def test_json_prints_one_object_and_nothing_else(policy, tmp_path, capsys):
    arguments = [f"--policy.path={policy}", "--quick", "--json", f"--output-dir={tmp_path}"]
    assert lens.main([*arguments, *DATA]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {"place", "variant", "rms", "rms_low", "against"} <= content["errors"][0].keys()
    assert {"claim", "value", "null", "verdict"} <= content["claims"][0].keys()
    assert {"question", "layer", "same"} <= content["emergence"][0].keys()
    parts = {row["part"] for row in content["errors"]}
    assert parts == {"encoder", "decoder", "baseline"}  # quick: neither heads nor tokens
    assert {row["set"] for row in content["errors"]} == {"demonstrations"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy.path=so101-pick-cub"], "so101-pick-cube"),
        ([], "needs demonstrations"),
        ([*DATA, "--moments=200"], "--moments"),
        ([*DATA, "--fitted=0.1"], "4 episodes at least, got 1"),
        ([*DATA, "--fitted=1.5"], "--fitted"),
        ([*DATA, "--unseen.repo-id=so101-pick-cube", "--unseen.episodes", "5"], "unseen episodes"),
    ],
    ids=["policy", "data", "moments", "too_few", "share", "seen"],
)
def test_bad_use_is_one_clear_line_and_writes_nothing(arguments, message, policy, tmp_path, capsys):
    if not any(word.startswith("--policy") for word in arguments):
        arguments = [f"--policy.path={policy}", *arguments]
    out = tmp_path / "out"
    assert lens.main([*arguments, f"--output-dir={out}"]) == 3
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
