"""The mechanism axis on planted decoders, whose share of a table is known."""

import numpy as np
import pytest
import torch

from actlens.errors import SceneError
from actlens.mechanism import (
    Tail,
    Vectored,
    between,
    contest,
    locality,
    mechanism_axis,
    neighbours,
    substitutes,
)
from actlens.planted import (
    FeatureRule,
    LinearRule,
    Mixture,
    Region,
    Stored,
    Table,
    Tent,
    World,
    plant,
)
from tests.keyvalue.value_models import ARCHITECTURES, small_policy, some_scenes

N = 40


@pytest.fixture(scope="module")
def world():
    return World(seed=2)


@pytest.fixture(scope="module")
def shown(world):
    return world.scenes(world.positions(Region.TRAIN, N), frames=[0])


@pytest.fixture(scope="module")
def new(world):
    return world.scenes(world.positions(Region.NEW, N), frames=[0], first_episode=1000)


@pytest.fixture(scope="module")
def planted(world, shown):
    policy = world.policy(dtype=torch.float64)
    stored = Stored.of(policy, shown)
    return lambda mechanism: plant(policy, stored, mechanism, readout=world.readout).model


def places(scenes):
    return np.array([[scene.labels["cube_x"], scene.labels["cube_y"]] for scene in scenes])


def episodes(scenes):
    return np.array([scene.episode for scene in scenes])


def pairs_of(scenes):
    frames = np.array([scene.frame for scene in scenes])
    return neighbours(places(scenes), episodes(scenes), frames)


# ── the tail is the policy's own ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_tail_makes_of_its_vector_what_the_policy_does(new_model, name):
    model, scenes = small_policy(new_model, name), some_scenes()
    run = Vectored.of(model, scenes, [0, 2])
    torch.testing.assert_close(run.tail(run.x), run.actions)
    for i, scene in enumerate(scenes[:2]):
        _, cache = model.run_with_cache(scene)
        torch.testing.assert_close(run.x[i], cache[run.tail.hook][0, [0, 2]])
        torch.testing.assert_close(run.actions[i], cache["hook_actions_normalized"][0, [0, 2]])
        keys = cache[run.tail.site.keys][0, [0, 2]]
        torch.testing.assert_close(run.tail.coefficients(run.x[i]), keys)


