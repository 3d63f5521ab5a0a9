"""Key statistics against sums taken one key at a time, and what they refuse."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from actlens import HookedACT
from actlens.errors import CheckpointError, HookNameError
from actlens.rome import (
    EditError,
    KeyMetric,
    MLPSite,
    RidgeCurve,
    key_statistics,
    load_statistics,
    make_edit,
    save_statistics,
)
from actlens.rome.fingerprint import digests_of, upstream_sha256
from actlens.rome.moments import EpisodeMoments
from actlens.rome.ridge import held_out_drift
from tests.rome.conftest import CHUNK, scene, scenes


def keys_of(model, one, block="decoder.0"):
    """One scene's keys by a hook of our own."""
    kept = []
    with model.hooks([(f"{block}.mlp.hook_post", lambda post, hook: kept.append(post.clone()))]):
        model(one)
    return kept[0][0].detach()


def by_hand(model, some, block="decoder.0", counted=lambda one: range(CHUNK)):
    """The mean over episodes of the mean of h h^T over an episode's keys."""
    episodes = {}
    for one in some:
        keys = keys_of(model, one, block)
        episodes.setdefault(one.episode, []).extend(keys[k].numpy() for k in counted(one))
    means = [np.mean([np.outer(h, h) for h in keys], 0) for keys in episodes.values()]
    return np.mean(means, 0), sum(map(len, episodes.values()))


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_the_moment_is_that_of_keys_taken_one_at_a_time(policy, batch_size):
    some = scenes(13)  # four episodes of three frames and one of one, which weighs as much
    found = key_statistics(policy, iter(some), "decoder.0", batch_size=batch_size)
    moment, n_keys = by_hand(policy, some)
    np.testing.assert_allclose(found.moment.numpy(), moment, rtol=1e-12, atol=1e-14)
    assert (found.n_keys, found.n_frames, found.n_episodes) == (n_keys, 13, 5)
    assert found.moment.dtype == torch.float64


def test_padded_chunk_positions_are_left_out(policy):
    some = [scene(number, n_padded=number % 4) for number in range(24)]
    valid = lambda one: range(int((~one.action_is_pad).sum()))
    moment, n_keys = by_hand(policy, some, counted=valid)
    found = key_statistics(policy, some, "decoder.0")
    np.testing.assert_allclose(found.moment.numpy(), moment, rtol=1e-12, atol=1e-14)
    assert found.n_keys == n_keys < 24 * CHUNK


def test_tokens_of_an_encoder_block_are_all_counted_padding_or_not(policy):
    some = [scene(number, n_padded=2) for number in range(4)]
    tokens = range(policy.config.n_tokens)
    moment, n_keys = by_hand(policy, some, "encoder.1", counted=lambda one: tokens)
    found = key_statistics(policy, some, "encoder.1")
    np.testing.assert_allclose(found.moment.numpy(), moment, rtol=1e-12, atol=1e-14)
    assert found.n_keys == n_keys


def test_of_many_positions_as_many_are_drawn_evenly(policy):
    some = scenes(24)
    found = key_statistics(policy, some, "encoder.1", max_positions=4)
    assert found.n_keys == 24 * 4
    again = key_statistics(policy, some, "encoder.1", max_positions=4, batch_size=5)
    torch.testing.assert_close(found.moment, again.moment, rtol=1e-12, atol=1e-14)
    other = key_statistics(policy, some, "encoder.1", max_positions=4, seed=1)
    assert not torch.allclose(found.moment, other.moment, rtol=1e-3)
    whole = key_statistics(policy, some, "encoder.1").moment
    mean = sum(
        key_statistics(policy, some, "encoder.1", max_positions=4, seed=seed).moment
        for seed in range(12)
    )
    # Without bias the error of a mean over twelve draws is 0.29 of one draw's.
    assert (mean / 12 - whole).norm() < 0.5 * (found.moment - whole).norm()


