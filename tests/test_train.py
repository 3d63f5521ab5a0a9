"""Training on a tiny synthetic dataset: it learns, resumes exactly, and exports what it trained."""

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from actlens import train as training
from actlens.config import Camera
from actlens.errors import ConfigError, DeviceError
from actlens.model.act import HookedACT
from actlens.train import TrainConfig, batches, learning_rate, train
from actlens.training_data import shrink

LENGTH, EPISODES = 12, 6


@pytest.fixture
def tiny_dataset(monkeypatch):
    """A dataset in memory: a bright square whose column tells what the actions should be."""

    def episode(index):
        generator = np.random.default_rng(index)
        frames = np.zeros((LENGTH, 3, 32, 64), np.uint8)
        column = 10 * index
        frames[:, :, 8:16, column : column + 8] = 255
        state = generator.normal(size=(LENGTH, 2)).astype(np.float32)
        action = np.stack([np.full(LENGTH, index), np.arange(LENGTH)], 1).astype(np.float32)
        return frames, state, action

    dataset = SimpleNamespace(
        name="tiny",
        cameras=(Camera("observation.images.top", 32, 64),),
        state_names=("a", "b"),
        action_names=("a", "b"),
        episodes=[SimpleNamespace(index=i, length=LENGTH) for i in range(EPISODES)],
        frames=lambda i, camera: episode(i)[0],
        states=lambda i: episode(i)[1],
        actions=lambda i: episode(i)[2],
    )
    monkeypatch.setattr(training, "open_dataset", lambda source: dataset)
    return dataset


def config(folder, **changes):
    base = TrainConfig(
        "tiny", folder, steps=6, batch_size=4, warmup=2, chunk=4, n_action_steps=2, d_model=16,
        n_heads=2, d_mlp=16, n_encoder_layers=1, log_every=2, bf16=False, half_weights=False,
    )  # fmt: skip
    return replace(base, **changes)


def weights_of(folder):
    return HookedACT.from_pretrained(folder / "pretrained_model").state_dict()


def test_an_interrupted_run_resumes_to_the_very_same_weights(tiny_dataset, tmp_path, monkeypatch):
    train(config(tmp_path / "whole"))

    class Interrupted(Exception):
        pass

    whole_losses, count = training.losses, 0

    def failing(*arguments):
        nonlocal count
        count += 1
        if count == 4:
            raise Interrupted
        return whole_losses(*arguments)

    broken = config(tmp_path / "broken", save_every=0.0)
    monkeypatch.setattr(training, "losses", failing)
    with pytest.raises(Interrupted):
        train(broken)
    monkeypatch.setattr(training, "losses", whole_losses)
    train(broken)
    first, second = weights_of(tmp_path / "whole"), weights_of(tmp_path / "broken")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_exported_policy_computes_what_was_trained(tiny_dataset, tmp_path):
    train(config(tmp_path / "run"))
    saved = torch.load(tmp_path / "run/training_state.pt", weights_only=True)["model"]
    exported = weights_of(tmp_path / "run")
    for name, value in exported.items():
        assert torch.equal(value, saved[name]), name
    model = HookedACT.from_pretrained(tmp_path / "run/pretrained_model")
    assert model.config.joints == ("a", "b")


def test_the_loss_falls(tiny_dataset, tmp_path):
    train(config(tmp_path / "run", steps=60, lr=1e-3, log_every=10))
    rows = [json.loads(x) for x in (tmp_path / "run/training.jsonl").read_text().splitlines()]
    assert rows[-1]["l1"] < 0.7 * rows[0]["l1"]


def test_matrices_are_written_in_16_bits_and_vectors_in_full(tiny_dataset, tmp_path):
    folder = train(config(tmp_path / "run", half_weights=True))
    checkpoint = HookedACT.from_pretrained(folder).checkpoint
    kinds = {w.ndim > 1: w.dtype for w in checkpoint.weights.values()}
    assert kinds == {True: torch.float16, False: torch.float32}


