"""Probes against scikit-learn, known quantities, leaks, and what a policy is known to use."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from actlens.errors import SceneError
from actlens.kernel_ridge import SCALE_FLOOR, Fold
from actlens.probing import (
    Feature,
    Target,
    follow_up,
    grouped_folds,
    held_out_frame,
    input_features,
    predictions,
    probe,
    probe_held_out,
    site_features,
    targets_of,
    untrained,
)
from tests.keyvalue.value_models import small_policy
from tests.rome.conftest import scene

N, PER_EPISODE = 60, 3
GROUPS = np.repeat(np.arange(N // PER_EPISODE), PER_EPISODE)


def known(seed=0, noise=0.0):
    """Features of which a target is a linear function."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, 200)).astype(np.float32) * rng.uniform(0.5, 2, 200)
    y = x[:, :3] @ rng.standard_normal((3, 2)) + noise * rng.standard_normal((N, 2))
    return x, y


def test_predictions_are_scikit_learns_ridge():
    x, y = known()
    x[:, 7] = 0.0
    x[:, 8] *= 1e-3  # under the floor
    (fold, *_) = grouped_folds(GROUPS, 4)
    for alpha in (1e-3, 1.0):
        found = predictions(x, y, GROUPS, [fold], alphas=[alpha])
        train, test = x[fold.train].astype(float), x[fold.test].astype(float)
        spread = train.std(0)
        scale = np.maximum(spread, SCALE_FLOOR * np.sqrt((spread**2).mean()))
        a, b = ((part - train.mean(0)) / scale for part in (train, test))
        theirs = Ridge(alpha=alpha * (a**2).sum(1).mean()).fit(a, y[fold.train]).predict(b)
        np.testing.assert_allclose(found[fold.test], theirs, rtol=2e-4, atol=2e-4)
        assert np.isnan(found[fold.train]).all()


def test_a_linear_quantity_is_read_and_noise_is_not():
    rng = np.random.default_rng(1)
    low = rng.standard_normal((N, 4))
    y = low[:, :2] @ rng.standard_normal((2, 2)) + 3
    noise = rng.standard_normal((N, 4))
    target = Target("place", "mm", y)
    table = probe([Feature("holds it", low), Feature("noise", noise)], [target], GROUPS)
    holds, nothing = table.probes
    assert holds.r2 > 0.999
    assert holds.low > 0.999
    assert holds.p == 1 / 40
    assert holds.error < 0.1
    assert nothing.low < 0.1
    assert nothing.p > 0.05
    assert holds.control < 0.1
    assert (table.frame().q >= table.frame().p).all()


def test_what_only_names_the_episode_leaks_and_is_not_selective():
    """A constant of every episode: frames on both sides of a split give it away."""
    rng = np.random.default_rng(2)
    n_episodes = N // PER_EPISODE
    name = np.eye(n_episodes)[GROUPS] + 0.01 * rng.standard_normal((N, n_episodes))
    value = rng.standard_normal((n_episodes, 1))[GROUPS]
    (found,) = probe([Feature("name", name)], [Target("value", "", value)], GROUPS).probes
    assert found.leaky > 0.7
    assert found.r2 < 0.2
    assert abs(found.selectivity) < 0.2


def test_with_one_frame_an_episode_nothing_can_leak():
    x, y = known()
    (found,) = probe([Feature("x", x)], [Target("y", "", y)], np.arange(N)).probes
    assert np.isnan(found.leaky)
    assert np.isnan(found.selectivity)


def test_angles_are_off_by_angles():
    yaw = np.deg2rad(np.array([[10.0], [50.0]]))
    values = np.concatenate([np.cos(4 * yaw), np.sin(4 * yaw)], 1)
    target = Target("yaw", "deg", values, period=90.0)
    turned = np.deg2rad(np.array([[13.0], [50.0 + 90 - 5]]))
    predicted = 0.5 * np.concatenate([np.cos(4 * turned), np.sin(4 * turned)], 1)
    np.testing.assert_allclose(target.error(predicted), [3, 5])


def test_episodes_and_lengths_that_do_not_fit_are_refused():
    x, y = known()
    with pytest.raises(SceneError, match="two episodes"):
        probe([Feature("x", x)], [Target("y", "", y)], np.zeros(N, int))
    with pytest.raises(SceneError, match="59 scenes"):
        probe([Feature("x", x[:-1])], [Target("y", "", y)], GROUPS)


