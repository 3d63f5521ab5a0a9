"""Twins: real policies that agree on what is stored and differ, as they should, in between."""

import copy

import numpy as np
import pytest
import torch

from actlens.config import Activation
from actlens.model.act import HookedACT
from actlens.planted import (
    WIDE,
    Disguise,
    FeatureRule,
    LinearRule,
    Mixture,
    PlantError,
    Readout,
    Role,
    Stored,
    Table,
    Tent,
    action_vectors,
    answers,
    in_double,
    plant,
    rewritten,
)
from actlens.planted.mechanisms import ridge
from actlens.scene import Scene, stack
from tests.planted.conftest import slopes_and_secants

TABLES = {"plateau": Table(), "tent": Table(Tent()), "wide": Table(WIDE)}
HARD = Disguise(distractors=40, cancelling=6, rescale=True, seed=3)


@pytest.fixture(scope="module")
def table(policy, stored, world):
    return plant(policy, stored, Table(), readout=world.readout, disguise=HARD)


@pytest.fixture(scope="module")
def rule(policy, stored, world):
    return plant(policy, stored, LinearRule(), readout=world.readout, disguise=HARD)


def run(model, scenes):
    """Normalised actions and the last MLP's coefficients, from observations."""
    with torch.no_grad():
        cache = model.run_with_cache(stack(scenes))[1]
    return cache["hook_actions_normalized"], cache["decoder.0.mlp.hook_post"]


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_gives_the_stored_actions_from_the_observations(policy, stored, train_scenes, kind):
    twin = plant(policy, stored, TABLES[kind])
    found, _ = run(twin.model, train_scenes)
    np.testing.assert_allclose(found, stored.actions, atol=1e-6)
    assert twin.error < 1e-6
    degrees = twin.model(stack(train_scenes)).detach()
    np.testing.assert_allclose(degrees, torch.stack([s.action for s in train_scenes]), atol=1e-4)
    assert twin.alpha == 1
    assert twin.truth.generalises is False
    assert twin.truth.site == "decoder.0"


def test_every_cell_is_on_at_its_own_entry_alone(table, stored, train_scenes):
    _, post = run(table.model, train_scenes)
    post = post[stored.valid]
    cells = table.neurons(Role.TABLE)
    on = post[:, cells] > 1e-9
    owner = torch.from_numpy(table.entry[cells])[None] == torch.arange(len(post))[:, None]
    assert not (on & ~owner).any()
    assert (on & owner).sum(1).min() == 2


def test_between_entries_a_table_falls_back_to_the_mean(table, stored, gap_scenes):
    found, post = run(table.model, gap_scenes)
    silent = ~(post[..., table.neurons(Role.TABLE)] > 0).any(-1)
    assert silent.double().mean() > 0.3
    mean = stored.actions[stored.valid].mean(0)
    np.testing.assert_allclose(found[silent], mean.expand(int(silent.sum()), -1), atol=1e-5)


def test_a_rule_is_its_own_ridge_regression_wherever_it_is_asked(rule, stored, policy, gap_scenes):
    slope, constant = ridge(*stored.entries(), LinearRule().ridge)
    found, _ = run(rule.model, gap_scenes)
    vectors = action_vectors(policy, gap_scenes)
    np.testing.assert_allclose(found, vectors @ slope + constant, atol=1e-5)


def test_twins_agree_where_demonstrations_are_and_only_the_rule_generalises(
    table, rule, world, stored, policy, train_scenes, new_scenes
):
    size = stored.actions.sub(stored.actions.mean(0)).abs().mean()
    error = lambda twin, scenes: float(
        (run(twin.model, scenes)[0] - Stored.of(policy, scenes).actions).abs().mean() / size
    )
    assert error(table, train_scenes) < 1e-5
    assert error(rule, train_scenes) < 0.05
    nearest = world.distances(new_scenes, train_scenes).argmin(1)
    wanted = Stored.of(policy, new_scenes).actions
    retrieval = float((stored.actions[nearest] - wanted).abs().mean() / size)
    assert error(rule, new_scenes) < 0.5 * retrieval
    assert error(table, new_scenes) > 2 * retrieval


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("shape", ["plateau", "wide"])
def test_jacobian_over_secant_reads_off_what_is_not_looked_up(policy, stored, alpha, shape):
    """The table's part is flat at its entries, the rule's part is straight between them."""
    twin = plant(policy, stored, Mixture(alpha, TABLES[shape]))
    slope, secant = slopes_and_secants(lambda x: answers(twin.model, x), stored.inputs)
    assert abs(float((slope / secant).median()) - (1 - alpha)) < 0.03
    assert twin.alpha == alpha