def test_the_sample_holds_keys_of_the_scenes_it_names(policy, statistics):
    assert len(statistics.sample) == 24
    for key, (episode, frame, position) in zip(
        statistics.sample, statistics.sampled_from.tolist(), strict=True
    ):
        torch.testing.assert_close(key, keys_of(policy, scene(3 * episode + frame))[position])


def test_the_span_of_the_demonstrated_actions_is_kept(policy, statistics):
    actions = torch.cat([one.action for one in scenes(24)])
    low, high = actions.min(0).values, actions.max(0).values
    assert torch.equal(statistics.action_span, torch.stack([low, high]))
    without = [replace(one, action=None) for one in scenes(24)]
    assert key_statistics(policy, without, "decoder.0").action_span.shape == (2, 0)


def test_a_sample_of_a_long_stream_is_drawn_from_all_of_it(policy, monkeypatch):
    monkeypatch.setattr("actlens.rome.statistics.SAMPLE_SIZE", 5)
    found = key_statistics(policy, scenes(30), "decoder.0", batch_size=10)
    assert len({tuple(row) for row in found.sampled_from.tolist()}) == 5
    assert found.sampled_from[:, 0].max() > 2  # not the first five scenes


def test_too_few_keys_are_an_error_that_says_how_many_it_takes(policy):
    two = scenes(2)
    n_active = int((by_hand(policy, two)[0].diagonal() > 0).sum())
    assert n_active > 10
    message = (
        f"10 keys of 2 scenes are too few for statistics of {n_active} active neurons: it takes at "
        f"least {n_active} keys, about {-(-n_active // CHUNK)} scenes"
    )
    with pytest.raises(EditError, match=message):
        key_statistics(policy, two, "decoder.0")


def test_no_scene_an_episode_in_pieces_and_training_mode_are_errors(policy, build):
    with pytest.raises(EditError, match="no key"):
        key_statistics(policy, [], "decoder.0")
    mixed = [scene(0), scene(4), scene(1)]
    with pytest.raises(EditError, match=r"episode .*0.* come in pieces"):
        key_statistics(policy, mixed, "decoder.0")
    with pytest.raises(EditError, match="call `eval"):
        key_statistics(build().train(), scenes(24), "decoder.0")


def test_a_block_that_is_not_there_is_an_error_that_names_those_that_are(policy):
    for block in ("decoder.1", "vae.0", "encoder", "decoder.0.mlp"):
        with pytest.raises(HookNameError, match=r"it has encoder\.0, encoder\.1, decoder\.0"):
            key_statistics(policy, scenes(24), block)


# ── whose they are ───────────────────────────────────────────────────────────────────────────


def test_statistics_fit_while_what_the_keys_depend_on_is_the_same(statistics, build):
    model = build()
    upstream = ("embed.", "encoder.", "decoder.query_pos", "decoder.0")
    behind = ("decoder.0.mlp.linear2", "decoder.0.ln3")
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        kept = value.clone()
        value += 1.0
        digests = digests_of(model)
        if name.startswith(upstream) and not name.startswith(behind):
            with pytest.raises(EditError, match="belong to other weights"):
                statistics.require_fits(digests)
        else:
            statistics.require_fits(digests)
        value.copy_(kept)
    model.normalizer.shift_0 += 1
    with pytest.raises(EditError, match="belong to other weights"):
        statistics.require_fits(digests_of(model))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_weights_that_keys_depend_on_are_those_that_gradients_reach(build, pre_norm):
    """The referee is autograd: a weight is upstream of a key if the key has a gradient by it."""
    model = build(pre_norm=pre_norm, n_decoder_layers=2)
    for block in ("encoder.0", "encoder.1", "decoder.0", "decoder.1"):
        site = MLPSite.of(model, block)
        named = dict(model.named_parameters())
        kept = []
        keep = lambda post, hook, kept=kept: kept.append(post)
        with model.hooks([(site.keys, keep)]):
            model(scene(0))
        reached = torch.autograd.grad(kept[0].sum(), list(named.values()), allow_unused=True)
        upstream = {name for name, slope in zip(named, reached, strict=True) if slope is not None}
        digests = dict.fromkeys(model.state_dict(), "before")
        before = upstream_sha256(digests, site)
        counted = {
            name for name in named if upstream_sha256(digests | {name: "after"}, site) != before
        }
        # What gives no gradient may count as well: biases of keys, which softmax cancels.
        assert upstream <= counted
        assert not any("linear2" in name and name.startswith(block) for name in counted)


