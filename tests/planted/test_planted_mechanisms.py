"""Tables, rules and mixtures as functions of vectors, before any policy."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from actlens.planted import (
    WIDE,
    FeatureRule,
    LinearRule,
    Mixture,
    PlantError,
    Plateau,
    Role,
    Table,
    Tent,
)
from actlens.planted.disguise import Disguise, disguised, extra_neurons
from actlens.planted.mechanisms import PENALTIES, best_penalty
from actlens.planted.tables import in_single_precision

D, N, TARGETS = 20, 40, 3
SHAPES = [Table(), Table(Tent()), Table(WIDE), Table(Plateau(0.0, 0.3))]
RULES = [LinearRule(1e-3), LinearRule(1e-3, pairs=9), FeatureRule(64, 1e-3)]


def on_sphere(rng, n):
    x = rng.normal(size=(n, D))
    x -= x.mean(1, keepdims=True)
    return torch.from_numpy(x / np.sqrt((x**2).mean(1, keepdims=True)))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return on_sphere(rng, N), torch.from_numpy(rng.normal(size=(N, TARGETS)))


@pytest.mark.parametrize("table", SHAPES, ids=["plateau", "tent", "wide", "ramp"])
def test_a_table_answers_every_entry_exactly_and_nothing_else(data, table):
    inputs, targets = data
    neurons = table.build(inputs, targets)
    np.testing.assert_allclose(neurons(inputs), targets, atol=1e-12)
    cells = neurons.coefficients(inputs) > 0
    owner = torch.from_numpy(neurons.entry)[None] == torch.arange(N)[:, None]
    assert not (cells & ~owner).any()
    nowhere = torch.zeros(1, D).double()
    np.testing.assert_allclose(neurons(nowhere)[0], targets.mean(0), atol=1e-12)
    assert set(neurons.roles) == {Role.TABLE}
    zero = Table(table.shape, centred=False).build(inputs, targets)
    np.testing.assert_allclose(zero(nowhere), 0, atol=1e-12)
    np.testing.assert_allclose(zero(inputs), targets, atol=1e-12)


def test_the_cells_of_a_plateau_are_flat_inside_and_silent_outside(data):
    inputs, targets = data
    neurons = Table(Plateau(0.35, 0.5)).build(inputs, targets)
    cosines = (inputs @ inputs.T / D).fill_diagonal_(-1)
    nearest = cosines.max(1).values.acos()
    # Radii are chords, which are to angles as sines of their halves are.
    along = on_sphere(np.random.default_rng(1), N)
    along -= (along * inputs).sum(1, keepdim=True) / D * inputs
    along *= D**0.5 / along.norm(dim=1, keepdim=True)
    for share, inside in ((0.3, True), (0.34, True), (0.52, False), (0.7, False)):
        turn = 2 * torch.arcsin(share * torch.sin(nearest / 2))[:, None]
        moved = turn.cos() * inputs + turn.sin() * along
        own = [neurons.entry == i for i in range(N)]
        value = torch.stack(
            [
                neurons.at(np.flatnonzero(own[i])).coefficients(moved[[i]])[0]
                @ torch.tensor([1.0, -1.0]).double()
                for i in range(N)
            ]
        )
        np.testing.assert_allclose(value, float(inside), atol=1e-9)


def test_equal_entries_share_a_cell_and_contradictions_are_refused(data):
    inputs, targets = data
    twice = Table().build(torch.cat([inputs, inputs[:5]]), torch.cat([targets, targets[:5]]))
    assert len(twice) == 2 * N
    assert twice.entry.max() == N - 1
    with pytest.raises(PlantError, match=r"Entry \d+ cannot be told from another one"):
        Table().build(torch.cat([inputs, inputs[:1]]), torch.cat([targets, targets[:1] + 1]))
    with pytest.raises(PlantError, match="two different entries"):
        Table().build(inputs[:1], targets[:1])


def test_near_duplicates_are_told_apart_by_what_differs(data):
    """Pairs 1e-3 apart, in directions of little variance: whitened keys lead by far more."""
    _, targets = data
    rng = np.random.default_rng(4)
    close = np.zeros((N, D))
    close[:, :10] = np.repeat(rng.normal(size=(N // 2, 10)), 2, 0)
    close[:, 10:] = 1e-3 * rng.normal(size=(N, 10))
    close = torch.from_numpy(close)
    own = close / close.square().sum(1, keepdim=True)
    assert (own @ close.T).fill_diagonal_(0).max(1).values.min() > 1 - 1e-4
    neurons = Table().build(close, targets)
    assert neurons.weight.abs().max() < 1e4
    np.testing.assert_allclose(neurons(close), targets, atol=1e-6)


@pytest.mark.parametrize("rule", RULES[:2], ids=["plain", "mixed"])
def test_the_linear_rule_is_ridge_regression_everywhere(data, rule):
    inputs, targets = data
    neurons = rule.build(inputs, targets)
    fitted = Ridge(alpha=1e-3 * N).fit(inputs, targets)
    anywhere = 3 * torch.from_numpy(np.random.default_rng(2).normal(size=(200, D)))
    np.testing.assert_allclose(neurons(anywhere), fitted.predict(anywhere), atol=1e-9)
    assert len(neurons) == 2 * (rule.pairs or TARGETS)


def test_the_feature_rule_is_ridge_regression_on_its_own_neurons(data):
    inputs, targets = data
    neurons = RULES[2].build(inputs, targets)
    fitted = Ridge(alpha=1e-3 * N).fit(neurons.coefficients(inputs), targets)
    np.testing.assert_allclose(
        neurons(inputs), fitted.predict(neurons.coefficients(inputs)), atol=1e-9
    )
    share_on = (neurons.coefficients(inputs) > 0).double().mean()
    assert 0.3 < share_on < 0.7
    line = inputs[0] + torch.linspace(0, 1, 101)[:, None] * (inputs[1] - inputs[0])
    bends = np.abs(np.diff(neurons(line), n=2, axis=0)).max()
    assert bends > 1e-6, "it is not linear"
    assert bends < 0.1 * float((neurons(inputs[1:2]) - neurons(inputs[:1])).abs().max())


@pytest.mark.parametrize("rule", RULES, ids=["linear", "mixed", "features"])
def test_a_mixture_is_the_sum_of_its_parts(data, rule):
    inputs, targets = data
    other = on_sphere(np.random.default_rng(3), 50)
    mixed = Mixture(0.3, Table(), rule).build(inputs, targets)
    parts = Table().build(inputs, targets), rule.build(inputs, targets)
    for x in (inputs, other):
        np.testing.assert_allclose(mixed(x), 0.3 * parts[0](x) + 0.7 * parts[1](x), atol=1e-9)
    assert mixed.roles.count(Role.TABLE) == 2 * N
    assert Mixture(0.3).table_fraction == 0.3
    with pytest.raises(PlantError, match=r"0\.\.1, got 1.5"):
        Mixture(1.5)


def test_the_penalty_is_the_best_by_leaving_one_entry_out():
    rng = np.random.default_rng(5)
    inputs = rng.normal(size=(60, 15)) * np.geomspace(1, 1e-2, 15)
    targets = inputs @ rng.normal(size=(15, TARGETS)) + 0.3 * rng.normal(size=(60, TARGETS))

    def left_out(penalty):
        errors = []
        for i in range(60):
            rest = np.arange(60) != i
            fitted = Ridge(alpha=penalty * 60).fit(inputs[rest], targets[rest])
            errors.append(fitted.predict(inputs[[i]])[0] - targets[i])
        return np.square(errors).mean()

    expected = min(PENALTIES, key=left_out)
    x, t = torch.from_numpy(inputs), torch.from_numpy(targets)
    assert best_penalty(x, t) == expected
    assert expected not in (PENALTIES[0], PENALTIES[-1])
    found = LinearRule().build(x, t)(x)
    np.testing.assert_allclose(found, LinearRule(expected).build(x, t)(x), atol=1e-12)


@pytest.mark.parametrize("mechanism", [Table(), RULES[2]], ids=["table", "features"])
def test_order_and_scale_of_the_neurons_change_no_digit(data, mechanism):
    inputs, targets = data
    neurons = mechanism.build(inputs, targets)
    hidden = disguised(neurons, Disguise(rescale=True, seed=4))
    np.testing.assert_allclose(hidden(inputs), neurons(inputs), atol=1e-12)
    assert not torch.equal(hidden.bias, neurons.bias)
    assert sorted(hidden.entry) == sorted(neurons.entry)
    mine = hidden.entry == 7
    if isinstance(mechanism, Table):
        alone = hidden.at(np.flatnonzero(mine))
        np.testing.assert_allclose(alone(inputs[[7]]), targets[[7]], atol=1e-9)


def test_distractors_are_as_active_as_others_and_cancelling_pairs_cancel(data):
    inputs, targets = data
    like = FeatureRule(64).build(inputs, targets).value
    beside = torch.linalg.qr(torch.randn(D, 5, generator=torch.manual_seed(1)).double())[0]
    beside = beside @ beside.T
    aside, pairs = extra_neurons(Disguise(distractors=50, cancelling=8), like, inputs, beside)
    assert len(aside) == 50
    assert len(pairs) == 16
    on = (aside.coefficients(inputs) > 0).double().mean()
    assert 0.4 < on < 0.6
    np.testing.assert_allclose(aside.value @ beside, aside.value, atol=1e-12)
    np.testing.assert_allclose(aside.value.norm(dim=1), float(like.norm(dim=1).median()))
    np.testing.assert_allclose(pairs(inputs), 0, atol=1e-12)
    assert pairs.at(np.arange(8))(inputs).abs().max() > 0.01


def test_noise_moves_every_number_by_its_share(data):
    neurons = LinearRule(1e-3, pairs=9).build(*data)
    noisy = disguised(neurons, Disguise(permute=False, noise=0.1))
    moved = (noisy.weight - neurons.weight).norm() / neurons.weight.norm()
    assert 0.08 < moved < 0.12
    assert torch.equal(disguised(neurons, Disguise(permute=False)).weight, neurons.weight)


def test_a_table_of_float32_keys_still_reaches_its_answers(data):
    inputs, targets = data
    neurons = in_single_precision(Table(Tent()).build(inputs, targets), inputs)
    assert torch.equal(neurons.weight, neurons.weight.float().double())
    np.testing.assert_allclose(neurons(inputs), targets, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Plateau(0.6, 0.5), "flat < zero"),
        (lambda: Tent(1.2), "0..1 distances"),
        (lambda: LinearRule(pairs=2).build(torch.eye(4).double(), torch.eye(4).double()), "pairs"),
    ],
    ids=["plateau", "tent", "pairs"],
)
def test_impossible_mechanisms_are_refused(make, message):
    with pytest.raises(PlantError, match=message):
        make()


def test_a_table_of_thousands_of_entries_is_built_in_blocks():
    """More entries than are scored at once: margins of the last ones are right too."""
    inputs = on_sphere(np.random.default_rng(6), 1500)
    targets = torch.arange(1500).double()[:, None]
    neurons = Table().build(inputs, targets)
    rows = torch.tensor([0, 1023, 1024, 1499])
    np.testing.assert_allclose(neurons(inputs[rows]), targets[rows], atol=1e-9)
    assert sorted(neurons.entry) == sorted([*range(1500), *range(1500)])
