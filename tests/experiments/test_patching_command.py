"""`python -m experiments.patching`, in process, on a tiny policy that sees the bundled scenes."""

import json

import pandas as pd
import pytest
import torch
from PIL import Image

from actlens.checkpoints import Checkpoint, save_checkpoint
from actlens.checkpoints.architecture import expected_shapes
from actlens.config import ACTConfig, Camera
from actlens.model.act import HookedACT
from actlens.model.lerobot_names import from_lerobot
from actlens.normalization import Affine, NormalizationMode
from experiments import patching


def save_tiny_policy(folder, cameras=("top", "lateral")):
    config = ACTConfig(
        cameras=tuple(Camera(f"observation.images.{name}", 240, 320) for name in cameras),
        action_dim=6, state_dim=6, chunk=4, n_action_steps=4, d_model=16, n_heads=2, d_mlp=16,
        n_encoder_layers=1, use_vae=False, joints=tuple("abcdef"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = HookedACT(config)
    shapes = {camera.key: (3, 1, 1) for camera in config.cameras}
    shapes |= {"observation.state": (6,), "action": (6,)}
    stats = {k: {"mean": torch.zeros(s), "std": 30 * torch.ones(s)} for k, s in shapes.items()}
    affines = {
        k: Affine.from_stats(NormalizationMode.MEAN_STD, s, eps=1e-8, what=k)
        for k, s in stats.items()
    }
    present = model.state_dict()
    weights = {name: present[from_lerobot(name)].clone() for name in expected_shapes(config)}
    return save_checkpoint(Checkpoint(config, weights, affines, stats), folder)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_tiny_policy(tmp_path_factory.mktemp("tiny") / "policy")


@pytest.fixture(scope="module")
def run(policy, tmp_path_factory):
    """One run over two pairs: its folder and what it printed at 80 columns."""
    import contextlib
    import io
    import os

    folder = tmp_path_factory.mktemp("run") / "out"
    printed = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "80"
    try:
        with contextlib.redirect_stdout(printed):
            code = patching.main(
                [f"--policy.path={policy}", "--pairs=2", "--min-effect=0", f"--output-dir={folder}"]
            )
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    assert code == 0
    return folder, printed.getvalue()


def test_the_report_fits_80_columns_and_shows_every_section(run):
    _, text = run
    assert max(map(len, text.splitlines())) <= 80
    for expected in ("which parts carry", "Where it sits", "Attention heads", "controls:", "next"):
        assert expected in text
    # Token addresses hold brackets, which rich would take for markup if it could.
    assert "top[" in text


def test_the_control_rows_of_the_report_are_what_they_must_be(run):
    _, text = run
    flat = " ".join(text.split())
    assert "all tokens restore 1.0000…1.0000" in flat or "all tokens restore 0.9999" in flat


def test_tables_can_be_read_back_and_agree(run):
    folder, _ = run
    csv, parquet = pd.read_csv(folder / "sites.csv"), pd.read_parquet(folder / "sites.parquet")
    assert len(csv) == len(parquet) > 300
    assert csv.denoise.to_numpy() == pytest.approx(parquet.denoise.to_numpy(), nan_ok=True)
    per_pair = pd.read_parquet(folder / "per_pair.parquet")
    assert set(per_pair.direction) == {"denoise", "noise", "null"}


def test_heat_maps_are_pictures_with_something_drawn(run):
    folder, _ = run
    for name in ("denoise_first_pair.png", "noise_pooled.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 600
            assert len(picture.convert("RGB").resize((64, 64)).getcolors(4096)) > 50


def test_provenance_says_how_to_repeat_the_run(run):
    folder, _ = run
    origin = json.loads((folder / "provenance.json").read_text())
    assert len(origin["weights_sha256"]) == 64
    assert len(origin["scenes_sha256"]) == 64
    assert origin["config"]["pairs"] == 2
    assert origin["packages"]["torch"] == torch.__version__.split("+")[0]


def test_json_prints_one_object_and_nothing_else(policy, tmp_path, capsys):
    arguments = [f"--policy.path={policy}", "--pairs=1", "--min-effect=0", "--json"]
    assert patching.main([*arguments, f"--output-dir={tmp_path}"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {"hook", "part", "denoise", "noise"} <= content["sites"][0].keys()


def test_two_named_scenes_of_a_dataset_are_patched(policy, tmp_path, capsys):
    arguments = [f"--policy.path={policy}", "--dataset.repo_id=so101-pick-cube-5pos"]
    arguments += ["--scene-a=0:0", "--scene-b=20:0", "--min-effect=0", "--json"]
    assert patching.main([*arguments, f"--output-dir={tmp_path}"]) == 0
    origin = json.loads(capsys.readouterr().out)["provenance"]
    assert origin["pairs"] == [["0:0", "20:0"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy.path=so101-pick-cub"], "so101-pick-cube"),
        (["--scene-a=0:0", "--scene-b=1:0"], "add --dataset.root"),
        (["--dataset.repo_id=so101-pick-cube-5pos", "--scene-a=0:0"], "Give both"),
        (["--dataset.repo_id=so101-pick-cube-5pos", "--scene-a=0:0", "--scene-b=x"], "EPISODE"),
        (["--dataset.repo_id=so101-pick-cube-5pos", "--scene-a=0:0", "--scene-b=0:999"], "999"),
    ],
)
def test_bad_use_is_one_clear_line_and_writes_nothing(arguments, message, policy, tmp_path, capsys):
    if not arguments[0].startswith("--policy"):
        arguments = [f"--policy.path={policy}", *arguments]
    out = tmp_path / "out"
    assert patching.main([*arguments, f"--output-dir={out}"]) == 3
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_a_policy_with_other_cameras_is_told_to_bring_its_own_scenes(tmp_path, capsys):
    folder = save_tiny_policy(tmp_path / "wrist", cameras=("wrist",))
    assert patching.main([f"--policy.path={folder}", f"--output-dir={tmp_path / 'out'}"]) == 3
    assert "--dataset.root" in capsys.readouterr().err
