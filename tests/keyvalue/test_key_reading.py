"""Triggers and activity of a streamed dataset, against every coefficient held at once."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from actlens.config import STATE_KEY
from actlens.errors import HookNameError, SceneError
from actlens.keyvalue import Keys, read_memories, run_entries, stored_entries
from actlens.keyvalue.traits import demonstrated, felt
from actlens.store import write_activations
from tests.keyvalue.value_models import small_policy
from tests.rome.conftest import scene

N_EPISODES, PER_EPISODE = 6, 4


def labelled(number, n_padded=0):
    one = scene(number, per_episode=PER_EPISODE, n_padded=n_padded)
    return replace(one, labels={"cube_x": float(number), "cube_y": -float(number)})


@pytest.fixture(scope="module")
def data():
    """Every episode's last frame has two padded positions."""
    return [
        labelled(i, n_padded=2 * (i % PER_EPISODE == PER_EPISODE - 1))
        for i in range(N_EPISODES * PER_EPISODE)
    ]


@pytest.fixture(scope="module", params=["act", "gelu", "pre_norm"])
def policy(request, new_model):
    return small_policy(new_model, request.param)


def coefficients_of(policy, data, block):
    """By hooks: `scene position neuron`."""
    found = []
    for one in data:
        _, cache = policy.run_with_cache(one, names_filter=f"{block}.mlp.hook_post")
        found.append(cache[f"{block}.mlp.hook_post"][0])
    return torch.stack(found).float()


@pytest.mark.parametrize("block", ["decoder.0", "encoder.1"])
def test_keys_give_the_coefficients_that_hooks_see(policy, data, block):
    (entries, *_) = run_entries(policy, data[:3], block, batch_size=3)
    found = Keys.of(policy, block).coefficients(entries.inputs.flatten(0, 1))
    expected = coefficients_of(policy, data[:3], block).flatten(0, 1).T
    torch.testing.assert_close(found.float(), expected)


def test_shuffled_keys_keep_their_norms_and_thresholds_and_nothing_else(policy):
    keys = Keys.of(policy, "decoder.0")
    shuffled, again = keys.shuffled(1), keys.shuffled(1)
    assert torch.equal(shuffled.weight, again.weight)
    assert torch.equal(shuffled.weight.sort(1).values, keys.weight.sort(1).values)
    assert torch.equal(shuffled.bias, keys.bias)
    assert not torch.allclose(shuffled.weight, keys.weight)


@pytest.mark.parametrize("batch_size", [1, 5, 24])
@pytest.mark.parametrize("block", ["decoder.0", "encoder.1"])
def test_triggers_are_the_largest_of_all_coefficients(policy, data, block, batch_size):
    entries = run_entries(policy, data, block, batch_size=batch_size)
    (reading,) = read_memories([Keys.of(policy, block)], entries, top=4)
    every = coefficients_of(policy, data, block).numpy()
    if block == "decoder.0":
        padded = np.stack([one.action_is_pad.numpy() for one in data])
        every = np.where(padded[..., None], -np.inf, every)
    of_frame = np.where(every.max(1) > 0, every.max(1), -np.inf)
    of_episode = of_frame.reshape(N_EPISODES, PER_EPISODE, -1).max(1)
    for triggers, best in ((reading.by_frame, of_frame), (reading.by_episode, of_episode)):
        expected = -np.sort(-best, axis=0)[:4].T
        found = np.where(np.isnan(triggers.coefficient), -np.inf, triggers.coefficient)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        for neuron, rank in np.ndindex(found.shape):
            address = triggers.episode[neuron, rank], triggers.frame[neuron, rank]
            position = triggers.position[neuron, rank]
            if not np.isfinite(found[neuron, rank]):
                assert (*address, position) == (-1, -1, -1)
                continue
            number = address[0] * PER_EPISODE + address[1]
            np.testing.assert_allclose(
                every[number, position, neuron], found[neuron, rank], rtol=1e-6
            )
            traits = dict(zip(reading.trait_names, triggers.traits[neuron, rank], strict=True))
            assert traits["cube_x"] == number
            assert traits[felt("state[0]")] == data[number].observation[STATE_KEY][0]
            if block == "decoder.0":
                assert traits["frame + position"] == address[1] + position
                assert traits[demonstrated("pan")] == data[number].action[position, 0]
            else:
                token = policy.tokens[int(position)]
                np.testing.assert_equal(traits["row"], np.nan if token.row is None else token.row)
    for of_neuron in reading.by_episode.episode:
        fired = of_neuron[of_neuron >= 0]
        assert len(set(fired)) == len(fired)


