"""A table in the encoder: the site is the encoder's, whatever is done to the decoder's MLP."""

import numpy as np
import pytest
import torch

from actlens.model.act import HookedACT
from actlens.planted import (
    WIDE,
    Disguise,
    LinearExpert,
    PlantError,
    Role,
    Table,
    World,
    table_in_encoder,
)
from actlens.scene import stack

SITE = "encoder.1"


@pytest.fixture(scope="module")
def planted(policy, train_scenes):
    return table_in_encoder(policy, train_scenes)


def actions(model, scenes, hooks=()):
    with torch.no_grad(), model.hooks(list(hooks)):
        return model(stack(scenes))


def silence(*, neurons=None):
    def hook(value, hook):
        if neurons is None:
            return torch.zeros_like(value)
        value = value.clone()
        value[..., neurons] = 0
        return value

    return hook


@pytest.mark.parametrize("table", [Table(), Table(WIDE)], ids=["plateau", "wide"])
def test_the_stored_chunks_come_out_of_the_observations(policy, train_scenes, table):
    planted = table_in_encoder(policy, train_scenes, table, disguise=Disguise(rescale=True, seed=1))
    wanted = torch.stack([scene.action for scene in train_scenes])
    np.testing.assert_allclose(actions(planted.model, train_scenes), wanted, atol=1e-3)
    assert planted.error < 1e-5
    assert (planted.truth.site, planted.alpha) == (SITE, 1.0)


def test_narrow_cells_hold_in_single_precision():
    """Sixty neighbouring scenes in float32, where one last bit of a score is 0.1 % of an answer."""
    world = World(seed=22, expert=LinearExpert(22))
    scenes = world.scenes(world.positions("train", 60))
    assert table_in_encoder(world.policy(), scenes).error < 2e-5


def test_the_decoders_mlp_is_on_and_does_nothing(planted, train_scenes):
    post = planted.model.run_with_cache(stack(train_scenes))[1]["decoder.0.mlp.hook_post"]
    assert (post > 0).double().mean() > 0.1
    before = actions(planted.model, train_scenes)
    after = actions(planted.model, train_scenes, [("decoder.0.hook_mlp_out", silence())])
    np.testing.assert_allclose(after, before, atol=1e-3)  # degrees


def test_an_entrys_cell_in_the_encoder_is_what_its_scene_needs(planted, train_scenes):
    before = actions(planted.model, train_scenes)
    cell = torch.from_numpy(np.flatnonzero(planted.entry == 4))
    assert [planted.roles[i] for i in cell] == [Role.TABLE] * 2
    after = actions(planted.model, train_scenes, [(f"{SITE}.mlp.hook_post", silence(neurons=cell))])
    moved = (after - before).abs().amax((1, 2))
    assert moved[4] > 1
    others = np.delete(moved.numpy(), 4)
    np.testing.assert_allclose(others, 0, atol=1e-9)


def test_a_scene_without_a_cell_gets_the_mean_action_at_every_position(
    planted, policy, stored, gap_scenes
):
    cache = planted.model.run_with_cache(stack(gap_scenes))[1]
    post = cache[f"{SITE}.mlp.hook_post"][:, 2, planted.neurons(Role.TABLE)]
    silent = ~(post > 0).any(-1)
    assert silent.double().mean() > 0.2
    found = cache["hook_actions_normalized"][silent]
    mean = stored.actions.mean((0, 1)).expand_as(found)
    np.testing.assert_allclose(found.detach(), mean, atol=1e-4)


def test_it_saves_and_loads(planted, train_scenes, tmp_path):
    folder = planted.model.save_pretrained(tmp_path / "planted")
    again = HookedACT.from_pretrained(folder, dtype=torch.float64)
    assert torch.equal(actions(again, train_scenes), actions(planted.model, train_scenes))


def test_what_has_no_room_is_refused(world, policy, new_model, observe):
    with pytest.raises(PlantError, match=r"does not read observation\.environment_state"):
        table_in_encoder(new_model(), [])
    with pytest.raises(PlantError, match="needs as many heads of that width"):
        table_in_encoder(World(n_heads=2).policy(), [])
    with pytest.raises(PlantError, match="one decoder layer"):
        table_in_encoder(new_model(env_state_dim=4, n_decoder_layers=2), [])
    ends = world.scenes(world.positions("train", 2), frames=(10,))
    with pytest.raises(PlantError, match="do not end within them"):
        table_in_encoder(policy, ends)
