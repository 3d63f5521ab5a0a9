"""The closed loop of the retrieval question, end to end on a tiny policy that sees."""

import dataclasses
import io

import pandas as pd
import pytest
import torch
from rich.console import Console

import experiments.retrieval_rollouts as command
from actlens.config import ACTConfig, Camera
from actlens.errors import InterventionError
from actlens.model.act import HookedACT
from actlens.scenes.dataset import open_dataset
from tests.interventions.conftest import small_trunk

STEPS = 10


@pytest.fixture(scope="module")
def dataset():
    every = open_dataset("so101-pick-cube")
    return dataclasses.replace(every, episodes=every.episodes[:5])


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    cameras = tuple(Camera(f"observation.images.{name}", 240, 320) for name in ("top", "lateral"))
    config = ACTConfig(
        cameras=cameras, action_dim=6, state_dim=6, chunk=25, n_action_steps=5, d_model=16,
        n_heads=2, d_mlp=16, n_encoder_layers=1, use_vae=False,
    )  # fmt: skip
    model = HookedACT(config).eval()
    trunk = small_trunk()
    trunk["layer4"] = torch.nn.Conv2d(4, 512, 3, stride=2, padding=1)  # 15 rows become 8, as in ACT
    model.embed.backbone = trunk
    return model


@pytest.fixture
def roll_out(monkeypatch, policy, dataset):
    monkeypatch.setattr(command, "STEPS", STEPS)

    def run(folder, **options):
        console = Console(file=io.StringIO())
        options = {"n": 1, "false_alarms": 0.2} | options
        return command.roll_out(policy, dataset, folder, console, **options)

    return run


def test_tables_files_and_report_tell_the_same(roll_out, tmp_path, policy, monkeypatch):
    found = roll_out(tmp_path, watched=2)
    frames = found.frames()
    assert set(frames) == {"substituted", "substituted_summary", "monitor"}
    assert len(frames["substituted"]) == 3 * 11
    assert set(frames["monitor"].rollouts) == {2, 6}
    assert set(frames["monitor"].site) >= {"pixels", "state", "action vector", "constant"}
    for file, table in zip(found.files, frames.values(), strict=True):
        assert len(pd.read_csv(file)) == len(table) == len(found.rows()[file.stem])
    console = Console(file=io.StringIO(), width=80)
    console.print(found.report("tiny policy"))
    text = console.file.getvalue()
    assert "tiny policy" in text
    assert max(map(len, text.splitlines())) <= 80
    assert not any(point.is_watched for point in policy.hook_points())
    # The second time nothing is rolled out again.
    monkeypatch.setattr("actlens.sim.retrieval_rollouts.roll_out", None)
    again = roll_out(tmp_path, watched=2)
    pd.testing.assert_frame_equal(again.summary, found.summary)
    pd.testing.assert_frame_equal(again.monitor, found.monitor)


def test_a_policy_can_be_watched_alone(roll_out, tmp_path):
    found = roll_out(tmp_path, n=0, watched=1)
    assert set(found.substituted.condition) == {"undisturbed"}
    console = Console(file=io.StringIO(), width=80)
    console.print(found.report("tiny policy"))
    assert "nearest entry" not in console.file.getvalue()


def test_no_starts_at_all_are_a_mistake(roll_out, tmp_path):
    with pytest.raises(InterventionError, match="at least one"):
        roll_out(tmp_path, n=0)
    with pytest.raises(InterventionError, match="1 starts of a region"):
        roll_out(tmp_path, n=2, watched=1)
