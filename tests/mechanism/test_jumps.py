"""Jumps between neighbours read off the share of a table, at the depth at which it is."""

import numpy as np
import pytest
import torch

from actlens.mechanism import (
    JUMP,
    Part,
    Vectored,
    between,
    between_at,
    mechanism_axis,
    neighbours_of,
    some_executed,
)
from actlens.planted import (
    WIDE,
    FeatureRule,
    LinearRule,
    Mixture,
    PlantError,
    Region,
    Stored,
    Table,
    Tent,
    World,
    plant,
    table_in_encoder,
)

N = 30


@pytest.fixture(scope="module")
def world():
    return World(seed=5)


@pytest.fixture(scope="module")
def shown(world):
    return world.scenes(world.positions(Region.TRAIN, N))


@pytest.fixture(scope="module")
def planted(world, shown):
    policy = world.policy()
    stored = Stored.of(policy, shown)
    return lambda mechanism: plant(policy, stored, mechanism, readout=world.readout).model


def jumps(model, scenes):
    run = Vectored.of(model, scenes, range(4))
    return np.nanmedian(between(run, neighbours_of(run.x, scenes)).jump)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
def test_the_jump_is_the_tables_share(planted, shown, alpha):
    assert jumps(planted(Mixture(alpha)), shown) == pytest.approx(alpha, abs=0.02)


@pytest.mark.parametrize("shape", [Tent(), WIDE], ids=["tents", "wide"])
def test_tables_without_clean_plateaus_jump_too(planted, shown, shape):
    assert jumps(planted(Table(shape)), shown) > 0.8


def test_a_curve_is_no_jump(planted, shown):
    assert jumps(planted(FeatureRule()), shown) < 0.1


def test_a_table_in_the_encoder_jumps_there_and_not_behind(world, shown):
    model = table_in_encoder(world.policy(), shown).model
    found = {
        part: np.nanmedian(between_at(model, part, shown, range(4))[0].jump)
        for part in (Part.ENCODER, Part.CROSS_ATTENTION)
    }
    assert found[Part.ENCODER] > 0.9
    assert found[Part.CROSS_ATTENTION] < 0.05
    assert jumps(model, shown) < 0.05


def test_a_table_in_the_decoder_is_seen_from_every_depth(planted, shown):
    model = planted(Table())
    for part in (Part.ENCODER, Part.CROSS_ATTENTION):
        assert np.nanmedian(between_at(model, part, shown, [0])[0].jump) > 0.9


@torch.no_grad()
def test_the_way_through_the_network_is_that_of_the_hooked_model(planted, shown):
    """Slope and deviation from plain hooks, one blend at a time."""
    model, hook = planted(FeatureRule()), "encoder.0.hook_resid_pre"
    found, pairs = between_at(model, Part.ENCODER, shown, [0, 2])
    for pair in (0, 7):
        first, second = (shown[at[pair]] for at in (pairs.first, pairs.second))
        x, y = (model.run_with_cache(s, names_filter=hook)[1][hook] for s in (first, second))

        def answers(share, x=x, y=y, first=first):
            blend = lambda value, hook: x + share * (y - x)
            with model.hooks(fwd_hooks=[(hook, blend)]):
                _, cache = model.run_with_cache(first, names_filter="hook_actions_normalized")
            return cache["hook_actions_normalized"][0, [0, 2]].double()

        start, end = answers(0.0), answers(1.0)
        slope = (answers(1 / 64) - answers(-1 / 64)) * 32
        expected = float(slope.norm() / (end - start).norm())
        assert found.slope[pair] == pytest.approx(expected, rel=1e-3)
        shares = np.linspace(0, 1, 33)
        progress = [float(((answers(s) - start) * (end - start)).sum()) for s in shares]
        off = np.abs(np.array(progress) / float((end - start).square().sum()) - shares)
        assert found.deviation[pair] == pytest.approx(4 * np.trapezoid(off, shares), rel=1e-3)


def test_the_axis_has_its_twins_and_a_memoriser_that_looks_smooth(planted, shown):
    axis = mechanism_axis(planted(Mixture(0.5)), shown, memoriser=True)
    found = axis.of(JUMP)
    assert found.rule < 0.02
    assert found.table > 0.98
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(0.5, abs=0.02)
    assert found.memoriser < 0.5
    assert axis.memoriser_error < 0.05  # it knows the exchanged actions by heart
    assert "smooth against table surrogate" not in axis.frame().statistic.tolist()


def test_where_no_table_can_be_planted_the_axis_says_so(world, shown):
    model = table_in_encoder(world.policy(), shown).model
    axis = mechanism_axis(model, shown)
    assert "told from" in axis.no_table
    assert np.isnan(axis.of(JUMP).table)
    assert axis.of(JUMP).value < 0.05


def test_actions_of_episodes_with_different_frames_cannot_be_exchanged(world, planted):
    positions = world.positions(Region.TRAIN, 6)
    uneven = [
        *world.scenes(positions, frames=[0]),
        *world.scenes(positions[:3], frames=[4]),
    ]
    with pytest.raises(PlantError, match="equally many"):
        mechanism_axis(planted(LinearRule()), uneven, memoriser=True)


def test_the_positions_looked_at_are_carried_out(world):
    assert some_executed(world.policy()) == (0, 1, 2, 3)
