"""What is read for training: chosen episodes, with and without a cache of pictures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.progress import Progress

from actlens.errors import ConfigError, SceneError
from actlens.scenes.dataset import Dataset, open_dataset
from actlens.train import TrainConfig, train
from actlens.training_data import load_training_data, shrink


@pytest.fixture(scope="module")
def dataset():
    whole = open_dataset("so101-pick-cube")
    return replace(whole, episodes=whole.episodes[:3], cameras=(whole.camera("top"),))


def load(dataset, **options):
    return load_training_data(dataset, 8, Progress(disable=True), **options)


def equal(one, other):
    pairs = [(one.images[0], other.images[0]), (one.state, other.state), (one.action, other.action)]
    return all(torch.equal(a, b) for a, b in pairs) and np.array_equal(one.last, other.last)


def test_chosen_episodes_are_those_of_the_dataset_in_its_order(dataset):
    data = load(dataset, episodes=(2, 0))
    assert data.last.tolist() == [74] * 75 + [149] * 75
    expected = np.concatenate([dataset.actions(0), dataset.actions(2)])
    assert np.array_equal(data.action.numpy(), expected)
    pictures = shrink(dataset.frames(2, "top"), 8)
    assert np.array_equal(data.images[0][75:].numpy(), pictures)


def test_a_cache_changes_nothing_and_is_read_the_next_time(dataset, tmp_path, monkeypatch):
    plain = load(dataset, episodes=(0, 2))
    assert equal(load(dataset, episodes=(0, 2), cache=tmp_path), plain)

    def forbidden(*arguments):
        raise AssertionError("a video was decoded")

    monkeypatch.setattr(Dataset, "frames", forbidden)
    assert equal(load(dataset, episodes=(0, 2), cache=tmp_path), plain)
    assert equal(
        load(dataset, episodes=(1,), cache=tmp_path), load(dataset, episodes=(1,), cache=tmp_path)
    )
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".npy"]


def test_another_dataset_of_the_same_name_has_a_cache_of_its_own(dataset, tmp_path):
    load(dataset, cache=tmp_path)
    whole = open_dataset("so101-pick-cube")
    other = replace(dataset, episodes=whole.episodes[3:5])
    assert equal(load(other, cache=tmp_path), load(other))


def test_an_episode_that_is_not_there_is_an_error(dataset):
    with pytest.raises(SceneError, match=r"\[7\]"):
        load(dataset, episodes=(0, 7))


def small(folder, **changes):
    base = TrainConfig(
        "so101-pick-cube", folder, episodes=(4, 5), cameras=("lateral",), steps=2, batch_size=4,
        downscale=8, chunk=4, n_action_steps=2, d_model=16, n_heads=2, d_mlp=16,
        n_encoder_layers=1, use_vae=False, bf16=False,
    )  # fmt: skip
    return replace(base, **changes)


def test_a_policy_can_be_trained_on_some_episodes_and_one_camera(tmp_path):
    from actlens.model.act import HookedACT

    config = HookedACT.from_pretrained(train(small(tmp_path / "run"))).config
    assert [camera.key for camera in config.cameras] == ["observation.images.lateral"]
    with pytest.raises(ConfigError, match="episodes"):
        train(small(tmp_path / "run", episodes=(4, 6)))
    with pytest.raises(SceneError, match="wrist"):
        train(small(tmp_path / "other", cameras=("wrist",)))
