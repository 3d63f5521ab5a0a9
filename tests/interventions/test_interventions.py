"""Interventions as values: saved and read again, scheduled, and made by plain hooks in rollouts."""

import json

import pytest
import torch

from actlens.errors import InterventionError
from actlens.interventions import (
    Call,
    Constant,
    Edit,
    FromScene,
    GaussianNoise,
    Intervention,
    Schedule,
    Steering,
    Subspace,
    as_hooks,
    random_subspace,
    run_scene,
)
from actlens.sites import Site

EVERYTHING = Intervention(
    (
        Edit(Site("encoder.0.hook_resid_pre", {"token": (3, 1)}), FromScene("clean")),
        Edit(Site("encoder.1.attn.hook_z", {"head": 2, "token": slice(1, None)}), Constant(0.5)),
        Edit(Site("encoder.hook_out"), GaussianNoise(3.0, seed=4)),
        Edit(Site("decoder.0.hook_mlp_out"), Steering((0.5, -1.0), scale=2.0)),
        Edit(Site("encoder.hook_out"), Subspace(((0.6, 0.8),), "mean")),
    ),
    Schedule(start=10, stop=60, every=5),
)


def test_an_intervention_survives_being_saved_as_json():
    saved = json.loads(json.dumps(EVERYTHING.to_json()))
    assert Intervention.from_json(saved) == EVERYTHING


def test_a_function_cannot_be_saved():
    with pytest.raises(InterventionError, match="function cannot be saved"):
        Intervention.at(Site("encoder.hook_out"), Call(torch.sin)).to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved.pop("edits"), "edits"),
        (lambda saved: saved["edits"].clear(), "changes nothing"),
        (lambda saved: saved["edits"][0]["source"].update(kind="Call"), "'Call' is no source"),
        (lambda saved: saved["edits"][0]["source"].update(kind="__import__"), "is no source"),
        (lambda saved: saved["edits"][0]["source"].update(surprise=1), "surprise"),
        (lambda saved: saved["edits"][0]["where"].update(token="all"), "'all' selects nothing"),
        (lambda saved: saved["edits"][0]["where"].update(token=True), "True selects nothing"),
        (lambda saved: saved["schedule"].update(every=0), "no control step"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_the_damage(change, message):
    saved = json.loads(json.dumps(EVERYTHING.to_json()))
    change(saved)
    with pytest.raises(InterventionError, match=message):
        Intervention.from_json(saved)


def test_interventions_are_joined_only_under_one_schedule():
    one = Intervention.at(Site("encoder.hook_out"), Constant())
    other = Intervention.at(Site("decoder.0.hook_mlp_out"), Constant())
    assert (one & other).edits == one.edits + other.edits
    with pytest.raises(InterventionError, match="do not agree"):
        one & Intervention.at(Site("encoder.hook_out"), Constant(), Schedule(start=3))


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        (Schedule(), range(12)),
        (Schedule(start=4), range(4, 12)),
        (Schedule(start=2, stop=5), range(2, 5)),
        (Schedule(start=1, stop=9, every=3), (1, 4, 7)),
    ],
)
def test_a_schedule_counts_control_steps(schedule, steps):
    assert [step for step in range(12) if schedule.acts_at(step)] == list(steps)
    assert schedule.acts_at(-1), "outside of a rollout it always acts"


def rollout(model, observation, steps):
    model.reset()
    return torch.stack([model.select_action(observation)[0] for _ in range(steps)])


def test_in_a_rollout_it_acts_at_its_control_steps(new_model, observe):
    model = new_model(cameras=(), env_state_dim=4, n_action_steps=2).double()
    observation = observe(model, rows=1)
    plain = rollout(model, observation, 10)
    site = Site("embed.hook_state_token")
    intervention = Intervention.at(site, Constant(1.0), Schedule(start=4, stop=8))
    with model.hooks(as_hooks(model, intervention)):
        changed = rollout(model, observation, 10)
    (receipt,) = model.receipts
    assert receipt.fired == 5, "the network runs at every second control step"
    assert receipt.changed == 2 * model.config.d_model, "at control steps 4 and 6"
    differs = (plain != changed).any(1)
    assert differs.tolist() == [False] * 4 + [True] * 4 + [False] * 2


def test_noise_is_another_at_every_inference_step_and_the_same_again_after_a_reset(
    new_model, observe
):
    model = new_model(cameras=(), env_state_dim=4, n_action_steps=1).double()
    observation = observe(model, rows=1)
    noise = Intervention.at(Site("embed.hook_state_token"), GaussianNoise(1.0))
    with model.hooks(as_hooks(model, noise)):
        first, second = rollout(model, observation, 4), rollout(model, observation, 4)
    assert torch.equal(first, second)
    assert len({tuple(action.tolist()) for action in first}) == 4


def test_noise_is_the_same_for_every_row_of_a_batch(new_model, observe):
    model = new_model(cameras=(), env_state_dim=4).double()
    one = observe(model, rows=1)
    three = {key: value.expand(3, -1) for key, value in one.items()}
    hooks = as_hooks(model, Intervention.at(Site("embed.hook_tokens"), GaussianNoise(1.0)))
    with model.hooks(hooks):
        torch.testing.assert_close(model(three), model(one).expand(3, -1, -1))


def test_a_donor_of_one_scene_serves_a_whole_batch(new_model, observe):
    model = new_model(cameras=(), env_state_dim=4).double()
    clean = run_scene(model, observe(model, rows=1, seed=9))
    everything = Intervention.at(Site("encoder.hook_out"), FromScene())
    with model.hooks(as_hooks(model, everything, {"clean": clean})):
        actions = model(observe(model, rows=3))
    expected = clean["hook_actions"].expand(3, -1, -1)
    torch.testing.assert_close(actions, expected)


def test_a_subspace_patch_exchanges_that_component_and_no_other(new_model, observe):
    model = new_model(cameras=(), env_state_dim=4).double()
    base, clean = (run_scene(model, observe(model, rows=1, seed=s)) for s in (0, 1))
    basis = random_subspace(model.config.d_model, 3, seed=5)
    source = Subspace(tuple(map(tuple, basis.tolist())), "clean")
    hooks = as_hooks(model, Intervention.at(Site("encoder.hook_out"), source), {"clean": clean})
    with model.hooks(hooks):
        _, cache = model.run_with_cache(observe(model, rows=1), names_filter="encoder.hook_out")
    patched, own, donor = (
        cache["encoder.hook_out"],
        base["encoder.hook_out"],
        clean["encoder.hook_out"],
    )
    torch.testing.assert_close(patched @ basis.T, donor @ basis.T)
    rest = torch.eye(len(basis.T), dtype=basis.dtype) - basis.T @ basis
    torch.testing.assert_close(patched @ rest, own @ rest)


def test_random_subspaces_are_orthonormal_and_seeded():
    basis = random_subspace(16, 4, seed=1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(4, dtype=basis.dtype))
    assert torch.equal(basis, random_subspace(16, 4, seed=1))
    assert not torch.equal(basis, random_subspace(16, 4, seed=2))