def test_a_policy_in_another_precision_is_the_same_policy(build, statistics):
    model = build()
    single = build().float()
    for name, value in single.state_dict().items():
        model.state_dict()[name].copy_(value)
    site = MLPSite.of(model, "decoder.0")
    assert upstream_sha256(digests_of(model), site) == upstream_sha256(digests_of(single), site)


def test_statistics_of_other_data_have_another_hash(policy, statistics):
    assert key_statistics(policy, scenes(24), "decoder.0").data_sha256 == statistics.data_sha256
    assert key_statistics(policy, scenes(23), "decoder.0").data_sha256 != statistics.data_sha256


# ── files ────────────────────────────────────────────────────────────────────────────────────


def test_saved_statistics_come_back_whole(statistics, tmp_path):
    back = load_statistics(save_statistics(statistics, tmp_path / "statistics"))
    nothing = dict.fromkeys(("moment", "sample", "sampled_from", "action_span"))
    for name in nothing:
        assert torch.equal(getattr(back, name), getattr(statistics, name))
    assert replace(back, **nothing) == replace(statistics, **nothing)


def test_loading_refuses_statistics_of_other_weights(statistics, build, tmp_path):
    folder, model = save_statistics(statistics, tmp_path), build()
    load_statistics(folder, model=model)
    model.embed.latent_proj.bias.data += 1
    with pytest.raises(EditError, match="belong to other weights"):
        load_statistics(folder, model=model)
    with pytest.raises(EditError, match="belong to other weights"):
        load_statistics(folder, model=build(n_encoder_layers=1))


def test_damaged_or_mixed_files_are_refused(policy, statistics, tmp_path):
    folder = save_statistics(statistics, tmp_path / "one")
    other = save_statistics(key_statistics(policy, scenes(21), "decoder.0"), tmp_path / "other")
    numbers, said = folder / "key_statistics.safetensors", folder / "key_statistics.json"
    good, text = numbers.read_bytes(), said.read_text()
    numbers.write_bytes((other / numbers.name).read_bytes())
    with pytest.raises(CheckpointError, match="is not the file"):
        load_statistics(folder)
    numbers.write_bytes(good[:-100])
    with pytest.raises(CheckpointError, match=r"damaged|cut short"):
        load_statistics(folder)
    numbers.write_bytes(good)
    for change in ({"block": 3}, {"n_keys": "many"}, {"upstream_sha256": "x"}, {"ridges": None}):
        said.write_text(json.dumps(json.loads(text) | change))
        if change == {"block": 3}:  # text after all, and no policy has it
            with pytest.raises(HookNameError, match="no block '3'"):
                make_edit(policy, [_request()], KeyMetric.of(load_statistics(folder)))
            continue
        with pytest.raises(EditError, match="not understood"):
            load_statistics(folder)
    said.write_text("[1")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_statistics(folder)
    with pytest.raises(CheckpointError):
        load_statistics(tmp_path / "nothing")


def _request():
    from actlens.rome import Request
    from tests.rome.conftest import PAN

    return Request(scene(0), PAN)


# ── the ridge ────────────────────────────────────────────────────────────────────────────────


def moments_of(keys):
    return keys.T @ keys / len(keys)


