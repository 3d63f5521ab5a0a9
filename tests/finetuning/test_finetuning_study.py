"""The whole study on a teacher's scenes: halves, budgets, intervals, claims, locality."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from actlens.claims import Support
from actlens.finetuning import (
    NEW,
    Budget,
    FinetuningError,
    Material,
    Options,
    Recipe,
    claims_of,
    decoder_mlp,
    equal_budget,
    finetune,
    head,
    large_ways,
    size,
    standard_ways,
)
from actlens.finetuning.updates import Whole
from actlens.finetuning.ways import Way
from actlens.scene import stack
from tests.finetuning.conftest import demonstrated

OPTIONS = Options(Recipe(steps=30, batch_size=8, rates=(0.03,)))


@pytest.fixture(scope="module")
def material(teacher):
    """At new places one joint is asked to do something else; elsewhere all is as it was."""
    new = [
        replace(scene, action=scene.action + torch.tensor([3.0, 0.0, 0.0]))
        for scene in demonstrated(teacher, 24, seed=10)
    ]
    known = demonstrated(teacher, 24, seed=11, first_episode=100)
    return Material(new, {"old": known[:12]}, known[12:])


@pytest.fixture(scope="module")
def found(teacher, material):
    return finetune(
        teacher,
        material,
        [*standard_ways(teacher), *large_ways(teacher, upper_bound=True)],
        OPTIONS,
    )


def test_budgets_are_equal_where_they_say_so(teacher, found):
    budget = equal_budget(teacher)
    assert budget == size(head(teacher).weights(teacher))
    equal = [one for one in found.outcomes if one.way.budget is Budget.EQUAL]
    assert len(equal) == 4
    assert {one.n_free for one in equal} == {budget}
    rank_one = {
        (one.way.part.name, one.way.budget): one
        for one in found.outcomes
        if one.way.budget in (Budget.RANK_ONE, Budget.KNOWN_KEY)
    }
    assert len(rank_one) == 4
    for (part, _), one in rank_one.items():
        config = teacher.config
        assert one.n_free == (config.action_dim if part == "head's matrix" else config.d_model)
        for tuned in one.tuned:
            (name,) = tuned.before
            change = tuned.after[name] - tuned.before[name]
            assert torch.linalg.matrix_rank(change, rtol=1e-6) == 1


def test_an_episode_is_measured_by_the_training_that_did_not_see_it(teacher, material, found):
    """A plain forward of the trained policy, episode by episode."""
    one = found.outcome("head", "equal")
    after, before = one.after[NEW], found.untrained(NEW)
    at = list(range(teacher.config.n_action_steps))
    for episode in range(12):
        scenes = [s for s in material.new if s.episode == episode]
        counted = torch.stack([~s.action_is_pad for s in scenes])[:, at]
        expert = torch.stack([s.action for s in scenes])
        trained_without = one.tuned[((episode + 1) % 2 == 1 and 0) or 1]
        trained_without = one.tuned[0] if episode % 2 else one.tuned[1]
        with torch.no_grad():
            plain = (teacher(stack(scenes)) - expert).abs().mean(-1)[:, at]
            with trained_without.applied(teacher):
                off = (teacher(stack(scenes)) - expert).abs().mean(-1)[:, at]
        rows = after.episodes == episode
        assert after.sums[0, rows].sum() == pytest.approx(float(off[counted].sum()), rel=1e-6)
        assert before.sums[0, rows].sum() == pytest.approx(float(plain[counted].sum()), rel=1e-6)


def test_the_table_says_what_was_measured(found):
    table = found.frame()
    assert set(table.places) == {NEW, "old"}
    assert len(table) == len(found.outcomes) * 2
    for _, row in table.iterrows():
        assert row.before_low <= row.before <= row.before_high
        assert row.change == pytest.approx(row.after - row.before)
        assert row.cut == pytest.approx(1 - row.after / row.before) or row.before < 1e-6
    mlp = table[(table.part == "decoder MLP") & (table.budget == "whole")]
    assert mlp.p.isna().all()
    assert (mlp.against_mlp == 0).all()
    others = table[table.p.notna()]
    expected = stats.false_discovery_control(others.p)
    np.testing.assert_allclose(others.q, expected)


def test_a_shift_of_one_joint_is_learned_by_the_head_and_forgets_the_rest(found):
    table = found.frame().set_index(["part", "budget", "places"])
    row = table.loc[("head", "equal", NEW)]
    assert row.cut > 0.5
    assert table.loc[("head", "equal", "old")].change_low > 0


def test_claims_come_with_figures_and_rules(found):
    claims = claims_of(found)
    assert len({claim.claim for claim in claims}) == 4
    by_reading = {claim.reading: claim for claim in claims}
    assert by_reading["all of the MLP's numbers"].verdict in set(Support)
    table = found.frame().set_index(["part", "budget", "places"])
    grown = by_reading["old, all of the MLP's numbers"]
    assert grown.value == pytest.approx(-table.loc[("decoder MLP", "whole", "old")].cut)
    assert grown.low <= grown.value <= grown.high
    special = [c for c in claims if "against" in c.reading]
    # Cross-attention, encoder, its last block, head; all but one also equal; two matrices.
    assert len(special) == 9
    few = [c for c in claims if "neurons" in c.reading]
    assert len(few) == 1


def test_all_neurons_are_the_whole_gain_and_none_the_bias(teacher, found):
    locality = found.locality
    assert locality.neurons[0] == 0
    assert locality.neurons[-1] == teacher.config.d_mlp
    for shares in (locality.by_effect, locality.at_random):
        assert float(shares[-1].estimate) == pytest.approx(1.0)
    assert float(locality.by_effect[0].estimate) == float(locality.at_random[0].estimate)
    assert locality.needed(0.999) is not None
    assert locality.needed(9.0) is None


def test_seeds_are_averaged_and_their_spread_told(teacher, material):
    ways = [Way(decoder_mlp(teacher), Whole(), Budget.WHOLE)]
    two = finetune(teacher, replace(material, demonstrations=()), ways, replace(OPTIONS, seeds=2))
    (one,) = two.outcomes
    assert len(one.rates) == 4
    assert (one.seed_spread > 0).all()


def test_fewer_demonstrations_teach_less(teacher, material):
    ways = [Way(head(teacher), Whole(), Budget.EQUAL)]
    options = replace(OPTIONS, recipe=replace(OPTIONS.recipe, rates=(0.01, 0.03)))
    few = finetune(teacher, material, ways, replace(options, n_demonstrations=1))
    all_of_them = finetune(teacher, material, ways, options)
    error = lambda found: found.outcomes[0].after[NEW].mean().estimate[0]
    assert error(all_of_them) < error(few)


def test_mistakes_are_told(teacher, material):
    with pytest.raises(FinetuningError, match="at least four"):
        finetune(teacher, replace(material, new=material.new[:6]), standard_ways(teacher), OPTIONS)
    with pytest.raises(FinetuningError, match="at least one seed"):
        Options(seeds=0)
    rehearsing = Options(replace(OPTIONS.recipe, rehearsal=1.0))
    with pytest.raises(FinetuningError, match="Rehearsal needs"):
        finetune(teacher, replace(material, demonstrations=()), standard_ways(teacher), rehearsing)
