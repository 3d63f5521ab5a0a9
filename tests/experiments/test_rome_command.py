"""`python -m experiments.rome`, in process, on a tiny policy and a few bundled episodes."""

import contextlib
import io
import json

import pandas as pd
import pytest
import torch
from report_pages import read_page
from test_patching_command import save_tiny_policy

from actlens import HookedACT
from actlens.rome import load_edit
from experiments import rome

DATA = ["--dataset.repo-id=so101-pick-cube", "--dataset.episodes", *map(str, range(0, 16, 2))]
FEW = ["--targets=3", "--sites=2", "--many", "1", "2"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_tiny_policy(tmp_path_factory.mktemp("tiny") / "policy", ("top",))


@pytest.fixture(scope="module")
def run(policy, tmp_path_factory):
    """One run: its folder, what it printed at 80 columns."""
    folder = tmp_path_factory.mktemp("run") / "out"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("COLUMNS", "80")
        code = rome.main([f"--policy.path={policy}", *DATA, *FEW, f"--output-dir={folder}"])
    assert code == 0
    return folder, printed.getvalue()


def test_the_report_fits_80_columns_and_shows_every_section(run):
    _, text = run
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    for expected in (
        "there, and nowhere else?", "by where the cube stood", "the scene itself",
        "cube over 80 mm off", "goal 0.99", "Edits and rivals", "retrieval", "fine-tuning",
        "GPT-2 XL", "What the ridge trades", "two joints", "any joint",
        "Many requests in one matrix", "contradictory", "causal tracing", "Hase et al. 2023",
    ):  # fmt: skip
        assert expected in flat, expected


def test_tables_can_be_read_back_and_agree(run):
    folder, _ = run
    cases = pd.read_parquet(folder / "cases.parquet")
    scores = pd.read_csv(folder / "scores.csv")
    one = cases[(cases.asked == "one joint") & (cases.way == "edit with its scope")]
    assert one.episode.nunique() == 3
    own = one[one.role == "own"]
    assert own.granted.mean() == scores.efficacy[0] == 1
    far = one[one.role == "far"].groupby("episode").drift.mean().mean()
    assert far == pytest.approx(scores.far[0])
    for name in ("groups", "many", "sites", "explained"):
        csv, parquet = (
            pd.read_csv(folder / f"{name}.csv"), pd.read_parquet(folder / f"{name}.parquet")
        )  # fmt: skip
        assert len(csv) == len(parquet) > 0
    assert (folder / "chunks.png").read_bytes()[:4] == b"\x89PNG"


def test_the_page_shows_the_same_and_is_the_first_file(run):
    folder, text = run
    page = read_page(folder)
    assert "Edits (ROME)" in page.words
    assert f"{folder}/report.html{folder}/" in "".join(text.split())


def test_provenance_says_how_to_repeat_the_run(run):
    folder, _ = run
    origin = json.loads((folder / "provenance.json").read_text())
    assert len(origin["weights_sha256"]) == len(origin["data_sha256"]) == 64
    assert len(origin["targets"]) == 3
    assert origin["asked"] == {"joint": "a", "offset": 10.0, "tolerance": 1.0}


def test_an_encoder_block_without_labels_prints_one_object(policy, tmp_path, capsys):
    arguments = [f"--policy.path={policy}", *DATA, "--targets=2", "--sites=0", "--many", "2"]
    arguments += ["--block=encoder.0", "--place", "nowhere", "--json", f"--output-dir={tmp_path}"]
    assert rome.main(arguments) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["provenance"]["block"] == "encoder.0"
    assert content["scores"][0]["efficacy"] == 1
    assert any(row["group"].startswith("episode over") for row in content["groups"])


def test_one_edit_is_saved_and_exported(policy, tmp_path, capsys):
    arguments = [f"--policy.path={policy}", *DATA, "--scene=4:10", "--joint=b", "--offset=3"]
    arguments += [f"--export={tmp_path / 'edited'}", f"--output-dir={tmp_path / 'edit'}"]
    assert rome.main(arguments) == 0
    assert "b +3 at 4 chunk positions" in capsys.readouterr().out
    edit = load_edit(tmp_path / "edit")
    edited = HookedACT.from_pretrained(tmp_path / "edited")
    before = HookedACT.from_pretrained(policy)
    name = edit.site.matrix
    changed = edited.state_dict()[name].double() - before.state_dict()[name].double()
    torch.testing.assert_close(changed, edit.delta, rtol=0, atol=1e-6)
    read_page(tmp_path / "edit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy.path=so101-pick-cub"], "so101-pick-cube"),
        (["--export=edited"], "add --scene"),
        ([*DATA, "--block=decoder.7"], "no block"),
        ([*DATA, "--joint=q"], "no joint"),
        ([*DATA, "--scene=4"], "EPISODE:FRAME"),
        ([*DATA, "--scene=400:0"], "no episode 400"),
        ([], "needs demonstrations"),
        (["--dataset.repo-id=so101-pick-cube", "--dataset.episodes", "1", "2"], "at least four"),
    ],
)
def test_bad_use_is_one_clear_line_and_writes_nothing(arguments, message, policy, tmp_path, capsys):
    out = tmp_path / "out"
    if not any(argument.startswith("--policy") for argument in arguments):
        arguments = [f"--policy.path={policy}", *arguments]
    assert rome.main([*arguments, f"--output-dir={out}"]) == 3
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_halves_can_be_exchanged_and_one_request_has_nothing_to_contradict_it(
    run, policy, tmp_path
):
    words = [f"--policy.path={policy}", *DATA, "--targets=2", "--sites=0", "--many", "1"]
    assert rome.main([*words, "--exchange-halves", f"--output-dir={tmp_path}"]) == 0
    many = pd.read_csv(tmp_path / "many.csv")
    assert set(many.requests) == {1}
    assert not many.contradictory.any()
    edited = lambda folder: set(pd.read_parquet(folder / "cases.parquet").episode)
    assert edited(tmp_path)
    assert not edited(tmp_path) & edited(run[0])