def test_the_held_out_drift_is_that_of_edits_made_one_at_a_time():
    generator = torch.Generator().manual_seed(0)
    halves = [torch.randn(40, 6, generator=generator, dtype=torch.float64) for _ in range(2)]
    some = [half[:5] for half in halves]
    curve = held_out_drift(tuple(map(moments_of, halves)), tuple(some), (1e-3, 0.1))
    for ridge, drift in zip(curve.ridges, curve.drift, strict=True):
        squares = []
        for fitted, other, keys in ((*halves, some[0]), (*halves[::-1], some[1])):
            c = moments_of(fitted).numpy()
            inverse = np.linalg.inv(c + ridge * np.trace(c) / 6 * np.eye(6))
            for k in keys.numpy():
                change = inverse @ k / (k @ inverse @ k)  # writes 1 at k
                squares.append(np.mean((other.numpy() @ change) ** 2))
        assert drift == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-12)


def test_the_rule_takes_a_ridge_between_overfitting_and_ignoring_the_data():
    """Few samples of keys in 40 dimensions: C alone overfits, the identity alone spills."""
    generator = torch.Generator().manual_seed(1)
    scale = torch.logspace(0, -2, 40, dtype=torch.float64)
    draw = lambda n: torch.randn(n, 40, generator=generator, dtype=torch.float64) * scale
    halves = [draw(45), draw(45)]
    curve = held_out_drift(tuple(map(moments_of, halves)), (halves[0][:20], halves[1][:20]))
    at = dict(zip(curve.ridges, curve.drift, strict=True))
    assert at[1e-8] > 1.2 * min(curve.drift)
    assert at[10.0] > 1.2 * min(curve.drift)
    assert 1e-8 < curve.chosen < 10.0
    assert at[curve.chosen] <= 1.05 * min(curve.drift)
    assert all(at[r] > 1.05 * min(curve.drift) for r in curve.ridges if r > curve.chosen)


def test_of_ridges_that_are_as_good_the_largest_is_taken():
    assert RidgeCurve((1e-3, 1e-2, 1e-1, 1.0), (1.0, 0.99, 1.03, 1.1)).chosen == 1e-1


def test_the_curve_is_that_of_every_other_episode_against_the_rest(policy, statistics):
    halves = [by_hand(policy, [s for s in scenes(24) if s.episode % 2 == h])[0] for h in (0, 1)]
    of = statistics.sampled_from[:, 0] % 2
    expected = held_out_drift(
        (torch.tensor(halves[0]), torch.tensor(halves[1])),
        (statistics.sample[of == 0], statistics.sample[of == 1]),
    )
    assert statistics.ridge_curve.ridges == expected.ridges
    np.testing.assert_allclose(statistics.ridge_curve.drift, expected.drift, rtol=1e-3)


def test_without_two_episodes_the_ridge_is_the_default(policy):
    found = key_statistics(policy, scenes(8, per_episode=8), "decoder.0")
    assert found.ridge_curve == RidgeCurve((), ())
    assert KeyMetric.of(found).ridge == 0.01


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_no_ridge_is_no_metric(statistics, ridge):
    with pytest.raises(EditError, match="must be positive"):
        KeyMetric.of(statistics, ridge)


def test_the_metric_solves_with_the_ridged_moment(statistics):
    metric = KeyMetric.of(statistics, 0.03)
    c = statistics.moment.numpy()
    ridged = c + 0.03 * np.trace(c) / len(c) * np.eye(len(c))
    expected = np.linalg.solve(ridged, statistics.sample[:4].numpy().T).T
    np.testing.assert_allclose(metric.solve(statistics.sample[:4]).numpy(), expected, rtol=1e-8)


# ── cost ─────────────────────────────────────────────────────────────────────────────────────


def test_on_a_real_policy_the_sums_cost_little_beside_the_forward():
    model = HookedACT.from_pretrained("so101-pick-cube")
    config = model.config
    observation = {c.key: torch.zeros(3, c.height, c.width) for c in config.cameras}
    observation["observation.state"] = torch.zeros(6)
    with FlopCounterMode(display=False) as forward:
        model(observation)
    moments = EpisodeMoments(model.decoder[0].mlp.linear2.weight)
    with FlopCounterMode(display=False) as sums:
        moments.add(torch.ones(64, config.d_mlp))
    assert 2 * sums.get_total_flops() < 0.05 * forward.get_total_flops()  # twice: in float64
