"""Edit success by site and tracing: by whole forwards, by other people's regressions, planted."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LinearRegression

from actlens.errors import SceneError
from actlens.interventions import run_scene
from actlens.interventions.mlp_runs import MLPRuns
from actlens.interventions.tracing import token_spread
from actlens.model.mlp_site import MLPSite, known_blocks
from actlens.rome import (
    NO_JITTER,
    EditError,
    EditOptions,
    KeyMetric,
    Offset,
    Request,
    key_statistics,
    make_edit,
)
from actlens.rome.block_tracing import Tracing, trace_blocks
from actlens.rome.explained import explained
from actlens.rome.site_result import Outcomes
from actlens.rome.site_success import SiteOptions, site_success
from actlens.rome.statistics import key_statistics_of
from tests.interventions.conftest import ARCHITECTURES
from tests.relay import relay_policy
from tests.rome.conftest import PAN, asked, chunk_of, scene, scenes

EXECUTED = [0, 1, 2]
NUMBERS = (0, 3, 6, 9, 12, 15)  # one scene of every episode
OPTIONS = SiteOptions(edit=EditOptions(), n_far=2, within=0.01)


def tried(model, **asked):
    requests = [Request(scene(number), PAN, **asked) for number in NUMBERS]
    near = [[scene(number + 1)] for number in NUMBERS]
    statistics = key_statistics_of(model, scenes(24), known_blocks(model))
    return site_success(model, requests, statistics, near, options=OPTIONS)


@pytest.fixture(scope="module")
def success(policy):
    return tried(policy)


# ── several MLPs from one forward ────────────────────────────────────────────────────────────


def test_statistics_of_several_blocks_are_those_of_each(policy):
    blocks = ["encoder.0", "decoder.0", "encoder.1"]
    together = key_statistics_of(policy, scenes(24), blocks, max_positions=4)
    for block, one in zip(blocks, together, strict=True):
        alone = key_statistics(policy, scenes(24), block, max_positions=4)
        assert one.site == alone.site
        assert torch.equal(one.moment, alone.moment)
        assert torch.equal(one.sample, alone.sample)
        assert torch.equal(one.sampled_from, alone.sampled_from)
        assert one.ridge_curve == alone.ridge_curve
        assert (one.upstream_sha256, one.data_sha256) == (alone.upstream_sha256, alone.data_sha256)


@pytest.mark.parametrize("architecture", ["act", "pre_norm", "two_decoder_layers"])
def test_runs_kept_at_several_mlps_are_those_of_each(build, architecture):
    model = build(**ARCHITECTURES[architecture])
    sites = [MLPSite(block) for block in known_blocks(model)]
    for site, kept in zip(sites, MLPRuns.of_sites(model, sites, scenes(3)), strict=True):
        alone = MLPRuns.of(model, site, scenes(3))
        assert torch.equal(kept.keys, alone.keys)
        written = torch.randn(kept.output.shape, generator=torch.Generator().manual_seed(0))
        assert torch.equal(kept.actions_with(written), alone.actions_with(written))
        torch.testing.assert_close(kept.actions_with(0 * written), kept.actions)


# ── what is measured ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("block", ["encoder.1", "decoder.0"])
def test_outcomes_are_those_of_the_edited_policy(policy, success, block, unchanged):
    metric = KeyMetric.of(key_statistics(policy, scenes(24), block))
    b, r, number = success.blocks.index(block), 2, NUMBERS[2]
    edit = make_edit(policy, [Request(scene(number), PAN)], metric, jitter=NO_JITTER)
    at = [number, number + 1, NUMBERS[3], NUMBERS[4]]
    before = torch.stack([chunk_of(policy, scene(n))[EXECUTED] for n in at])
    wanted = asked(policy, scene(number))[EXECUTED] - before[0]
    with edit.apply(policy):
        moved = torch.stack([chunk_of(policy, scene(n))[EXECUTED] for n in at]) - before
    share = (moved * wanted).sum((1, 2)) / wanted.square().sum()
    drift = (moved[2:].square().sum((1, 2)) / wanted.square().sum()).mean().sqrt()
    found = success.edits
    assert found.reached[r, b] == pytest.approx(float(share[0]), rel=1e-6)
    assert found.near[r, b] == pytest.approx(float(share[1]), rel=1e-6)
    assert found.far[r, b] == pytest.approx(float(drift), rel=1e-6)
    assert found.relative_norm[r, b] == pytest.approx(edit.relative_norm, rel=1e-6)
    assert found.granted[r, b]


def test_tracing_is_that_of_hooks_that_noise_and_restore(policy, success):
    """Whole forwards with hooks: the tokens are drawn anew here, from the spread alone."""
    some = [scene(number) for number in NUMBERS]
    spread = token_spread(policy, [run_scene(policy, one) for one in some])
    r, along, total = 2, dict.fromkeys(success.blocks, 0.0), 0.0
    one = some[r]
    clean_run = policy.run_with_cache(one)[1]
    clean = chunk_of(policy, one)[EXECUTED]
    kinds = ["state", *policy.tokens.cameras]
    for seed in range(3):
        noise = torch.zeros(len(policy.tokens), 32).double()
        for number, kind in enumerate(kinds):
            at = slice(1, 2) if kind == "state" else policy.tokens.camera(kind)
            # As documented: the tokens' number times the seed plus the kind's, "latent" being 0.
            draw = torch.Generator().manual_seed((len(policy.tokens) * seed + number + 1) << 20)
            drawn = torch.randn(1, *noise[at].shape, generator=draw, dtype=torch.float64)
            noise[at] = 3 * spread[kind] * drawn[0]
        add = ("embed.hook_tokens", lambda x, hook, noise=noise: x + noise)
        with policy.hooks([add]):
            noised = chunk_of(policy, one)[EXECUTED]
        total += float((clean - noised).square().sum())
        for block in success.blocks:
            name = f"{block}.hook_mlp_out"
            back = (name, lambda x, hook, name=name: clean_run[name])
            with policy.hooks([add, back]):
                given = chunk_of(policy, one)[EXECUTED]
            along[block] += float(((given - noised) * (clean - noised)).sum())
    expected = [along[block] / total for block in success.blocks]
    np.testing.assert_allclose(success.traced[r], expected, rtol=1e-6)
    assert success.traced.std() > 0.01
    rms = (total / 3 / 9) ** 0.5
    assert success.corrupted[r] == pytest.approx(rms, rel=1e-6)


def test_restoring_all_of_an_encoder_gives_more_than_one_block(policy):
    some = [scene(number) for number in NUMBERS]
    at = [EXECUTED] * len(some)
    wide = trace_blocks(policy, some, ["encoder.0"], at, Tracing(window=3))
    narrow = trace_blocks(policy, some, ["encoder.0"], at)
    assert not np.allclose(wide.share, narrow.share)
    np.testing.assert_allclose(wide.corrupted, narrow.corrupted)
    few = trace_blocks(policy, some, ["encoder.0"], at, Tracing(tokens=(1,)))
    assert not np.allclose(few.corrupted, narrow.corrupted, rtol=1e-3)


def test_random_sites_are_one_that_works_and_one_that_does_not(success):
    assert (success.edits.reached > 0.999).all()
    assert np.abs(success.random_keys.reached).mean() < 0.6
    np.testing.assert_allclose(
        success.random_keys.relative_norm, success.edits.relative_norm, rtol=1e-9
    )
    decoder = success.blocks.index("decoder.0")
    np.testing.assert_allclose(success.random_neurons.reached[:, decoder], 1, atol=1e-3)


def test_the_frame_has_a_row_for_every_request_and_block(success):
    frame = success.frame()
    assert len(frame) == len(NUMBERS) * len(success.blocks)
    row = frame[(frame.request == 2) & (frame.block == "encoder.1")].iloc[0]
    b = success.blocks.index("encoder.1")
    assert row.scene == "planted 2:0"
    assert (row.traced, row.near) == (success.traced[2, b], success.edits.near[2, b])
    assert row.keys_far == success.random_keys.far[2, b]
    assert row.failure == ""
    summary = success.summary().set_index("block")
    expected = frame.groupby("block").near.mean()
    for block in success.blocks:
        assert summary.near[block] == pytest.approx(expected[block], rel=1e-12)
        assert summary.near_low[block] < summary.near[block] < summary.near_high[block]


def test_several_outcomes_are_adjusted_for(success):
    frame = success.explained_frame().set_index("outcome")
    p = frame.p.dropna()
    assert len(p) >= 3
    np.testing.assert_allclose(frame.q[p.index], stats.false_discovery_control(p))
    assert frame.partial["near"] == success.explained()["near"].partial


def test_the_score_is_the_harmonic_mean():
    column = lambda *x: np.array([x]).T.astype(float)
    one = Outcomes(
        column(0.9, 1.2, 0.8, 0.5, 0.5),
        column(1, 1, 1, 1, 1) > 0,
        column(0.6, 0.7, -0.1, np.nan, 0.5),
        column(0.3, 0.0, 0.1, 0.25, 2.0),
        column(1, 1, 1, 1, 1),
    )
    expected = [stats.hmean([0.9, 0.6, 0.7]), stats.hmean([1, 0.7, 1]), 0, 0.6, 0]
    np.testing.assert_allclose(one.score[:, 0], expected, rtol=1e-9)


# ── planted policies ─────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def opposed(build):
    """Tracing points at the encoder; only the decoder's MLP can grant the request.

    The joint `pan` reads the difference of two entries of the stream that are equal whatever the
    scene: all that writes to them writes the same to both. Only an edit of the decoder's MLP can
    tell them apart, and its keys are the same in every scene, so that it carries nothing.
    """
    model = build(n_encoder_layers=1)
    block = model.decoder[0]
    with torch.no_grad():
        tied = [
            *block.attn.out_proj.parameters(),
            *block.cross_attn.out_proj.parameters(),
            *block.mlp.linear2.parameters(),
            *(x for norm in (block.ln1, block.ln2, block.ln3) for x in norm.parameters()),
            *model.ln_final.parameters(),
        ]
        for parameter in tied:
            parameter[1] = parameter[0]
        model.action_head.weight[0] = 0
        model.action_head.weight[0, :2] = torch.tensor([1.0, -1.0])
        block.mlp.linear1.weight.zero_()
        block.mlp.linear1.bias.fill_(1.0)
    return model


def test_edits_work_where_tracing_finds_nothing_and_fail_where_it_points(opposed):
    found = tried(opposed, positions=(1,))
    assert found.blocks == ("encoder.0", "decoder.0")
    encoder, decoder = found.traced.T
    assert (encoder > 0.01).all()
    np.testing.assert_allclose(decoder, 0, atol=1e-12)
    np.testing.assert_array_equal(found.edits.granted, [[False, True]] * len(NUMBERS))
    np.testing.assert_allclose(found.edits.reached[:, 1], 1, atol=1e-6)
    np.testing.assert_allclose(found.edits.far[:, 1], 1, atol=0.2)  # its keys are all the same
    assert all("cannot be reached" in first and not last for first, last in found.failures)
    assert list(found.summary().failed) == [len(NUMBERS), 0]
    verdict = found.explained()["efficacy"]
    assert verdict.rho < -0.8
    assert verdict.site == pytest.approx(1)
    assert np.isnan(verdict.partial)
    assert found.picks() <= 0.5


def test_a_dead_block_is_a_failure_and_no_crash(build):
    model = build()
    mlp = model.encoder[1].mlp
    with torch.no_grad():
        mlp.linear1.weight.zero_()
        mlp.linear1.bias.fill_(-1.0)
    found = tried(model)
    b = found.blocks.index("encoder.1")
    assert not found.edits.granted[:, b].any()
    assert not found.edits.reached[:, b].any()
    assert not found.edits.far[:, b].any()
    assert np.isnan(found.edits.relative_norm[:, b]).all()
    assert all("No neuron of this MLP was ever active" in row[b] for row in found.failures)
    np.testing.assert_allclose(found.traced[:, b], 0, atol=1e-12)
    others = [i for i in range(len(found.blocks)) if i != b]
    assert found.edits.granted[:, others].all()
    assert np.isfinite(found.explained()["efficacy"].rho)


def test_a_policy_whose_mlps_are_all_dead_has_nothing_to_explain():
    """The relay carries the state by attention alone."""
    model = relay_policy()
    some = []
    for number in range(12):
        draw = torch.Generator().manual_seed(number)
        one = scene(number)
        observation = {
            key: torch.randn(6, generator=draw).double()
            for key in ("observation.state", "observation.environment_state")
        }
        some.append(type(one)(observation, episode=number, source="relay"))
    statistics = key_statistics_of(model, some, known_blocks(model))
    offset = Offset({model.config.joints[0]: 0.1})
    requests = [Request(one, offset) for one in some[:5]]
    found = site_success(model, requests, statistics, [[]] * 5)
    assert all(message for row in found.failures for message in row)
    np.testing.assert_allclose(found.traced, 0, atol=1e-9)
    for one in found.explained().values():
        assert np.isnan([one.site, one.both, one.partial, one.rho, one.p]).all()


# ── what is explained ────────────────────────────────────────────────────────────────────────


@pytest.fixture
def made_up():
    """An outcome of site, score and noise; 30 requests at 4 blocks."""
    rng = np.random.default_rng(0)
    score = rng.uniform(size=(30, 4)) + np.arange(4) * 0.3
    noise = rng.normal(size=(30, 4))
    return 2.0 * np.arange(4) % 3 + 0.8 * score + 0.3 * noise, score, np.arange(30)


def test_shares_of_variance_are_those_of_linear_regressions(made_up):
    outcome, score, episodes = made_up
    outcome[3, 1] = np.nan
    found = explained(outcome, score, episodes, draws=50)
    rows = np.isfinite(outcome).ravel()
    dummies = np.tile(np.eye(4), (30, 1))[rows]
    y, t = outcome.ravel()[rows], score.reshape(-1, 1)[rows]
    fit = lambda x: LinearRegression().fit(x, y).score(x, y)
    site, both = fit(dummies), fit(np.hstack([dummies, t]))
    assert found.n_rows == 119
    assert found.site == pytest.approx(site, abs=1e-12)
    assert found.score == pytest.approx(fit(t), abs=1e-12)
    assert found.both == pytest.approx(both, abs=1e-12)
    assert found.partial == pytest.approx((both - site) / (1 - site), abs=1e-12)
    assert found.rho == pytest.approx(stats.spearmanr(y, t[:, 0]).statistic, abs=1e-12)
    within = [
        stats.spearmanr(outcome[:, b], score[:, b], nan_policy="omit").statistic for b in range(4)
    ]
    assert found.rho_within == pytest.approx(np.mean(within), abs=1e-12)
    assert found.partial_low < found.partial < found.partial_high
    assert found.rho_within_low < found.rho_within < found.rho_within_high
    assert found.p == pytest.approx(1 / 51)


def test_a_score_of_no_meaning_explains_nothing_beyond_the_site():
    small = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        outcome = np.arange(3) + 0.1 * rng.normal(size=(12, 3))
        score = np.arange(3) + 0.1 * rng.normal(size=(12, 3))  # varies with the site alone
        one = explained(outcome, score, np.arange(12), draws=59, seed=seed)
        assert one.score > 0.9  # which is what misleads
        small.append(one.p <= 0.05)
    assert np.mean(small) <= 0.15


def test_what_does_not_vary_is_not_explained(made_up):
    outcome, score, episodes = made_up
    constant = explained(np.ones_like(outcome) + 1e-6 * outcome, score, episodes, draws=20)
    assert np.isnan([constant.site, constant.partial, constant.rho, constant.p]).all()
    flat = explained(outcome, np.ones_like(score), episodes, draws=20)
    assert flat.partial == 0
    assert flat.both == flat.site
    assert np.isnan(flat.rho)


def test_intervals_resample_episodes(made_up):
    outcome, score, _ = made_up
    alone = explained(outcome, score, np.arange(30))
    shared = np.repeat(np.arange(6), 5)
    copies = np.repeat(np.arange(6) * 5, 5)  # five requests of an episode that are one
    together = explained(outcome[copies], score[copies], shared)
    width = lambda one: one.rho_within_high - one.rho_within_low
    assert width(together) > 1.5 * width(alone)
    assert np.isnan(together.p)  # requests of one episode do not change places
    few = explained(outcome[:4], score[:4], np.arange(4))
    assert np.isnan([few.partial_low, few.rho_high]).all()


# ── errors ───────────────────────────────────────────────────────────────────────────────────


def test_what_cannot_be_compared_is_refused(policy, build):
    statistics = key_statistics_of(policy, scenes(24), ["decoder.0"])
    requests = [Request(scene(number), PAN) for number in (0, 3)]
    with pytest.raises(SceneError, match="1 lists of near scenes for 2 requests"):
        site_success(policy, requests, statistics, [[]])
    same = [Request(scene(number), PAN) for number in (0, 1)]
    with pytest.raises(EditError, match="two episodes or more"):
        site_success(policy, same, statistics, [[], []])
    other = build(d_mlp=24)
    with torch.no_grad():
        other.encoder[0].mlp.linear1.bias.add_(0.1)
    with pytest.raises(EditError, match="belong to other weights"):
        site_success(other, requests, statistics, [[], []])
    with pytest.raises(EditError, match="give two scenes"):
        trace_blocks(policy, [scene(0)], ["decoder.0"], [EXECUTED])
