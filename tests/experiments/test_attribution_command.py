"""`python -m experiments.attribution`, in process, on a tiny policy and the bundled scenes."""

import contextlib
import io
import json

import pandas as pd
import pytest
from report_pages import read_page
from test_patching_command import save_tiny_policy

from experiments import attribution

FEW = ["--min-effect=0", "--audit=2", "--hooks"]
FEW += ["encoder.0.hook_resid_pre", "encoder.hook_out", "encoder.0.attn.hook_[kz]*"]
FEW += ["decoder.0.mlp.hook_post", "decoder.0.hook_attn_out"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_tiny_policy(tmp_path_factory.mktemp("tiny") / "policy")


@pytest.fixture(scope="module")
def run(policy, tmp_path_factory):
    """One run over two pairs: its folder and what it printed at 80 columns."""
    folder = tmp_path_factory.mktemp("run") / "out"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("COLUMNS", "80")
        arguments = [f"--policy.path={policy}", "--pairs=2", f"--output-dir={folder}"]
        code = attribution.main([*arguments, *FEW])
    assert code == 0
    return folder, printed.getvalue()


def test_the_report_fits_80_columns_and_shows_every_section(run):
    _, text = run
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    for expected in (
        "which sites may carry", "transformer forwards a gradient", "How far to trust them",
        "The same by kind", "Single tokens", "Heads", "Neurons", "audited site", "control:",
        "No intervals: 2 pairs", "next",
    ):  # fmt: skip
        assert expected in flat, expected
    # Token addresses hold brackets, which rich would take for markup if it could.
    assert "[top[" in flat or "[lateral[" in flat


def test_tables_can_be_read_back_and_agree(run):
    folder, _ = run
    csv, parquet = pd.read_csv(folder / "sites.csv"), pd.read_parquet(folder / "sites.parquet")
    assert len(csv) == len(parquet) > 400
    for column in ("denoise", "error_bar", "exact_noise"):
        assert csv[column].to_numpy() == pytest.approx(parquet[column].to_numpy(), nan_ok=True)
    agreement = pd.read_csv(folder / "agreement.csv")
    assert {"pearson", "spearman", "relative_error", "found", "missed_bound"} <= {*agreement}
    each = pd.read_parquet(folder / "agreement_per_pair.parquet")
    assert len(each) == 2 * len(agreement)
    audited = pd.read_parquet(folder / "audited_per_pair.parquet")
    assert len(audited) == 2 * 2 * (parquet.audited != "").sum()


def test_the_page_shows_the_same_and_is_the_first_file(run):
    folder, text = run
    page = read_page(folder)
    assert "Attribution patching" in page.words
    assert f"{folder}/report.html{folder}/" in "".join(text.split())


def test_provenance_says_how_to_repeat_the_run_and_what_it_took(run):
    folder, _ = run
    origin = json.loads((folder / "provenance.json").read_text())
    assert len(origin["weights_sha256"]) == len(origin["scenes_sha256"]) == 64
    assert origin["config"]["audit"] == 2
    assert 2 < origin["forwards_per_gradient"] < 4  # at d_model 16 attention is most of the work
    sites = pd.read_parquet(folder / "sites.parquet")
    assert origin["sites"] == len(sites)
    assert origin["exact_patches"] == 2 * 2 * (sites.audited != "").sum()


def test_json_prints_one_object_and_nothing_else(policy, tmp_path, capsys):
    arguments = [f"--policy.path={policy}", "--pairs=1", "--min-effect=0", "--json", "--audit=1"]
    arguments += ["--gradient=integrated", "--points=2", "--hooks", "encoder.hook_out"]
    assert attribution.main([*arguments, f"--output-dir={tmp_path}"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {"hook", "unit", "pearson", "missed"} <= content["agreement"][0].keys()
    assert {"address", "denoise", "exact_denoise"} <= content["audited"][0].keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy.path=so101-pick-cub"], "so101-pick-cube"),
        (["--hooks", "encoder.0.hook_resid_prre"], "Did you mean"),
        (["--hooks", "embed.hook_latent"], "lies before"),
        (["--audit=0"], "n_audit must be at least 1"),
        (["--scene-a=0:0", "--scene-b=1:0"], "add --dataset.root"),
    ],
)
def test_bad_use_is_one_clear_line_and_writes_nothing(arguments, message, policy, tmp_path, capsys):
    if not arguments[0].startswith("--policy"):
        arguments = [f"--policy.path={policy}", *arguments]
    out = tmp_path / "out"
    assert attribution.main([*arguments, f"--output-dir={out}"]) == 3
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
