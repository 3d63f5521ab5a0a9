"""Training the decoder's end on cached vectors is training the policy in that part."""

import pytest
import torch

from actlens.planted import Region, World, rewritten
from actlens.retraining import Entries, cached
from actlens.scene import stack
from actlens.tails import Part, Shape, Tails, Training, draws, fit
from tests.keyvalue.value_models import ARCHITECTURES, small_policy, some_scenes

ACTION = "hook_actions_normalized"


@pytest.fixture
def setting(new_model):
    """A policy in float64, scenes with padding, and their cached entries."""

    def make(name):
        model = small_policy(new_model, name)
        scenes = some_scenes(n_padded=2)
        return model, scenes, Entries.of(model, cached(model, scenes))

    return make


def whole_loss(model, scenes, entries):
    """The masked L1 loss of a forward of everything, from the pictures on."""
    predicted = model.predict(model.prepare(stack(scenes)))
    valid = torch.stack([~scene.action_is_pad for scene in scenes])
    return (predicted[valid] - entries.actions).abs().mean()


def names(model):
    tails = Tails.of(model, 1)
    return {name: full for full, name in zip(tails.changes(model, 0), tails.weights, strict=True)}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_gradient_on_cached_vectors_is_the_whole_networks(setting, name):
    model, scenes, entries = setting(name)
    tails = Tails.of(model, 2)
    for weight in tails.weights.values():
        weight.requires_grad_()
    off = tails(entries.x.expand(2, -1, -1)) - entries.actions
    off.abs().mean((1, 2)).sum().backward()
    model.requires_grad_(True)
    whole_loss(model, scenes, entries).backward()
    for short, full in names(model).items():
        expected = model.get_parameter(full).grad
        for run in range(2):
            torch.testing.assert_close(
                tails.weights[short].grad[run], expected, rtol=1e-6, atol=1e-9
            )


@pytest.mark.parametrize("part", list(Part))
def test_training_on_cached_vectors_is_training_the_policy(setting, part):
    model, scenes, entries = setting("act")
    tails = Tails.of(model, 1)
    everything = torch.arange(len(entries))[None]
    training = Training(4, 1e-2, weight_decay=0.1, one_cycle=False, part=part)
    fit(tails, entries.x, entries.actions, lambda: everything, training)
    own = [
        model.get_parameter(full).requires_grad_()
        for short, full in names(model).items()
        if short.partition(".")[0] in part.value
    ]
    before = {full: model.get_parameter(full).detach().clone() for full in names(model).values()}
    optimizer = torch.optim.AdamW(own, 1e-2, weight_decay=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        whole_loss(model, scenes, entries).backward()
        optimizer.step()
    moved = 0
    for short, full in names(model).items():
        now = model.get_parameter(full).detach()
        torch.testing.assert_close(tails.weights[short][0], now, rtol=1e-6, atol=1e-9)
        moved += not torch.equal(now, before[full])
    assert moved == len(own)


def test_every_run_trains_as_if_it_were_alone(setting):
    _, _, entries = setting("act")
    shape = Shape(32, 24, 3)
    pools = torch.zeros(3, len(entries), dtype=torch.bool)
    pools[0, :9], pools[1, 5:20], pools[2] = True, True, True
    draw = draws(pools, 8, torch.Generator().manual_seed(0))
    drawn = [draw() for _ in range(6)]
    assert all(pools.gather(1, rows).all() for rows in drawn)
    together = Tails.drawn(shape, 3).to(entries.x)
    apart = [
        Tails(shape, {name: value[[run]].clone() for name, value in together.weights.items()})
        for run in range(3)
    ]
    training = Training(6, 1e-2, weight_decay=0.1)
    steps = iter(drawn)
    fit(together, entries.x, entries.actions, lambda: next(steps), training)
    for run, alone in enumerate(apart):
        steps = iter(drawn)
        own = lambda run=run, steps=steps: next(steps)[[run]]
        fit(alone, entries.x, entries.actions, own, training)
        for name, value in alone.weights.items():
            torch.testing.assert_close(value[0], together.weights[name][run])


def test_draws_reach_all_entries_of_a_pool_evenly():
    pools = torch.tensor([[True, False, True, True], [False, True, False, False]])
    rows = draws(pools, 3000, torch.Generator().manual_seed(0))()
    share = torch.stack([(row[:, None] == torch.arange(4)).double().mean(0) for row in rows])
    expected = torch.tensor([[1 / 3, 0, 1 / 3, 1 / 3], [0, 1, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(share, expected, atol=0.04, rtol=0)


def test_errors_are_watched_before_between_and_after(setting):
    _, _, entries = setting("act")
    tails = Tails.drawn(Shape(32, 24, 3), 1).to(entries.x)
    everything = torch.arange(len(entries))[None]
    seen = {}
    fit(
        tails,
        entries.x,
        entries.actions,
        lambda: everything,
        Training(30, 1e-2),
        stops=(0, 7, 30),
        watch=lambda step: seen.update({step: tails.answers(entries.x)}),
    )
    assert list(seen) == [0, 7, 30]
    loss = [float((seen[step][0] - entries.actions).abs().mean()) for step in (0, 7, 30)]
    assert loss[0] > loss[1] > loss[2]
    assert torch.equal(seen[30], tails.answers(entries.x))


def test_a_run_becomes_a_policy_that_answers_as_it_did():
    world = World(seed=3)
    scenes = world.scenes(world.positions(Region.TRAIN, 4), frames=(0, 10))
    model = world.policy()
    entries = Entries.of(model, cached(model, scenes))
    tails = Tails.of(model, 2)
    for value in tails.weights.values():
        value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    policy = rewritten(model, tails.changes(model, 1))
    predicted = policy.predict(policy.prepare(stack(scenes)))
    valid = torch.stack([~scene.action_is_pad for scene in scenes])
    answered = tails.answers(entries.x)[1]
    torch.testing.assert_close(answered, predicted[valid].detach(), rtol=1e-4, atol=1e-5)
    assert float(answered.std()) > 0.1