def test_points_on_the_way_begin_and_end_at_the_vectors_and_stay_where_norms_put_them(new_model):
    model, scenes = small_policy(new_model), some_scenes()
    run = Vectored.of(model, scenes, [1])
    tail, norm = Tail(model), model.decoder[-1].ln2
    way = tail.on_the_way(run.x[0], run.x[1], torch.linspace(0, 1, 5, dtype=torch.float64))
    torch.testing.assert_close(way[0], run.x[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(way[-1], run.x[1], rtol=1e-4, atol=1e-4)
    plain = (way - norm.bias) / norm.weight
    torch.testing.assert_close(
        plain.square().mean(-1), torch.ones_like(plain[..., 0]), atol=1e-3, rtol=0
    )


# ── statistics against what was planted ──────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("mechanism", "slope"),
    [(LinearRule(), 1.0), (Table(), 0.0), (Mixture(0.25), 0.75), (Mixture(0.5), 0.5)],
    ids=["rule", "table", "a_quarter", "half"],
)
def test_the_slope_reads_off_how_much_is_looked_up(planted, shown, mechanism, slope):
    run = Vectored.of(planted(mechanism), shown, range(4))
    found = between(run, pairs_of(shown))
    assert np.nanmedian(found.slope) == pytest.approx(slope, abs=0.01)


@torch.no_grad()
def test_slopes_are_finite_differences(planted, shown):
    run = Vectored.of(planted(FeatureRule()), shown, range(4))
    pairs = pairs_of(shown)
    found = between(run, pairs)
    for pair in (0, 11, 40):
        x, y = (run.x[at[pair]] for at in (pairs.first, pairs.second))
        slope = (run.tail(x + 1e-6 * (y - x)) - run.tail(x - 1e-6 * (y - x))) / 2e-6
        expected = float(slope.norm() / (run.tail(y) - run.tail(x)).norm())
        assert found.slope[pair] == pytest.approx(expected, rel=1e-3)


def test_a_rule_goes_straight_across_and_tables_do_not(planted, shown):
    deviation = {}
    for mechanism in (LinearRule(), FeatureRule(), Table(), Table(Tent())):
        run = Vectored.of(planted(mechanism), shown, range(4))
        name = f"{mechanism.name} {getattr(mechanism, 'shape', '')}"
        deviation[name] = np.nanmedian(between(run, pairs_of(shown)).deviation)
    rules, tables = list(deviation.values())[:2], list(deviation.values())[2:]
    assert max(rules) < 0.2 < 0.8 < min(tables)


def test_cells_belong_to_scenes_and_rules_to_all(planted, shown):
    rule, table = (
        locality(Vectored.of(planted(mechanism), shown, range(4)))
        for mechanism in (LinearRule(), Table())
    )
    assert rule.participation > 0.5
    # A cell works in its own scene, and by what is missing from its mean in all others.
    assert table.participation < 4 / N
    assert abs(np.median(rule.specificity)) < 0.3
    assert np.median(table.specificity) > 3


def test_where_nothing_was_shown_a_smooth_rival_predicts_rules_and_nobody_a_table(
    planted, shown, new
):
    balance = {}
    frames = np.zeros(N, int)
    for mechanism in (LinearRule(), Mixture(0.5), Table()):
        runs = [Vectored.of(planted(mechanism), scenes, range(4)) for scenes in (shown, new)]
        found = contest(runs[0], frames, episodes(shown), runs[1], frames)
        balance[mechanism.name] = found.balance
    rule, half, table = balance.values()
    assert rule > 0.7
    assert abs(half) < 0.3
    assert abs(table) < 0.1


def test_a_linear_map_can_stand_in_for_a_linear_rule(planted, shown):
    run = Vectored.of(planted(LinearRule()), shown, range(4))
    found = {one.name: one.change.mean() for one in substitutes(run, episodes(shown))}
    assert found["linear map"] < 0.3 * found["nearest entry"] < found["mean"] < found["nothing"]


# ── the axis ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("mechanism", "low", "high"),
    [(LinearRule(), -0.05, 0.05), (Table(), 0.95, 1.05)],
    ids=["rule", "table"],
)
def test_a_planted_policy_lies_where_its_own_twin_lies(planted, shown, new, mechanism, low, high):
    axis = mechanism_axis(planted(mechanism), shown, new)
    found = axis.frame().set_index("statistic")
    for statistic in ("|log10 slope / secant|", "smooth against table surrogate"):
        assert low <= found.lookup[statistic] <= high
    assert (found.low.isna() | (found.low <= found.value)).all()
    assert (axis.n_trained, axis.n_held_out) == (N, N)


def test_a_half_table_lies_between_its_twins(planted, shown, new):
    axis = mechanism_axis(planted(Mixture(0.5)), shown, new)
    found = axis.frame().set_index("statistic")
    assert 0.5 < found.lookup["smooth against table surrogate"] <= 1.05
    assert 0 < found.lookup["|log10 slope / secant|"] < 0.5  # logarithms: half is not half way
    assert found.value["|log10 slope / secant|"] == pytest.approx(np.log10(2), abs=0.01)


def test_scenes_without_neighbours_or_without_enough_episodes_are_refused(planted, shown, new):
    with pytest.raises(SceneError, match="no neighbours"):
        neighbours(np.zeros((3, 2)), np.zeros(3, int), np.zeros(3, int))
    run = Vectored.of(planted(LinearRule()), shown[:5], range(4))
    frames = np.zeros(5, int)
    with pytest.raises(SceneError, match="no contest"):
        contest(run, frames, episodes(shown[:5]), run, frames)


def test_neighbours_are_the_nearest_of_other_episodes_at_the_same_frame():
    points = np.array([[0.0], [0.1], [0.2], [1.0], [1.05]])
    groups, frames = np.array([0, 0, 1, 2, 3]), np.array([0, 0, 0, 0, 1])
    found = neighbours(points, groups, frames, n=1)
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [
        (0, 2), (1, 2), (2, 1), (3, 2),
    ]  # fmt: skip
