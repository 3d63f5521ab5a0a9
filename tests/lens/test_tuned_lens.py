"""The tuned lens against scikit-learn, and on encoders whose blocks are affine maps."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneGroupOut

from actlens.errors import SceneError
from actlens.lens import (
    Moments,
    Sublayer,
    Variant,
    decoded,
    encoder_lens,
    fitted,
    head_lenses,
    policy_itself,
    ridge,
    stream_lens,
    token_lenses,
    tune,
)
from actlens.lens.tuning import _batches, _folds
from actlens.planted.relay import relay_pairs, relay_policy
from actlens.scene import stack


def pairs(n=30, positions=4, d_in=6, d_out=3, noise=0.5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    new = lambda *shape: torch.randn(shape, generator=draw, dtype=torch.float64)
    x = new(n, positions, d_in) * torch.linspace(0.1, 3, d_in) + new(1, positions, d_in)
    y = x @ new(d_in, d_out) + new(1, positions, d_out) + noise * new(n, positions, d_out)
    return x, y


def centred_rows(x):
    return (x - x.mean(0)).flatten(0, 1).numpy()


@pytest.mark.parametrize("penalty", [1e-6, 0.1, 10.0])
def test_the_map_is_scikit_learns_ridge_on_states_centred_by_position(penalty):
    x, y = pairs()
    rows = centred_rows(x)
    alpha = penalty * np.trace(rows.T @ rows) / rows.shape[1]
    referee = Ridge(alpha=alpha, fit_intercept=False).fit(rows, centred_rows(y))
    found = ridge(Moments.of(x, y), penalty)
    assert np.allclose(found.weight.numpy(), referee.coef_.T, atol=1e-9)
    expected = referee.predict((x - x.mean(0)).flatten(0, 1).numpy()).reshape(y.shape)
    assert np.allclose(found(x).numpy(), expected + y.mean(0).numpy(), atol=1e-9)


def test_streamed_sums_are_those_of_all_scenes():
    x, y = pairs()
    parts = Moments.of(x[:7], y[:7]) + Moments.of(x[7:8], y[7:8]) + Moments.of(x[8:], y[8:])
    once = ridge(Moments.of(x, y), 0.1)
    assert torch.allclose(ridge(parts, 0.1).weight, once.weight, atol=1e-12)
    assert torch.allclose(ridge(parts, 0.1).bias, once.bias, atol=1e-12)


def test_the_penalty_is_the_best_on_groups_that_are_left_out():
    penalties = (1e-4, 1e-2, 1.0, 100.0)
    chosen = []
    for seed, noise in enumerate((0.01, 3.0, 30.0)):
        x, y = pairs(n=20, noise=noise, seed=seed)
        groups = np.arange(20) % 4
        errors = np.zeros(len(penalties))
        for train, test in LeaveOneGroupOut().split(groups, groups=groups):
            for i, penalty in enumerate(penalties):
                made = ridge(Moments.of(x[train], y[train]), penalty)
                errors[i] += float((made(x[test]) - y[test]).square().sum())
        folds = [Moments.of(x[groups == g], y[groups == g]) for g in range(4)]
        found = fitted(folds, penalties)
        assert found.penalty == penalties[errors.argmin()]
        chosen.append(found.penalty)
    assert len(set(chosen)) > 1


def test_a_state_that_never_differs_gives_the_mean_target():
    x, y = pairs()
    constant = x[:1].expand_as(x)
    folds = [Moments.of(constant[:15], y[:15]), Moments.of(constant[15:], y[15:])]
    found = fitted(folds)
    assert torch.allclose(found.weight, torch.zeros(()).double())
    assert torch.allclose(found(constant)[0], y.mean(0))


@torch.no_grad()
def affine_encoder(policy):
    """Encoder blocks that are affine maps of each token, to 1e-9: no attention, no kink, no norm.

    A norm whose epsilon dwarfs every variance divides by a constant.
    """
    for layer in range(policy.config.n_encoder_layers):
        block = policy.encoder[layer]
        block.attn.out_proj.weight.zero_()
        block.mlp.linear1.bias.fill_(500.0)
        block.mlp.linear2.bias.copy_(-block.mlp.linear2.weight.sum(1) * 500.0)
        for norm in (block.ln1, block.ln2):
            norm.eps = 1e12
            norm.weight.mul_(1e6)
    return policy


@pytest.fixture(scope="module")
def affine(small, scenes_of):
    """A policy whose encoder is affine, lenses tuned on 40 episodes, and twelve other scenes."""
    policy = affine_encoder(copy.deepcopy(small("act", torch.float64)))
    tuned = tune(policy, scenes_of(policy, episodes=40), penalties=(1e-12, 1e-9, 1e-3))
    return policy, tuned, scenes_of(policy, episodes=12, seed=1)


def off(policy, scenes, lenses):
    """Root mean square error against the policy, by lens."""
    found = decoded(policy, scenes, [policy_itself(policy), *lenses])
    return (found[1:] - found[0]).square().mean((1, 2, 3)).sqrt()


def test_affine_blocks_are_undone_by_the_tuned_lens_and_not_by_the_raw_one(affine):
    policy, tuned, scenes = affine
    lenses = tuned.lenses(policy)
    mine = [one for one in lenses if one.variant is Variant.TUNED and one.place.name[:2] == "en"]
    raw = [encoder_lens(policy, layer) for layer in range(2)]
    assert len(mine) == 2
    assert off(policy, scenes, mine).max() < 1e-6
    assert off(policy, scenes, raw).min() > 1e-2


def test_the_shuffled_control_is_no_better_than_the_mean(affine):
    policy, tuned, scenes = affine
    control = [one for one in tuned.lenses(policy) if one.variant is Variant.SHUFFLED]
    own = decoded(policy, scenes, [policy_itself(policy)])[0]
    mean = (own - tuned.mean("hook_actions", 0)).square().mean().sqrt()
    seeing = [one for one in control if one.place.name.startswith(("encoder", "cross"))]
    assert len(seeing) == 3
    assert off(policy, scenes, seeing).min() > 0.9 * mean


def test_a_relay_cannot_be_known_before_it_by_tuning_either():
    """Reading the token by itself, no map finds what attention has not brought there yet."""
    policy = relay_policy()
    made = [(p.clean, p.corrupt) for p in relay_pairs(40, seed=3)]
    tuned = tune(policy, [replace(clean, episode=i) for i, (clean, _) in enumerate(made)])
    lenses = {one.name: one for one in tuned.lenses(policy)}
    for pair in made[:3]:
        chunks = decoded(policy, pair, [lenses[f"encoder {layer}, tuned"] for layer in range(3)])
        apart = (chunks[:, 0] - chunks[:, 1]).abs().amax((1, 2))
        assert apart[0] < 1e-6
        assert apart[1:].min() > 0.1


def test_every_state_but_the_last_has_its_map_and_its_control(small, scenes_of):
    for name in ("act", "pre_norm_three_decoder_layers", "no_cameras"):
        policy = small(name)
        tuned = tune(policy, scenes_of(policy, episodes=6, moments=2))
        lenses = tuned.lenses(policy)
        assert len({one.name for one in lenses}) == len(lenses)
        config = policy.config
        places = config.n_encoder_layers + 3 * config.n_decoder_layers
        count = lambda variant, lenses=lenses: sum(one.variant is variant for one in lenses)
        assert count(Variant.TUNED) == count(Variant.SHUFFLED) == places
        assert count(Variant.MEAN) == len(head_lenses(policy))
        chunks = decoded(
            policy, scenes_of(policy), [*lenses, *token_lenses(policy, tuned.translators)]
        )
        assert torch.isfinite(chunks).all()


def test_means_are_those_of_the_scenes_that_were_fitted_on(small, scenes_of):
    policy = small("act")
    scenes = scenes_of(policy, episodes=7, moments=2)
    tuned = tune(policy, scenes)
    actions, cache = policy.run_with_cache(stack(scenes))
    mixed = "decoder.0.cross_attn.hook_z"
    assert torch.allclose(tuned.mean(mixed, 0), cache[mixed][::2].mean(0), atol=1e-5)
    assert torch.allclose(tuned.mean(mixed), cache[mixed].mean(0), atol=1e-5)
    assert torch.allclose(tuned.mean("hook_actions", 10), actions[1::2].mean(0), atol=1e-5)
    assert torch.allclose(tuned.mean("hook_actions", 99), actions.mean(0), atol=1e-5)
    assert (tuned.n_scenes, tuned.n_episodes) == (14, 7)


def test_before_the_first_cross_attention_the_tuned_lens_knows_no_scene(small, scenes_of):
    policy = small("act")
    lenses = tune(policy, scenes_of(policy, episodes=6)).lenses(policy)
    blind = [one for one in lenses if one.place.name in ("decoder start", "self-attention 0")]
    found = decoded(policy, scenes_of(policy, seed=2), blind)
    assert len(blind) == 4
    assert torch.allclose(found, found[:1, :1].expand_as(found), atol=1e-4)
    raw = decoded(policy, scenes_of(policy), [stream_lens(policy, 0, Sublayer.START)])
    assert not torch.allclose(raw[0, 0], found[0, 0], atol=1e-2)


def test_batches_hold_one_moment_and_fold_of_episodes_apart():
    episodes = np.repeat(np.arange(11), 3)
    folds = _folds(episodes, 5, seed=0)
    assert np.bincount(folds).min() >= 2
    seen = []
    for fold, batch in _batches(episodes, folds, seed=0):
        assert len(batch) >= 2
        assert len(set(episodes[batch])) == len(batch)
        assert set(folds[episodes[batch]]) == {fold}
        assert len({i % 3 for i in batch}) == 1
        seen += batch
    assert sorted(seen) == list(range(33))


def test_too_few_episodes_are_an_error(small, scenes_of):
    policy = small("act")
    with pytest.raises(SceneError, match="4 episodes at least, got 3"):
        tune(policy, scenes_of(policy, episodes=3, moments=2))
    with pytest.raises(SceneError, match="got 0"):
        tune(policy, [])