def test_held_out_parts_are_predicted_from_the_fitted_one_alone():
    x, y = known(noise=0.01)
    x = x[:, :5]
    parts = {"fitted": np.arange(30), "near": np.arange(30, 45), "far": np.arange(45, N)}
    x[45:], y[45:] = x[45:] + 100, y[45:]  # another world
    found = probe_held_out(
        [Feature("x", x)], [Target("y", "mm", y)], GROUPS, parts, fitted="fitted"
    )
    near, far = found
    assert (near.scenes, far.scenes) == ("near", "far")
    assert near.r2 > 0.99
    assert far.r2 < 0
    alone = predictions(x, y, GROUPS, [Fold(parts["fitted"], parts["near"])])[30:45]
    assert near.error == pytest.approx(np.median(np.linalg.norm(alone - y[30:45], axis=1)))
    assert list(held_out_frame(found).scenes) == ["near", "far"]
    with pytest.raises(SceneError, match="no part 'train'"):
        probe_held_out([], [], GROUPS, parts, fitted="train")
    with pytest.raises(SceneError, match="lies in"):
        probe_held_out([], [], GROUPS, {"a": np.arange(4), "b": np.arange(4, 9)}, fitted="a")


# ── on policies ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def policy(new_model):
    return small_policy(new_model)


def placed(number):
    one = scene(number, per_episode=1)
    rng = np.random.default_rng(number)
    labels = dict(zip(("cube_x", "cube_y", "cube_yaw", "mass"), rng.random(4), strict=True))
    return replace(one, labels=labels)


def test_features_are_the_activations(policy):
    some = [placed(i) for i in range(10)]
    found = {one.name: one for one in site_features(policy, some, query=2)}
    _, cache = policy.run_with_cache(some[9])
    expected = {
        "encoder's output": cache["encoder.hook_out"][0].flatten(),
        "tokens into block 1": cache["encoder.1.hook_resid_pre"][0].flatten(),
        "action vector": cache["decoder.0.hook_action_vector"][0, 2],
        "MLP coefficients": cache["decoder.0.mlp.hook_post"][0, 2],
        "predicted chunk": cache["hook_actions"][0].flatten(),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].values[9], values.numpy(), rtol=1e-4, atol=1e-5)
    assert [one.name for one in found.values() if one.is_baseline] == ["predicted chunk"]
    pixels, state = input_features(policy, some)
    assert pixels.values.shape == (10, 2 * 3 * 15 * 20)
    np.testing.assert_array_equal(state.values[3], some[3].observation["observation.state"])


def test_targets_come_from_labels_states_and_frames(policy):
    some = [placed(i) for i in range(8)]
    found = {one.name: one for one in targets_of(some, [f"j{i}" for i in range(6)])}
    assert set(found) == {"cube place", "cube yaw", "mass", *(f"j{i}" for i in range(6))}
    np.testing.assert_allclose(found["cube place"].values[2], [
        1000 * some[2].labels["cube_x"], 1000 * some[2].labels["cube_y"]
    ])  # fmt: skip
    np.testing.assert_allclose(found["cube yaw"].error(found["cube yaw"].values), 0, atol=1e-9)
    frames = targets_of([scene(i, per_episode=4) for i in range(4)], ())
    assert [one.name for one in frames] == ["frame"]
    with pytest.raises(SceneError, match="no scene"):
        targets_of([], ())


def test_an_untrained_policy_has_other_weights_and_the_same_shape(policy):
    fresh = untrained(policy, seed=3)
    assert fresh.config == policy.config
    assert not torch.equal(fresh.action_head.weight, policy.action_head.weight)
    assert torch.equal(fresh.action_head.weight, untrained(policy, seed=3).action_head.weight)
    assert fresh.action_head.weight.dtype == policy.action_head.weight.dtype
    assert not fresh.training


def test_what_the_policy_uses_is_followed_and_what_it_ignores_is_not(policy):
    """The action vector itself says what is held; the actions say what is used.

    The quantity is a mean action of the policy, so that actions follow it by definition; its rival
    is a quantity that no scene shows.
    """
    fitted, tried = [placed(i) for i in range(40)], [placed(i) for i in range(40, 46)]
    with torch.no_grad():
        chunks = torch.cat([policy.predict(policy.prepare(one)) for one in fitted])
    drive = chunks.mean((1, 2))[:, None].double().numpy()
    used, *_ = follow_up(policy, fitted, Target("drive", "", drive), tried, np.arange(6))
    assert used.share.low > 0.7
    assert used.cosine > 0.9
    assert used.random_share < 0.6
    assert used.p == 1 / 21
    nothing = np.random.default_rng(0).standard_normal((40, 1))
    ignored, *_ = follow_up(policy, fitted, Target("nothing", "", nothing), tried, np.arange(6))
    assert ignored.step == pytest.approx(nothing.std(ddof=1))
    with pytest.raises(SceneError, match="fitted on"):
        follow_up(policy, fitted, Target("drive", "", drive), fitted[:1], np.arange(1))