def test_a_folder_with_another_run_is_refused_and_left_alone(tiny_dataset, tmp_path):
    train(config(tmp_path / "run"))
    before = (tmp_path / "run/training.jsonl").read_text()
    with pytest.raises(ConfigError, match="lr"):
        train(config(tmp_path / "run", lr=1.0))
    assert (tmp_path / "run/training.jsonl").read_text() == before


def test_a_folder_with_something_else_is_refused(tiny_dataset, tmp_path):
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(ConfigError, match="something else"):
        train(config(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_frozen_norm_keeps_the_statistics_of_the_policy_it_starts_from(tiny_dataset, tmp_path):
    first = train(config(tmp_path / "first"))
    train(config(tmp_path / "second", init_from=first, freeze_norm=True))
    before, after = weights_of(tmp_path / "first"), weights_of(tmp_path / "second")
    for name in before:
        if "running_" in name:
            assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["action_head.weight"], after["action_head.weight"])


def test_norms_cannot_be_frozen_from_nothing(tiny_dataset, tmp_path):
    with pytest.raises(ConfigError, match="init-from"):
        train(config(tmp_path / "run", freeze_norm=True))


def test_joints_that_never_move_are_refused_by_name(tiny_dataset, tmp_path):
    still = np.zeros((LENGTH, 2), np.float32)
    tiny_dataset.actions = lambda i: still
    with pytest.raises(ConfigError, match="never changes in a, b"):
        train(config(tmp_path / "run"))


def test_a_state_that_never_moves_is_refused_by_its_own_names(tiny_dataset, tmp_path):
    tiny_dataset.state_names = ("lift", "pan", "roll")  # more of them than actions
    tiny_dataset.states = lambda i: np.tile(np.float32([1, i, 3]), (LENGTH, 1))
    with pytest.raises(ConfigError, match=r"observation\.state never changes in lift, roll"):
        train(config(tmp_path / "run"))


def test_a_device_that_is_not_here_is_refused_before_anything_is_written(tiny_dataset, tmp_path):
    with pytest.raises(DeviceError, match="'nope' is no device"):
        train(config(tmp_path / "run", device="nope"))
    assert not (tmp_path / "run").exists()


def test_a_run_may_go_on_elsewhere(tiny_dataset, tmp_path):
    train(config(tmp_path / "run", device="cpu"))
    train(config(tmp_path / "run", device="cpu:0"))
    with pytest.raises(ConfigError, match="kl_weight"):
        train(config(tmp_path / "run", device="cpu:0", kl_weight=1.0))


def test_every_frame_is_seen_once_an_epoch_whatever_the_start():
    asked = config(None, steps=18)
    whole = [frames for _, frames in batches(72, asked, 0)]
    assert sorted(np.concatenate(whole)) == list(range(72))
    resumed = [frames for _, frames in batches(72, asked, 7)]
    assert all(np.array_equal(a, b) for a, b in zip(whole[7:], resumed, strict=True))


def test_chunks_repeat_the_last_action_and_say_so():
    data = training.TrainingData((), None, torch.arange(6.0)[:, None], np.array([3, 3, 3, 3, 5, 5]))
    action, is_pad = data.chunks(np.array([2, 5]), 3)
    assert action[..., 0].tolist() == [[2, 3, 3], [5, 5, 5]]
    assert is_pad.tolist() == [[False, False, True], [False, True, True]]


def test_the_learning_rate_rises_stays_and_falls():
    asked = config(None, steps=100, warmup=10, lr=1.0)
    rates = [learning_rate(step, asked) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == rates[59] == 1.0
    assert rates[-1] < 0.02
    assert all(a >= b for a, b in itertools.pairwise(rates[60:]))


def test_shrinking_averages_blocks():
    frames = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4).repeat(3, 1)
    assert shrink(frames, 2)[0, 0].tolist() == [[3, 5], [11, 13]]  # 2.5 rounds up
    with pytest.raises(ConfigError, match="cannot be shrunk"):
        shrink(frames, 3)