def test_a_table_of_tents_has_spikes(policy, stored):
    twin = plant(policy, stored, Table(Tent()))
    slope, secant = slopes_and_secants(lambda x: answers(twin.model, x), stored.inputs)
    assert (slope / secant).median() > 2


def test_a_smooth_rule_is_neither_flat_nor_straight(policy, stored, gap_scenes):
    smooth = plant(policy, stored, FeatureRule())
    straight = plant(policy, stored, LinearRule())
    slope, secant = slopes_and_secants(lambda x: answers(smooth.model, x), stored.inputs)
    assert 0.7 < (slope / secant).median() < 1.5
    apart = (run(smooth.model, gap_scenes)[0] - run(straight.model, gap_scenes)[0]).abs().max()
    assert apart > 1e-3
    assert smooth.truth.generalises is True


def test_distractors_and_pairs_have_no_effect_on_the_action(table, train_scenes, gap_scenes):
    scenes = [*train_scenes, *gap_scenes]
    before, post = run(table.model, scenes)
    for role in (Role.DISTRACTOR, Role.CANCELLING):
        silenced = torch.from_numpy(table.neurons(role))
        assert (post[..., silenced] > 0).any(0).any(0).all()

        def silence(value, hook, silenced=silenced):
            value = value.clone()
            value[..., silenced] = 0
            return value

        with table.model.hooks([("decoder.0.mlp.hook_post", silence)]):
            after, _ = run(table.model, scenes)
        np.testing.assert_allclose(after, before, atol=1e-5)


def test_order_scale_and_the_readouts_rotation_change_nothing(policy, stored, new_scenes):
    twins = [
        plant(policy, stored, Mixture(0.5), disguise=Disguise(rescale=True, seed=seed))
        for seed in (0, 1)
    ]
    found = [run(twin.model, new_scenes)[0] for twin in twins]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    weights = [twin.model.action_head.weight for twin in twins]
    assert not torch.allclose(*weights, atol=1.0)
    spread = Readout.make(stored.inputs.shape[-1], 6, spread=True)
    third = plant(policy, stored, Mixture(0.5), readout=spread)
    np.testing.assert_allclose(run(third.model, new_scenes)[0], found[0], atol=1e-4)


