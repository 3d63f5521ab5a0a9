"""`python -m experiments.attention`, in process, on a tiny policy and bundled demonstrations."""

import contextlib
import io
import json

import pandas as pd
import pytest
from report_pages import read_page
from test_patching_command import save_tiny_policy

from experiments import attention
from experiments.attention import chosen_frames

DATA = ["--dataset.repo-id=so101-pick-cube"]
FEW = [*DATA, "--moments=2", "--random=2", "--top", "1", "5"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_tiny_policy(tmp_path_factory.mktemp("tiny") / "policy")


@pytest.fixture(scope="module")
def run(policy, tmp_path_factory):
    """One run over twelve episodes: its folder and what it printed at 80 columns."""
    folder = tmp_path_factory.mktemp("run") / "out"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("COLUMNS", "80")
        arguments = [f"--policy.path={policy}", "--episodes=12", f"--output-dir={folder}"]
        code = attention.main([*arguments, *FEW])
    assert code == 0
    return folder, printed.getvalue()


def test_frames_are_at_the_same_shares_of_every_episode():
    assert chosen_frames(75, 4) == [0, 18, 37, 56]
    assert chosen_frames(150, 4) == [0, 37, 75, 112]
    assert chosen_frames(3, 3) == [0, 1, 2]


def test_shown_positions_are_among_those_that_count():
    from actlens.config import ACTConfig, Camera
    from actlens.metrics import Positions
    from actlens.model.act import HookedACT

    config = ACTConfig(
        cameras=(Camera("observation.images.top", 32, 32),), action_dim=2, state_dim=2, chunk=50,
        n_action_steps=10, d_model=8, n_heads=2, d_mlp=8, n_encoder_layers=1, use_vae=False,
    )  # fmt: skip
    shown = attention.shown_positions
    model = HookedACT(config)
    assert shown(model, Positions.WHOLE) == (0, 9, 25, 49)
    assert shown(model, Positions.EXECUTED) == (0, 5, 9)


def test_the_report_fits_80_columns_and_shows_every_section(run):
    _, text = run
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    for expected in (
        "which tokens, and do they matter?", "24 of 12 episodes", "swaps within 6 pairs",
        "The claims", "only 5-20 of the 602 tokens", "the arm-state token is not among them",
        "absorb", "On how many tokens", "Who is attended to", "On the same tokens",
        "Do a few suffice?", "Rank correlation", "Swapped before and after", "Which outputs carry",
        "undefined", "next",
    ):  # fmt: skip
        assert expected in flat, expected
    assert any(verdict in flat for verdict in ("supported", "refuted"))


def test_tables_can_be_read_back_and_agree(run):
    folder, _ = run
    names = (
        "claims", "concentration", "concentration_by_weight", "shares", "shares_by_moment",
        "overlap", "sufficiency", "rank_correlation", "absorption", "carriers", "tokens",
    )  # fmt: skip
    for name in names:
        csv, parquet = (
            pd.read_csv(folder / f"{name}.csv"),
            pd.read_parquet(folder / f"{name}.parquet"),
        )
        assert len(csv) == len(parquet) > 0
        for column in parquet.select_dtypes("float"):
            assert csv[column].to_numpy() == pytest.approx(parquet[column].to_numpy(), nan_ok=True)
    claims = pd.read_csv(folder / "claims.csv")
    assert set(claims.verdict) <= {"supported", "refuted", "undecided"}
    shares = pd.read_parquet(folder / "shares.parquet")
    whole = shares[shares.position == "all"].set_index("group")
    assert whole.attention[["latent", "state", "all cameras"]].sum() == pytest.approx(1)
    assert whole.tokens["all cameras"] == 160
    assert (folder / "maps.png").stat().st_size > 20_000


def test_the_page_shows_the_same_and_is_the_first_file(run):
    folder, text = run
    page = read_page(folder)
    assert "Attention" in page.words
    assert "What the action queries attend to" in page.words
    assert f"{folder}/report.html{folder}/" in "".join(text.split())


def test_provenance_says_how_to_repeat_the_run(run):
    folder, _ = run
    origin = json.loads((folder / "provenance.json").read_text())
    assert len(origin["weights_sha256"]) == 64
    assert (origin["dataset"], len(origin["scenes"])) == ("so101-pick-cube", 24)
    assert origin["config"]["episodes"] == 12


def test_json_prints_one_object_and_nothing_else(policy, tmp_path, capsys):
    arguments = [f"--policy.path={policy}", "--episodes=2", "--json", "--positions=executed"]
    assert attention.main([*arguments, *FEW, f"--output-dir={tmp_path}"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {"claim", "reading", "value", "low", "null", "verdict"} <= content["claims"][0].keys()
    assert {"group", "at_input", "absorption"} <= content["absorption"][0].keys()
    assert all(row["position"] == "all" for row in content["shares"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy.path=so101-pick-cub"], "so101-pick-cube"),
        (["--dataset.episodes", "5000", *DATA], "no episode 5000"),
        ([], "needs demonstrations"),
        ([*DATA, "--episodes=1"], "two episodes at least"),
        ([*DATA, "--top", "0"], "at least one token"),
        ([*DATA, "--moments=200"], "--moments"),
        ([*DATA, "--dataset.episodes", "3"], "two are needed"),
    ],
    ids=["policy", "episode", "data", "episodes", "top", "moments", "too_few"],
)
def test_bad_use_is_one_clear_line_and_writes_nothing(arguments, message, policy, tmp_path, capsys):
    if not any(word.startswith("--policy") for word in arguments):
        arguments = [f"--policy.path={policy}", *arguments]
    out = tmp_path / "out"
    assert attention.main([*arguments, f"--output-dir={out}"]) == 3
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
