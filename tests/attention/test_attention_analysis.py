"""The whole analysis: on a planted relay, whose answers are known, and its tables on small ACTs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from relay import relay_policy
from scipy import stats

from actlens.attention import (
    AttentionOptions,
    TokenGroup,
    analyse_attention,
    leave_one_out,
    token_groups,
)
from actlens.attention.effects import OTHER, SAME
from actlens.attention.survey import ALL, EACH, MEAN
from actlens.claims import Support
from actlens.errors import SceneError
from actlens.interventions import run_scene

OPTIONS = AttentionOptions(tops=(1, 4), random=2, null_draws=2)


@pytest.fixture(scope="module")
def result(act, episodes_of):
    """Twelve episodes of two random scenes."""
    return analyse_attention(act, episodes_of(act, n=12), options=OPTIONS)


@pytest.fixture(scope="module")
def relay(relay_scene):
    """The relay policy over ten episodes that differ in the state alone."""
    episodes = [[relay_scene(e, episode=e)] for e in range(10)]
    return analyse_attention(relay_policy(), episodes, options=AttentionOptions(tops=(1, 2)))


# ── the planted relay ────────────────────────────────────────────────────────────────────────


def test_the_relay_absorbs_the_state_entirely(relay):
    latent, state, env = relay.survey.groups
    for moment in (SAME, OTHER):
        found = relay.effects.absorption(state, moment)
        bounds = [float(x) for x in (found.estimate, found.low, found.high)]
        assert bounds == pytest.approx([1, 1, 1], abs=1e-9)
        assert float(relay.effects.carried(state, env, moment).estimate) == pytest.approx(1)
        assert float(relay.effects.carried(state, state, moment).estimate) == pytest.approx(0)
        assert np.isnan(relay.effects.absorption(latent, moment).estimate)  # nothing at the input
        assert float(relay.effects.moved(state, at_memory=False, moment=moment).estimate) > 0.1


def test_the_relays_verdicts_are_those_of_the_note(relay):
    verdicts = {(c.claim, c.reading): c for c in relay.claims()}
    told = {key: claim.verdict for key, claim in verdicts.items()}
    few = [c.verdict for c in relay.claims() if (c.claim[:4], c.reading) == ("only", "tokens")]
    assert few == [Support.SUPPORTED] * 3
    assert told["the arm-state token is not among them", "top 1"] is Support.SUPPORTED
    assert told["pixel tokens absorb the arm state", "swap, same moment"] is Support.SUPPORTED
    assert verdicts["the arm-state token is not among them", "top 1"].value == 0


def test_the_relay_acts_on_one_token(relay):
    table = relay.effects.sufficiency().set_index(["chosen_by", "k"])
    assert table.error["effect", 1] == pytest.approx(0, abs=1e-6)
    assert table.error["random", 1] > 0.1


def test_the_claims_number_of_tokens_is_read_twice(result):
    claims = [claim for claim in result.claims() if claim.figure.startswith("hold 90 %")]
    number, share = claims
    assert number.value == pytest.approx(float(result.survey.measure("tokens_for_0.9").estimate))
    n = result.survey.n_tokens
    for name in ("value", "low", "high", "null"):
        assert getattr(share, name) == pytest.approx(100 * getattr(number, name) / n)
    assert (number.rule, share.rule) == ("at most 20", "at most 3.3")


# ── on how many ──────────────────────────────────────────────────────────────────────────────


def test_measures_are_means_over_scenes_blocks_and_positions(result):
    found = result.survey.measure("inverse_simpson")
    by_hand = [(1 / (s.attention**2).sum(-1)).mean() for s in result.survey.scenes]
    assert float(found.estimate) == pytest.approx(np.mean(by_hand))
    by_episode = np.reshape(by_hand, (12, 2)).mean(1)
    half = 1.96 * by_episode.std(ddof=1) / 12**0.5
    assert float(found.high - found.low) / 2 == pytest.approx(half, rel=0.25)


def test_the_table_holds_every_head_and_position(result, act):
    table = result.survey.concentration()
    config = act.config
    assert len(table) == (config.n_heads + 2) * (config.chunk + 1) * 8
    rows = table.set_index(["head", "position", "measure"]).value
    for measure in ("perplexity", "mass_of_top_5", "standing_out"):
        heads = [rows[str(head), "2", measure] for head in range(config.n_heads)]
        assert rows[EACH, "2", measure] == pytest.approx(np.mean(heads))
        positions = [rows[MEAN, str(i), measure] for i in range(config.chunk)]
        assert rows[MEAN, ALL, measure] == pytest.approx(np.mean(positions))
        for head in (MEAN, EACH):
            whole = result.survey.measure(measure, head=head)
            assert rows[head, ALL, measure] == pytest.approx(float(whole.estimate))
    assert (table.low <= table.value + 1e-12).all()
    assert (table.value <= table.high + 1e-12).all()


def test_the_mean_head_is_never_more_concentrated_than_heads_are(result):
    mean, each = (result.survey.measure("perplexity", head=head) for head in (MEAN, EACH))
    assert mean.estimate > each.estimate


def test_positions_behind_the_demonstrations_end_do_not_count(act, episodes_of):
    episodes = episodes_of(act, n=2, moments=1)
    pad = torch.zeros(act.config.chunk, dtype=torch.bool)
    pad[2:] = True
    action = torch.zeros(act.config.chunk, act.config.action_dim)
    cut = [[replace(s, action=action, action_is_pad=pad) for s in scenes] for scenes in episodes]
    whole, short = (analyse_attention(act, given, options=OPTIONS) for given in (episodes, cut))
    first = np.mean([s.attention[:2] for s in whole.survey.scenes], axis=1)
    assert short.survey.averaged == pytest.approx(first)
    table = short.survey.concentration().set_index(["head", "position", "measure"])
    assert np.isnan(table.value[MEAN, "3", "perplexity"])
    assert short.effects.scenes[0].averaged != pytest.approx(whole.effects.scenes[0].averaged)


def test_other_weights_are_measured_in_the_same_way(result):
    table = result.survey.concentration_by_weight().set_index(["weight", "position", "measure"])
    for kind in ("norm", "rollout"):
        by_hand = [(1 / (getattr(s, kind) ** 2).sum(-1)) for s in result.survey.scenes]
        assert table.value[kind, ALL, "inverse_simpson"] == pytest.approx(np.mean(by_hand))
        third = np.mean([one[3] for one in by_hand])
        assert table.value[kind, "3", "inverse_simpson"] == pytest.approx(third)
    assert (table.low <= table.value + 1e-12).all()


# ── on which ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["attention", "norm", "rollout"])
def test_the_shares_of_groups_that_are_parts_sum_to_one(result, kind):
    parts = {group.name for group in result.survey.groups if group.is_part}
    table = result.survey.shares()
    total = table[table.group.isin(parts)].groupby("position")[kind].sum()
    assert total.to_numpy() == pytest.approx(1)
    assert table[table.group == "all cameras"][kind].to_numpy() == pytest.approx(
        table[table.group.isin({"top", "side"})].groupby("position", sort=False)[kind].sum()
    )


def test_shares_by_moment_average_to_those_of_all_scenes(result):
    by_moment = result.survey.shares_by_moment()
    assert by_moment.groupby("group").moment.apply(sorted).tolist() == [[0, 1]] * 5
    whole = result.survey.shares().query("position == 'all'").set_index("group")
    for column in ("attention", "norm", "rollout"):
        means = by_moment.groupby("group")[column].mean()
        assert means[whole.index].to_numpy() == pytest.approx(whole[column].to_numpy())
    state = [s.averaged(s.attention)[1] for s in result.survey.scenes if s.moment == 1]
    (there,) = by_moment.query("group == 'state' and moment == 1").attention
    assert there == pytest.approx(np.mean(state))


def test_ranks_are_scipys(result):
    table = result.survey.shares().set_index(["group", "position"])
    for position in ("0", "4", ALL):
        expected = []
        for scene in result.survey.scenes:
            weights = scene.averaged(scene.attention) if position == ALL else scene.attention[
                int(position)
            ]  # fmt: skip
            expected.append(stats.rankdata(-weights, method="min")[1])
        assert table["rank"]["state", position] == pytest.approx(np.mean(expected))
    assert table["rank"].isna()["top", ALL]


def test_random_groups_lie_in_the_range_of_chance(act, episodes_of):
    found = analyse_attention(act, episodes_of(act, n=2, moments=1), options=OPTIONS)
    generator, inside = np.random.default_rng(8), []
    n = len(act.tokens)
    for _ in range(60):
        tokens = tuple(generator.choice(n, 4, replace=False).tolist())
        survey = replace(found.survey, groups=(TokenGroup("some", tokens),))
        row = survey.shares().query("position == 'all'").iloc[0]
        inside.append(row.chance_low <= row.attention <= row.chance_high)
    assert 0.8 < np.mean(inside) < 1


def test_another_order_of_tokens_gives_the_same_answers(result):
    survey = result.survey
    order = np.random.default_rng(4).permutation(survey.n_tokens)
    where = np.argsort(order)
    scenes = tuple(
        replace(
            s, **{kind: getattr(s, kind)[:, order] for kind in ("attention", "norm", "rollout")}
        )
        for s in survey.scenes
    )
    groups = tuple(
        replace(group, tokens=tuple(where[list(group.tokens)].tolist())) for group in survey.groups
    )
    moved = replace(survey, scenes=scenes, groups=groups)
    columns = ["attention", "norm", "rollout", "rank", "attention_low", "among_20"]
    before, after = survey.shares()[columns], moved.shares()[columns]
    assert after.to_numpy(float) == pytest.approx(before.to_numpy(float), nan_ok=True)
    overlaps = (
        one.overlaps().drop(columns="among").to_numpy()[:, [2, 3, 4]] for one in (survey, moved)
    )
    first, second = (values.astype(float) for values in overlaps)
    assert first == pytest.approx(second)


# ── what they do ─────────────────────────────────────────────────────────────────────────────


def test_every_episode_is_intervened_on_once_and_paired_once(result):
    scenes = result.effects.scenes
    assert len({scene.reading.episode for scene in scenes}) == len(scenes) == 12
    assert result.effects.pairs.tolist() == [i // 2 for i in range(12)]
    assert [scene.reading.moment for scene in scenes] == [0, 0, 1, 1] * 3
    assert result.shown.episode == scenes[0].reading.episode[1]


def test_importance_is_leaving_out_and_its_ranks_are_scipys(result, act, episodes_of):
    first = result.effects.scenes[0]
    scene = episodes_of(act, n=1)[0][0]
    assert first.importance == pytest.approx(leave_one_out(act, run_scene(act, scene)))
    expected = [
        stats.spearmanr(s.reading.averaged(s.reading.norm), s.averaged).statistic
        for s in result.effects.scenes
    ]
    assert float(result.effects.rank_correlation("norm").estimate) == pytest.approx(
        np.mean(expected)
    )
    at = [
        stats.spearmanr(s.reading.attention[1], s.importance[:, 1]).statistic
        for s in result.effects.scenes
    ]
    table = result.effects.rank_correlations().set_index(["weight", "position"])
    assert table.spearman["attention", "1"] == pytest.approx(np.mean(at))


def test_absorption_is_a_ratio_of_sums_with_an_interval_over_pairs(result):
    state = result.survey.groups[1]
    swaps = [scene.swaps[SAME] for scene in result.effects.scenes]
    expected = 1 - sum(s.at_memory[1] for s in swaps) / sum(s.at_input[1] for s in swaps)
    found = result.effects.absorption(state)
    assert float(found.estimate) == pytest.approx(expected)
    assert found.low <= found.estimate <= found.high
    halves = [replace(result.effects, scenes=result.effects.scenes[:n]) for n in (8, 10)]
    assert [np.isnan(half.absorption(state).low) for half in halves] == [True, False]  # 4, 5 pairs


def test_swapped_scenes_are_of_the_moments_they_say(act, episodes_of):
    """With both moments of an episode alike, the swap of moments makes no difference."""
    alike = [[s[0], replace(s[0], frame=10)] for s in episodes_of(act, n=2)]
    scene = analyse_attention(act, alike, options=OPTIONS).effects.scenes[0]
    assert scene.swaps[SAME].at_memory == pytest.approx(scene.swaps[OTHER].at_memory)
    apart = analyse_attention(act, episodes_of(act, n=2), options=OPTIONS).effects.scenes[0]
    assert apart.swaps[SAME].at_memory == pytest.approx(scene.swaps[SAME].at_memory)
    assert apart.swaps[OTHER].at_memory != pytest.approx(scene.swaps[SAME].at_memory)


def test_a_choice_over_itself_is_one(result):
    same = result.effects.error("random", over="random")
    assert same.estimate == pytest.approx([1, 1])
    raw, scaled = result.effects.error("own"), result.effects.error("own", scaled=True)
    assert scaled.estimate * result.effects.scenes_differ(OTHER) == pytest.approx(raw.estimate)


def test_all_tables_are_there_for_every_kind_of_policy(policy, episodes_of):
    found = analyse_attention(policy, episodes_of(policy, n=2, moments=1), options=OPTIONS)
    frames = found.frames()
    assert set(frames) == {
        "claims", "concentration", "concentration_by_weight", "shares", "shares_by_moment",
        "overlap", "sufficiency", "rank_correlation", "absorption", "carriers", "tokens",
    }  # fmt: skip
    assert all(len(table) for table in frames.values())
    assert set(frames["concentration"].layer) == set(range(policy.config.n_decoder_layers))
    assert len(frames["tokens"]) == len(policy.tokens)
    assert {*frames["shares"].group} == {group.name for group in token_groups(policy.tokens)}
    has_state = policy.config.state_dim is not None
    assert any("state" in claim.claim for claim in found.claims()) == has_state
    assert all(claim.verdict is Support.UNDECIDED for claim in found.claims())  # two episodes


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────


def test_an_odd_episode_is_looked_at_and_not_swapped(act, episodes_of):
    found = analyse_attention(act, episodes_of(act, n=3, moments=1), options=OPTIONS)
    assert (len(found.survey.scenes), len(found.effects.scenes)) == (3, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e[:1], "between two episodes; got one"),
        (lambda e: [], "got none"),
        (lambda e: [e[0], e[0]], "Episode 0 comes twice"),
        (lambda e: [e[0], e[1][:1]], "2 of each: got 1"),
        (lambda e: [[e[0][0], e[1][0]], e[2]], "of one episode, 2 of each: got 2 of 2"),
    ],
    ids=["one", "none", "twice", "uneven", "mixed"],
)
def test_scenes_that_would_mislead_are_refused(act, episodes_of, change, message):
    with pytest.raises(SceneError, match=message):
        analyse_attention(act, change(episodes_of(act, n=3)), options=OPTIONS)


def test_options_that_measure_nothing_are_refused(relay_scene):
    for options in ({"tops": ()}, {"tops": (0, 3)}, {"random": 0}, {"null_draws": 0}):
        with pytest.raises(SceneError, match="at least one"):
            AttentionOptions(**options)
    episodes = [[relay_scene(0)], [relay_scene(1, episode=1)]]
    with pytest.raises(SceneError, match="3 tokens 5 are all"):
        analyse_attention(relay_policy(), episodes, options=AttentionOptions(tops=(5,)))