def test_activity_is_that_of_all_counted_entries(policy, data):
    entries = run_entries(policy, data, "decoder.0", batch_size=7)
    (reading,) = read_memories([Keys.of(policy, "decoder.0")], entries)
    every = coefficients_of(policy, data, "decoder.0").double().numpy()
    counted = ~np.stack([one.action_is_pad.numpy() for one in data])
    flat = every[counted]
    activity = reading.activity
    assert activity.n_entries == counted.sum() == len(flat)
    np.testing.assert_allclose(activity.active, (flat > 0).mean(0))
    np.testing.assert_allclose(activity.mean, flat.mean(0), rtol=1e-6)
    np.testing.assert_allclose(activity.maximum, flat.max(0), rtol=1e-6)
    np.testing.assert_allclose(activity.variance, flat.var(0), rtol=1e-4, atol=1e-9)
    at = [every[:, k][counted[:, k]].mean(0) for k in range(every.shape[1])]
    np.testing.assert_allclose(activity.by_position, np.stack(at, 1), rtol=1e-5, atol=1e-9)
    number = np.arange(len(data))
    episode, frame = number // PER_EPISODE, number % PER_EPISODE
    position = np.arange(every.shape[1])
    groups = {
        "episode_share": np.broadcast_to(episode[:, None], counted.shape),
        "frame_share": np.broadcast_to(frame[:, None], counted.shape),
        "position_share": np.broadcast_to(position, counted.shape),
        "time_share": frame[:, None] + position,
    }
    for name, group in groups.items():  # one-way analysis of variance, said again
        of, between = group[counted], 0.0
        for value in np.unique(of):
            here = flat[of == value]
            between = between + len(here) * (here.mean(0) - flat.mean(0)) ** 2
        live = flat.var(0) > 1e-9
        share = between[live] / (len(flat) * flat.var(0)[live])
        found = getattr(activity, name)[live]
        np.testing.assert_allclose(found, share, rtol=1e-3, atol=1e-6, err_msg=name)
    fires = every > 0
    of_episode = [episode == e for e in range(N_EPISODES)]
    per_episode = [fires[here][counted[here]].mean() for here in of_episode]
    np.testing.assert_allclose(activity.active_per_entry, per_episode)


def test_the_background_is_an_even_sample_of_entries(policy, data):
    read = lambda n, seed: read_memories(
        [Keys.of(policy, "decoder.0")],
        run_entries(policy, data, "decoder.0"),
        n_background=n,
        seed=seed,
    )[0]
    whole = read(10_000, 0).background
    assert len(whole.episode) == read(10_000, 0).activity.n_entries
    some = [read(30, seed).background for seed in range(40)]
    assert {len(one.episode) for one in some} == {30}
    x = read(10_000, 0).trait_names.index("cube_x")
    drawn = np.concatenate([one.traits[:, x] for one in some])
    expected = whole.traits[:, x]
    error = expected.std() / np.sqrt(len(drawn))
    assert abs(drawn.mean() - expected.mean()) < 4 * error


def test_several_sets_of_keys_share_a_pass(policy, data):
    keys = Keys.of(policy, "decoder.0")
    both = read_memories([keys, keys.shuffled()], run_entries(policy, data, "decoder.0"), top=3)
    for one, reading in zip((keys, keys.shuffled()), both, strict=True):
        (alone,) = read_memories([one], run_entries(policy, data, "decoder.0"), top=3)
        np.testing.assert_array_equal(alone.by_frame.coefficient, reading.by_frame.coefficient)
        np.testing.assert_array_equal(alone.activity.active, reading.activity.active)


@pytest.mark.parametrize("part", ["", "[query=1:4]", "[query=2]"])
def test_a_store_reads_as_the_policy_does(policy, data, tmp_path, part):
    site = f"decoder.0.hook_action_vector{part}"
    store = write_activations(policy, data, [site], tmp_path / "store", dtype=torch.float64)
    keys = [Keys.of(policy, "decoder.0")]
    (stored,) = read_memories(keys, stored_entries(store, "decoder.0"), top=3)
    positions = {"": [0, 1, 2, 3, 4], "[query=1:4]": [1, 2, 3], "[query=2]": [2]}[part]
    only = lambda some: replace(
        some,
        positions=some.positions[positions],
        inputs=some.inputs[:, positions],
        counted=some.counted[:, positions],
        traits=some.traits[:, positions],
    )
    (run,) = read_memories(keys, map(only, run_entries(policy, data, "decoder.0")), top=3)
    np.testing.assert_allclose(stored.by_frame.coefficient, run.by_frame.coefficient, rtol=1e-5)
    np.testing.assert_array_equal(stored.by_frame.position, run.by_frame.position)
    np.testing.assert_array_equal(stored.by_episode.frame, run.by_episode.frame)
    assert set(stored.trait_names) == {n for n in run.trait_names if not n.startswith("felt")}
    for name in stored.trait_names:
        one, other = (r.by_frame.traits[..., r.trait_names.index(name)] for r in (stored, run))
        np.testing.assert_array_equal(one, other)


def test_what_cannot_be_read_is_an_error_that_says_why(policy, data, tmp_path):
    with pytest.raises(HookNameError, match=r"no block 'decoder\.3'"):
        next(run_entries(policy, data, "decoder.3"))
    with pytest.raises(SceneError, match="no scene"):
        read_memories([Keys.of(policy, "decoder.0")], [])
    pieces = run_entries(policy, [data[0], data[4], data[1]], "decoder.0", batch_size=1)
    with pytest.raises(SceneError, match="come in pieces"):
        read_memories([Keys.of(policy, "decoder.0")], pieces)
    policy.train()
    try:
        with pytest.raises(SceneError, match="training mode"):
            next(run_entries(policy, data, "decoder.0"))
    finally:
        policy.eval()
    store = write_activations(policy, data[:2], ["encoder.hook_out[state]"], tmp_path / "store")
    with pytest.raises(SceneError, match="in 0 parts"):
        next(stored_entries(store, "decoder.0"))
