"""What comes with actlens is what its cards say, and enough to be analysed offline."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tyro

from actlens import HookedACT, load_pairs
from actlens.checkpoints import bundled_names
from actlens.provenance import sha256_of
from actlens.scenes.hub import bundled_datasets
from actlens.sim.evaluate import EvaluateConfig
from actlens.sim.expert import expert_chunk
from actlens.sim.record import RecordingConfig
from actlens.sim.regions import Region, region_of
from actlens.statistics import wilson
from actlens.train import TrainConfig

BUNDLED = Path(__file__).parents[2] / "actlens/bundled"
COMMANDS = {
    "actlens.train": TrainConfig,
    "actlens.sim.evaluate": EvaluateConfig,
    "actlens.sim.record": RecordingConfig,
}


def commands(card):
    """The options of every command in a card, by module."""
    for line in re.findall(r"`(python -m [^`]+)`", card):
        _, _, module, *words = shlex.split(line)
        yield module, tyro.cli(COMMANDS[module], args=words)


@pytest.fixture(scope="module", params=bundled_names())
def policy(request):
    """Folder and card of a bundled policy."""
    folder = BUNDLED / "policies" / request.param
    return folder, (folder / "README.md").read_text()


def test_a_policys_card_has_the_hash_of_its_weights(policy):
    folder, card = policy
    assert sha256_of(folder / "model.safetensors") in card


def test_a_policys_card_has_the_figures_of_its_evaluation(policy):
    folder, card = policy
    evaluation = json.loads((folder / "evaluation.json").read_text())
    shown = re.findall(r"^\| (.+) \| (\d+)/(\d+) \| (\d+)% to (\d+)% \|", card, flags=re.M)
    assert len(shown) == len(evaluation["summary"]) == 4
    for row, rollouts, summary in zip(
        shown, evaluation["rollouts"], evaluation["summary"], strict=True
    ):
        kind, *numbers = row
        successes, n, *percent = map(int, numbers)
        assert kind == rollouts["kind"] == summary["kind"]
        assert successes == sum(rollouts["success"])
        assert n == len(rollouts["success"]) == len(rollouts["cube_xy"]) == 100
        assert percent == [round(100 * limit) for limit in wilson(successes, n)]


def test_seen_positions_are_reached_in_nine_of_ten_rollouts(policy):
    folder, _ = policy
    seen, *_ = json.loads((folder / "evaluation.json").read_text())["summary"]
    assert seen["kind"] == "demonstrated positions"
    assert seen["successes"] >= 90


def test_a_policys_commands_are_understood_and_describe_it(policy):
    folder, card = policy
    found = list(commands(card))
    stages = [options for module, options in found if module == "actlens.train"]
    config = HookedACT.from_pretrained(folder).config
    assert {options.dataset for options in stages} <= set(bundled_datasets())
    assert stages[-1].n_action_steps == config.n_action_steps
    assert (stages[-1].d_model, stages[-1].chunk) == (config.d_model, config.chunk)
    assert {module for module, _ in found} == {"actlens.train", "actlens.sim.evaluate"}


@pytest.mark.parametrize("name", bundled_datasets())
def test_a_datasets_command_is_that_of_its_recording(name):
    folder = BUNDLED / "datasets" / name
    ((module, options),) = commands((folder / "README.md").read_text())
    facts = json.loads((folder / "meta/actlens.json").read_text())
    assert module == "actlens.sim.record"
    for key in ("episodes", "regime", "seed", "height", "width"):
        assert getattr(options, key) == facts[key]


def test_both_policies_have_one_architecture():
    one, other = (HookedACT.from_pretrained(name).config for name in bundled_names())
    assert one == other
    assert (one.n_tokens, one.n_heads, one.n_encoder_layers) == (162, 8, 3)
    assert (one.n_decoder_layers, one.activation, one.use_vae) == (1, "relu", True)


def test_twenty_scenes_or_more_were_never_demonstrated_and_carry_the_experts_actions():
    pairs = load_pairs("so101-cube-moved")
    scenes = {
        scene.address: scene
        for pair in pairs
        for scene in (pair.clean, pair.corrupt, pair.unrelated_clean, pair.unrelated_corrupt)
    }
    assert len(scenes) >= 20
    for scene in scenes.values():
        cube_xy = np.array([scene.labels["cube_x"], scene.labels["cube_y"]])
        assert region_of(*cube_xy) is Region.HELD_OUT
        state = scene.observation["observation.state"].numpy()
        expected = expert_chunk(state, cube_xy, scene.labels["cube_yaw"], size=len(scene.action))
        np.testing.assert_allclose(scene.action.numpy(), expected, atol=1e-3)
