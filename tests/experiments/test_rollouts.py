"""`python -m experiments.patching --rollout`, on a tiny policy that fits the simulator."""

import json

import pandas as pd
import pytest

from experiments import patching, rollouts
from tests.experiments.test_patching_command import save_tiny_policy
from tests.sim.conftest import renderer  # noqa: F401  a fixture: skips where nothing can be drawn


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The command on one pair."""
    policy = save_tiny_policy(tmp_path_factory.mktemp("tiny") / "policy")
    return [f"--policy.path={policy}", "--pairs=1", "--min-effect=0", "--rollout=1"]


def test_the_strongest_parts_are_rolled_out_filmed_and_reported(
    words,
    tmp_path,
    monkeypatch,
    capsys,
    renderer,  # noqa: F811
):
    monkeypatch.setattr(rollouts, "STEPS", 8)
    assert patching.main([*words, "--json", f"--output-dir={tmp_path}"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {"sites", "provenance", "rollouts", "correction"} <= content.keys()
    by_condition = {row["condition"]: row for row in content["rollouts"]}
    assert "encoder.hook_out, all tokens" in by_condition
    assert all(row["rollouts"] == 1 for row in content["rollouts"])
    frame = pd.read_parquet(tmp_path / "rollouts.parquet")
    assert set(frame.condition) == set(by_condition)
    assert len(pd.read_parquet(tmp_path / "correction.parquet"))
    assert (tmp_path / "rollout.mp4").stat().st_size > 1000


def test_without_the_simulator_nothing_is_started(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rollouts, "find_spec", lambda name: None)
    assert patching.main([*words, f"--output-dir={tmp_path / 'out'}"]) == 3
    assert "mujoco is not installed" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
