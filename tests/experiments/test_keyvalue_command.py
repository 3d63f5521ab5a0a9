"""`python -m experiments.keyvalue`, as a user runs it."""

import json

import pandas as pd
import pytest
from report_pages import read_page

from experiments import rollouts, steered
from experiments.keyvalue import frames_of, main
from tests.experiments.test_patching_command import save_tiny_policy
from tests.sim.conftest import renderer  # noqa: F401  a fixture: skips where nothing can be drawn

SMALL = ["--frames", "2", "--value-scenes", "3", "--show", "1", "--draws", "99"]
EPISODES = ["--dataset.repo-id", "so101-pick-cube", "--dataset.episodes", *map(str, range(8))]


def test_frames_are_spread_over_episodes_and_inside_them():
    for length, n in ((75, 5), (400, 7), (3, 5), (10, 10)):
        every = [frames_of(length, n, turn) for turn in range(50)]
        assert all(frames == sorted(set(frames)) for frames in every)
        assert all(0 <= frames[0] <= frames[-1] < length for frames in every)
        assert {len(frames) for frames in every} <= {min(n, length), n - 1, n}
    starts = {frames_of(75, 5, turn)[0] for turn in range(20)}
    assert len(starts) == 15


def test_a_run_leaves_tables_a_picture_and_a_report(tmp_path, capsys):
    assert main([*SMALL, *EPISODES, "--output-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "what does the MLP remember?" in said
    assert "decoder.0.mlp, 1,024 neurons" in said
    neurons = pd.read_parquet(tmp_path / "neurons.parquet")
    assert len(neurons) == 1024
    assert {"adds shoulder_pan.pos", "gripper_x_mm", "lift", "cell"} <= set(neurons.columns)
    triggers = pd.read_parquet(tmp_path / "triggers.parquet")
    assert triggers.episode.isin(range(8)).all()
    assert (tmp_path / "memories.png").stat().st_size > 10_000
    origin = json.loads((tmp_path / "provenance.json").read_text())
    assert read_page(tmp_path).tags.count("table") > 1
    assert (origin["block"], origin["frames"]) == ("decoder.0", 16)
    for name in ("layer.csv", "neurons.csv", "patterns.parquet"):
        assert (tmp_path / name).is_file()


def test_an_encoder_block_can_be_read_and_json_be_had(tmp_path, capsys):
    few = ["--dataset.repo-id", "so101-pick-cube", "--dataset.episodes", "0", "1", "2", "3"]
    words = [*SMALL, *few, "--block", "encoder.2", "--json", "--output-dir", str(tmp_path)]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"keys", "layer", "neurons", "provenance"}
    assert found["keys"]["own"]["neurons"] == 1024
    assert found["provenance"]["block"] == "encoder.2"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--block", "decoder.7", *SMALL, *EPISODES], "it has encoder.0"),
        (["--dataset.repo-id", "so101-pick-cube", "--dataset.episodes", "5000"], "no episode 5000"),
        (["--neurons", "5000", *SMALL, *EPISODES[:4]], "neuron 5000"),
    ],
    ids=["block", "episode", "neuron"],
)
def test_mistakes_are_told_and_nothing_is_written(words, message, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*words, "--output-dir", str(folder)]) == 3
    assert message in " ".join(capsys.readouterr().err.split())
    assert not folder.exists()


def test_neurons_of_a_users_policy_are_dosed_in_rollouts(
    tmp_path,
    monkeypatch,
    capsys,
    renderer,  # noqa: F811
):
    monkeypatch.setattr(steered, "STEPS", 8)
    policy = f"--policy.path={save_tiny_policy(tmp_path / 'policy')}"
    words = [policy, *SMALL, *EPISODES, "--rollout", "1", "--json"]
    assert main([*words, "--output-dir", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    claims = {row["claim"] for row in found["steering"]}
    assert len(claims) == 2
    assert {row["dose"] for row in found["steering"]} == {-2, -1, 0, 1, 2}
    frame = pd.read_parquet(tmp_path / "out" / "steering.parquet")
    assert set(frame.claim) == claims


def test_rollouts_without_the_simulator_start_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rollouts, "find_spec", lambda name: None)
    assert main(["--rollout", "1", "--output-dir", str(tmp_path / "out")]) == 3
    assert "mujoco is not installed" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_foreign_policy_needs_demonstrations(tmp_path, capsys):
    policy = f"--policy.path={save_tiny_policy(tmp_path / 'policy')}"
    assert main([policy, "--output-dir", str(tmp_path / "out")]) == 3
    assert "needs demonstrations" in " ".join(capsys.readouterr().err.split())
