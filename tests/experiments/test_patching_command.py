"""`python -m experiments.patching`, in process, on a tiny policy that sees the bundled scenes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from report_pages import read_page

from actlens.checkpoints import Checkpoint, save_checkpoint
from actlens.checkpoints.architecture import expected_shapes
from actlens.config import ACTConfig, Camera
from actlens.model.act import HookedACT
from actlens.model.lerobot_names import from_lerobot
from actlens.normalization import Affine, NormalizationMode
from experiments import merge, patching


def save_tiny_policy(folder, cameras=("top", "lateral"), size=(240, 320), chunk=4):
    config = ACTConfig(
        cameras=tuple(Camera(f"observation.images.{name}", *size) for name in cameras),
        action_dim=6, state_dim=6, chunk=chunk, n_action_steps=chunk, d_model=16, n_heads=2,
        d_mlp=16, n_encoder_layers=1, use_vae=False, joints=tuple("abcdef"),
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


def test_the_page_shows_the_same_and_is_the_first_file(run):
    folder, text = run
    page = read_page(folder)
    assert "Activation patching" in page.words
    assert "Share of the action difference restored by one token" in page.words
    assert f"{folder}/report.html{folder}/" in "".join(text.split())


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
        (["--precision=half", "--max-error=0"], "allow an error"),
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


def test_pairs_of_a_file_are_patched(policy, tmp_path, capsys):
    from actlens.scenes.bundled import load_pairs, save_pairs

    pairs = load_pairs("so101-cube-moved")[3:5]
    save_pairs(pairs, tmp_path / "pairs.parquet")
    words = [f"--policy.path={policy}", f"--scenes={tmp_path / 'pairs.parquet'}", "--json"]
    words += ["--min-effect=0", f"--output-dir={tmp_path / 'out'}"]
    assert patching.main(words) == 0
    found = json.loads(capsys.readouterr().out)["provenance"]["pairs"]
    assert found == [[pair.clean.address, pair.corrupt.address] for pair in pairs]
    assert patching.main([*words, "--dataset.repo-id=so101-pick-cube"]) == 3
    assert "either --scenes" in capsys.readouterr().err


def test_a_policy_with_other_cameras_is_told_to_bring_its_own_scenes(tmp_path, capsys):
    folder = save_tiny_policy(tmp_path / "wrist", cameras=("wrist",))
    assert patching.main([f"--policy.path={folder}", f"--output-dir={tmp_path / 'out'}"]) == 3
    assert "--dataset.root" in capsys.readouterr().err


TABLES = ("sites.csv", "sites.parquet", "per_pair.parquet")


def tables(folder):
    return {name: (folder / name).read_bytes() for name in TABLES}


def unit_files(folder):
    return sorted(folder.glob("units/*/*.safetensors"))


def command(policy, folder, *more):
    return [
        f"--policy.path={policy}",
        "--pairs=2",
        "--min-effect=0",
        f"--output-dir={folder}",
        *more,
    ]


@pytest.fixture
def mended(run, tmp_path):
    """A copy of the finished run to do things to."""
    import shutil

    return shutil.copytree(run[0], tmp_path / "copy")


def test_the_same_command_again_computes_nothing_and_writes_the_same_tables(
    policy, run, mended, monkeypatch, capsys
):
    monkeypatch.setattr("actlens.patching.pair_work.patch_pair", lambda *_, **__: 1 / 0)
    (mended / "sites.csv").unlink()
    assert patching.main(command(policy, mended)) == 0
    assert tables(mended) == tables(run[0])


def test_a_damaged_result_is_named_and_computed_again(policy, run, mended, capsys):
    path = unit_files(mended)[0]
    path.write_bytes(path.read_bytes()[:1000])
    assert patching.main(command(policy, mended)) == 0
    told = "".join(capsys.readouterr().err.split())
    assert path.name in told
    assert "computedagain" in told
    assert tables(mended) == tables(run[0])


def test_other_options_in_the_same_folder_are_refused(policy, mended, capsys):
    assert patching.main(command(policy, mended, "--max-error=0")) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "holds another run: options.max_error is '0.002' there and '0.0' here" in said


def test_two_shards_and_a_merge_are_the_whole_run(policy, run, tmp_path, capsys):
    folders = [tmp_path / "one", tmp_path / "two"]
    assert patching.main(command(policy, folders[0], "--shard=1/2")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of 2 in all" in said
    assert "python -m experiments.merge" in said
    assert not (folders[0] / "sites.csv").exists()
    assert merge.main([str(folders[0])]) == 3
    assert "1 of 2 units have no result" in " ".join(capsys.readouterr().err.split())
    assert patching.main(command(policy, folders[1], "--shard=2/2", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["stored"] == 1
    merged = tmp_path / "merged"
    assert merge.main([*map(str, folders), f"--output-dir={merged}"]) == 0
    assert "Where it sits" in capsys.readouterr().out
    read_page(merged)
    assert tables(merged) == tables(run[0])
    assert json.loads((merged / "provenance.json").read_text())["config"]["pairs"] == 2


def test_a_merge_finds_a_policy_that_was_moved_and_refuses_another(
    policy, run, mended, tmp_path, capsys
):
    import shutil

    moved = shutil.copytree(policy, tmp_path / "moved")
    out = f"--output-dir={tmp_path / 'out'}"
    assert merge.main([str(mended), f"--policy={moved}", out]) == 0
    assert tables(tmp_path / "out") == tables(run[0])
    other = save_tiny_policy(tmp_path / "other", cameras=("lateral", "top"))
    assert merge.main([str(mended), f"--policy={other}", out]) == 3
    assert "another policy" in capsys.readouterr().err


def test_a_merge_of_what_another_version_computed_is_refused(mended, monkeypatch, capsys):
    newer = {"actlens": "9.9", "source": "0" * 64, "torch": "9"}
    monkeypatch.setattr(merge, "code_version", lambda: newer)
    assert merge.main([str(mended)]) == 3
    assert "another version of actlens (0." in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine=dask"], "--scheduler=ADDRESS"),
        (["--scheduler=tcp://x:1"], "add --engine=dask"),
        (["--engine=dask", "--scheduler=x", "--workers=2"], "its own workers"),
        (["--workers=0"], "at least 1"),
        (["--shard=0/2"], "A shard is i/n"),
        (["--shard=two"], "A shard is i/n"),
    ],
)
def test_engines_and_shards_that_cannot_be_are_refused(
    arguments, message, policy, tmp_path, capsys
):
    out = tmp_path / "out"
    assert patching.main(command(policy, out, *arguments)) == 3
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_ctrl_c_says_how_to_go_on_and_going_on_gives_the_same(
    policy, run, tmp_path, monkeypatch, capsys
):
    from actlens.shards.folder import Run

    store = Run.store

    def store_and_interrupt(*args):
        store(*args)
        raise KeyboardInterrupt

    folder = tmp_path / "with space"
    with monkeypatch.context() as patch:
        patch.setattr(Run, "store", store_and_interrupt)
        arguments = [*command(policy, "x")[:-1], "--output-dir", str(folder)]
        assert patching.main(arguments) == 130
    said = " ".join(capsys.readouterr().err.split())
    assert "interrupted; 1 of 2 pairs are stored" in said
    assert said.count("--output-dir") == 1
    again = re.search("python -m experiments.patching (.*)", said)[1]
    assert f"'--output-dir={folder}'" in again
    assert patching.main(command(policy, folder)) == 0
    assert tables(folder) == tables(run[0])


def test_ctrl_c_before_anything_was_done_says_so(policy, tmp_path, monkeypatch, capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(patching, "open_sweep", interrupted)
    assert patching.main(command(policy, tmp_path / "out")) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err


def children(pid):
    """The processes that a process has started, on Linux."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in found.read_text().split()] if found.exists() else []


def is_running(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.slow
def test_a_killed_run_leaves_no_worker_and_goes_on_to_the_same_tables(policy, run, tmp_path):
    folder = tmp_path / "killed"
    with (tmp_path / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.patching", *command(policy, folder), "--workers=1"],
            cwd=Path(patching.__file__).parents[1], stdout=subprocess.DEVNULL, stderr=errors,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    deadline = time.monotonic() + 240
    while not unit_files(folder) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = children(process.pid)
    process.kill()
    assert process.wait() == -signal.SIGKILL, (tmp_path / "errors").read_text()[-2000:]
    assert unit_files(folder)
    assert workers or not Path("/proc/self/task").exists()
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))
    assert patching.main(command(policy, folder)) == 0
    assert tables(folder) == tables(run[0])