def test_noise_on_the_weights_costs_accuracy_by_degrees(policy, stored):
    errors = [
        plant(policy, stored, Table(), disguise=Disguise(noise=noise)).error
        for noise in (0.0, 1e-4, 1e-2)
    ]
    assert errors[0] < 1e-6 < errors[1] < errors[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_twin_saves_and_loads_to_the_last_bit(world, train_scenes, tmp_path, dtype):
    model = world.policy(dtype=dtype)
    stored = Stored.of(model, train_scenes)
    twin = plant(model, stored, Table(), disguise=HARD)
    assert twin.error < 1e-5
    folder = twin.model.save_pretrained(tmp_path / "twin")
    again = HookedACT.from_pretrained(folder, dtype=dtype)
    assert again.config == twin.model.config
    scene = train_scenes[3]
    assert torch.equal(again(scene), twin.model(scene))
    assert again.checkpoint.config.d_mlp == len(twin.roles)
    assert torch.equal(in_double(again)(scene), in_double(twin.model)(scene))


# ── on a policy of one's own ─────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def own(new_model, observe):
    """A camera policy whose norms have affine maps, and its scenes' own chunks."""
    model = new_model(d_model=64, d_mlp=24, chunk=4, n_action_steps=4).double()
    batch = observe(model, rows=8, seed=1)
    rows = [{key: value[i] for key, value in batch.items()} for i in range(8)]
    scenes = [Scene(row, episode=i) for i, row in enumerate(rows)]
    with torch.no_grad():
        return model, scenes, model(batch)


def test_a_users_policy_and_its_table_agree_on_its_own_chunks(own, tmp_path):
    model, scenes, chunks = own
    before = copy.deepcopy(model.state_dict())
    stored = Stored.of(model, scenes, chunks)
    assert (stored.inputs.square().mean(-1) - 1).abs().max() > 0.01  # its norm has an affine map
    twin = plant(model, stored, Table())
    np.testing.assert_allclose(twin.model(stack(scenes)).detach(), chunks, atol=1e-5)
    assert twin.model.config.d_mlp == len(twin.roles) == 128
    assert len(twin.neurons(Role.TABLE)) == 2 * 8 * 4
    assert len(twin.neurons(Role.CLEARING)) == 8
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # The encoder is the policy's own: what the MLP reads has not changed.
    np.testing.assert_allclose(action_vectors(twin.model, scenes), stored.inputs, atol=1e-6)
    folder = twin.model.save_pretrained(tmp_path / "twin")
    again = HookedACT.from_pretrained(folder, dtype=torch.float64)
    np.testing.assert_allclose(again(scenes[2]).detach(), twin.model(scenes[2]).detach(), atol=1e-9)


def test_a_users_policy_and_its_rule_agree_as_well_as_ridge_does(own):
    model, scenes, chunks = own
    stored = Stored.of(model, scenes, chunks)
    twin = plant(model, stored, LinearRule(1e-9))
    inputs, targets = stored.entries()
    normalised = (inputs - model.decoder[0].ln2.bias) / model.decoder[0].ln2.weight
    slope, constant = ridge(normalised.detach(), targets, 1e-9)
    np.testing.assert_allclose(
        answers(twin.model, inputs), normalised.detach() @ slope + constant, atol=1e-5
    )
    half = plant(model, stored, Mixture(0.5, rule=LinearRule(1e-9)))
    slope, secant = slopes_and_secants(lambda x: answers(half.model, x), stored.inputs)
    assert abs(float((slope / secant).median()) - 0.5) < 0.02


def test_padded_positions_are_not_stored(policy, world, train_scenes):
    late = world.scenes(world.positions("train", 4), frames=(10,))
    stored = Stored.of(policy, late)
    assert stored.valid.sum(1).tolist() == [2] * 4
    twin = plant(policy, stored, Table())
    assert len(twin.neurons(Role.TABLE)) == 2 * 8
    assert twin.error < 1e-5


def test_a_wider_copy_computes_the_same(policy, train_scenes):
    wide = rewritten(policy, {}, d_mlp=200)
    assert wide.config.d_mlp == 200
    np.testing.assert_allclose(
        action_vectors(wide, train_scenes), action_vectors(policy, train_scenes), atol=1e-12
    )


def test_what_cannot_be_planted_is_refused(policy, stored, new_model, train_scenes):
    with pytest.raises(PlantError, match="254 neurons do not fit into an MLP of 200"):
        plant(policy, stored, Table(), d_mlp=200)
    for change in ({"pre_norm": True}, {"activation": Activation.GELU}):
        with pytest.raises(PlantError, match="post-norm policies with ReLU"):
            plant(new_model(**change), stored, Table())
    with pytest.raises(PlantError, match="cannot have 12"):
        rewritten(policy, {}, d_mlp=12)
    with pytest.raises(PlantError, match=r"no weights decoder\.7"):
        rewritten(policy, {"decoder.7": torch.zeros(1)})
    with pytest.raises(PlantError, match=r"has shape \(1,\); it must be \(6,\)"):
        rewritten(policy, {"action_head.bias": torch.zeros(1)})
    with pytest.raises(PlantError, match="no action; the policy answers 4"):
        Stored.of(policy, [Scene(train_scenes[0].observation)])
    with pytest.raises(PlantError, match="no room for 6 directions"):
        Readout.make(9, 6)
