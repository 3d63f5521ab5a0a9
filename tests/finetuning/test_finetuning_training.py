"""Training moves the chosen part, by what a plain optimiser would, and can be undone to the bit."""

from dataclasses import replace

import pytest
import torch

from actlens.finetuning import (
    FinetuningError,
    KeptScenes,
    Recipe,
    Subspace,
    Training,
    Whole,
    decoder_mlp,
    errors,
    head,
)
from actlens.finetuning.training import split
from actlens.scene import stack

RECIPE = Recipe(steps=12, batch_size=6, rates=(0.01, 0.03))


@pytest.fixture(scope="module")
def kept(teacher, scenes, parts):
    return KeptScenes.of(teacher, scenes, parts)


def moved(scenes, by=0.5):
    """The same scenes with something else demonstrated."""
    return [replace(scene, action=scene.action + by) for scene in scenes]


@pytest.fixture(scope="module")
def other(teacher, scenes, parts):
    return KeptScenes.of(teacher, moved(scenes), parts)


def test_only_the_part_moves_and_the_model_is_left_alone(teacher, other, parts):
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    for part in parts:
        tuned = Training(teacher, part, Whole(), RECIPE).fit(other, 0.03)
        assert set(tuned.after) == set(part.weights(teacher))
        assert tuned.relative_norm > 0
        with tuned.applied(teacher) as policy:
            for name, value in policy.state_dict().items():
                same = torch.equal(value, before[name])
                assert same or name.startswith(part.prefixes), name
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_where_nothing_is_demonstrated_no_bit_changes(teacher, kept, parts):
    silent = replace(kept, counted=torch.zeros_like(kept.counted))
    for part in parts:
        for update in (Whole(), Subspace(5)):
            tuned = Training(teacher, part, update, RECIPE).fit(silent, 0.03)
            assert all(torch.equal(tuned.after[name], v) for name, v in tuned.before.items())
            assert tuned.relative_norm == 0


def test_weights_are_those_of_a_plain_adam_on_whole_forwards(teacher, own_teacher, other, scenes):
    part, recipe = decoder_mlp(teacher), replace(RECIPE, steps=5, batch_size=len(scenes))
    tuned = Training(teacher, part, Whole(), recipe).fit(other, 0.01)
    mlp, batch = own_teacher.decoder[0].mlp, moved(scenes)
    numbers = sum(p.numel() for p in mlp.parameters())
    norm = sum(float(p.detach().square().sum()) for p in mlp.parameters()) ** 0.5
    adam = torch.optim.Adam(mlp.parameters())
    target = teacher.normalizer.normalize("action", torch.stack([s.action for s in batch]).double())
    pad = torch.stack([s.action_is_pad for s in batch])[..., None]
    for step in range(5):
        fall = 0.505 + 0.495 * torch.tensor(torch.pi * step / 5).cos().item()
        adam.param_groups[0]["lr"] = 0.01 * norm / numbers**0.5 * fall
        predicted = own_teacher.predict(own_teacher.prepare(stack(batch)))
        adam.zero_grad()
        ((predicted - target).abs() * ~pad).mean().backward()
        adam.step()
    for name, value in own_teacher.named_parameters():
        if name in tuned.after:
            torch.testing.assert_close(tuned.after[name], value.detach(), rtol=1e-6, atol=1e-9)


def test_the_same_seed_gives_the_same_bits_and_another_one_others(teacher, other):
    fit = lambda seed: (
        Training(teacher, head(teacher), Whole(), replace(RECIPE, seed=seed)).fit(other, 0.03).after
    )
    first, again, different = fit(0), fit(0), fit(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], different[name]) for name in first)


def test_the_rate_is_chosen_on_episodes_put_aside(teacher, other):
    fitted, aside = split(other, 1 / 3, seed=0)
    assert not set(fitted.episodes) & set(aside.episodes)
    assert len(fitted) + len(aside) == len(other)
    tiny = replace(RECIPE, rates=(1e-9, 0.03), steps=30)
    assert Training(teacher, head(teacher), Whole(), tiny).choose_rate(other) == 0.03
    wild = replace(RECIPE, rates=(0.03, 1e3), steps=30)
    assert Training(teacher, head(teacher), Whole(), wild).choose_rate(other) == 0.03


def test_rehearsal_keeps_what_was_known(teacher, kept, other):
    part, recipe = decoder_mlp(teacher), Recipe(steps=150, batch_size=12, rates=(0.03,))
    forgot = Training(teacher, part, Whole(), recipe).fit(other, 0.03)
    training = Training(teacher, part, Whole(), replace(recipe, rehearsal=3.0))
    remembers = training.fit(other, 0.03, kept)
    known = lambda tuned: errors(teacher, kept, tuned, None).mean().estimate[0]
    assert known(remembers) < 0.7 * known(forgot)
    with pytest.raises(FinetuningError, match="Rehearsal needs"):
        training.fit(other, 0.03)


def test_a_policy_of_its_own_answers_alike_after_saving(own_teacher, scenes, parts, tmp_path):
    from actlens.model.act import HookedACT
    from actlens.planted.rewriting import in_double

    policy = in_double(own_teacher)
    kept = KeptScenes.of(policy, moved(scenes), parts)
    tuned = Training(policy, decoder_mlp(policy), Whole(), RECIPE).fit(kept, 0.03)
    with torch.no_grad(), tuned.applied(policy):
        expected = policy(stack(scenes))
    saved = tuned.policy(policy).save_pretrained(tmp_path / "adapted")
    loaded = HookedACT.from_pretrained(saved)
    torch.testing.assert_close(loaded(stack(scenes)), expected.float(), rtol=1e-4, atol=1e-4)
    assert (policy(stack(scenes)) - expected).abs().max() > 1e-2
    with (
        pytest.raises(FinetuningError, match="not what this was trained from"),
        tuned.applied(loaded),
    ):
        pass


def test_recipes_are_checked():
    with pytest.raises(FinetuningError, match="must be positive"):
        Recipe(rates=())
    with pytest.raises(FinetuningError, match="put_aside"):
        Recipe(put_aside=1.0)
