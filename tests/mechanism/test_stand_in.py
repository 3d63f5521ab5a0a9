"""Surrogates of the MLP and of the tail: what each predicts, and where it stands in."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from actlens.interventions import Call, Edit, Intervention, as_hooks
from actlens.mechanism import (
    LINEAR,
    MEAN,
    NEAREST,
    NOTHING,
    SMOOTH,
    Vectored,
    mlp_stand_in,
    tail_stand_in,
)
from actlens.mechanism.stand_in import KernelSmoother
from actlens.sites import Site
from tests.keyvalue.value_models import ARCHITECTURES, small_policy, some_scenes

EPISODES = np.array([0, 0, 1, 1, 2, 2])
POSITIONS = (0, 2)


def test_a_smoother_is_the_weighted_mean_of_all_outputs():
    rng = np.random.default_rng(0)
    x, y, asked = rng.standard_normal((9, 3)), rng.standard_normal((9, 2)), np.ones((4, 3))
    asked[1:] = rng.standard_normal((3, 3))
    apart = cdist(x, x) + np.diag(np.full(9, np.inf))
    weights = np.exp(-(cdist(asked, x) ** 2) / (2 * (0.5 * np.median(apart.min(1))) ** 2))
    by_hand = weights @ y / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(KernelSmoother(0.5).fit(x, y).predict(asked), by_hand)


def test_a_smoother_far_from_everything_answers_with_the_nearest():
    x, y = np.array([[0.0], [1.0]]), np.array([[3.0], [4.0]])
    assert KernelSmoother(0.1).fit(x, y).predict(np.array([[1e4]]))[0, 0] == 4


def test_the_smoothers_width_is_the_one_that_predicts_other_episodes():
    x = np.linspace(0, 1, 60)[:, None]
    noisy = np.sin(3 * x) + 0.5 * np.random.default_rng(1).standard_normal((60, 1))
    episodes = np.arange(60) % 12
    assert SMOOTH.fit(x, noisy, episodes).best_params_["width"] == 4.0
    assert SMOOTH.fit(x, np.sin(40 * x), episodes).best_params_["width"] < 1.0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_stored_outputs_stand_in_without_a_trace_in_stored_scenes(new_model, name):
    """By hooks on the whole policy, of every structure."""
    model, scenes = small_policy(new_model, name), some_scenes()
    run = Vectored.of(model, scenes, POSITIONS)
    mlp, tail = (make(run, NEAREST, EPISODES) for make in (mlp_stand_in, tail_stand_in))
    targets = (
        (Site(run.tail.site.output, {"query": POSITIONS}), mlp),
        (Site("hook_actions_normalized", {"chunk": POSITIONS}), tail),
    )
    for i, scene in enumerate(scenes[:3]):
        for site, stand_in in targets:
            edit = Edit(site, Call(lambda part, stand_in=stand_in, i=i: stand_in(run.x[i : i + 1])))
            hooks = as_hooks(model, Intervention((edit,)))
            torch.testing.assert_close(model.run_with_hooks(scene, fwd_hooks=hooks), model(scene))


def test_what_ignores_the_scene_answers_the_same_everywhere(new_model):
    run = Vectored.of(small_policy(new_model), some_scenes(), POSITIONS)
    wrote = run.tail.output(run.tail.coefficients(run.x))
    assert not mlp_stand_in(run, NOTHING, EPISODES)(run.x).any()
    mean = mlp_stand_in(run, MEAN, EPISODES)(run.x)
    torch.testing.assert_close(mean, wrote.mean(0).expand_as(wrote))
    assert tail_stand_in(run, MEAN, EPISODES)(run.x).shape == run.actions.shape


def test_a_linear_map_stands_in_for_what_is_linear(new_model):
    """A tail that is linear by decree: the surrogate is ridge, off by its penalty alone."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((400, 5))
    y = x @ rng.standard_normal((5, 3)) + 7
    fitted = LINEAR.fit(x, y, np.arange(400))
    asked = rng.standard_normal((50, 5))
    truth = np.linalg.lstsq(np.c_[x, np.ones(400)], y, rcond=None)[0]
    off = np.abs(fitted.predict(asked) - np.c_[asked, np.ones(50)] @ truth)
    assert off.max() < 0.03 * y.std()
