"""Folders that we save or ship, run by LeRobot itself: the same actions, tick by tick."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def base():
    """A small two-camera policy with statistics away from 0 and 1."""
    from actlens.checkpoints import Checkpoint
    from actlens.checkpoints.architecture import expected_shapes
    from actlens.config import ACTConfig, Camera
    from actlens.model.act import HookedACT
    from actlens.model.lerobot_names import from_lerobot
    from actlens.normalization import Affine, NormalizationMode

    config = ACTConfig(
        cameras=(
            Camera("observation.images.top", 64, 96),
            Camera("observation.images.side_cam", 96, 64),
        ),
        action_dim=6, state_dim=6, chunk=6, n_action_steps=4, d_model=32, n_heads=4, d_mlp=48,
        n_encoder_layers=2, n_vae_encoder_layers=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = HookedACT(config)
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * draw(*parameter.shape))
    shapes = {camera.key: (3, 1, 1) for camera in config.cameras}
    shapes |= {"observation.state": (6,), "action": (6,)}
    stats = {key: {"mean": draw(*s), "std": 0.5 + draw(*s).abs()} for key, s in shapes.items()}
    affines = {
        key: Affine.from_stats(NormalizationMode.MEAN_STD, s, eps=1e-8, what=key)
        for key, s in stats.items()
    }
    present = model.state_dict()
    weights = {name: present[from_lerobot(name)].clone() for name in expected_shapes(config)}
    return Checkpoint(config, weights, affines, stats)


def ticks(count, generator):
    return {
        "observation.images.top": torch.rand(count, 3, 64, 96, generator=generator),
        "observation.images.side_cam": torch.rand(count, 3, 96, 64, generator=generator),
        "observation.state": torch.randn(count, 6, generator=generator),
    }


def with_the_queue(base):
    from actlens import HookedACT

    return HookedACT.from_checkpoint(base)


def with_the_ensemble(base):
    from actlens import HookedACT

    config = replace(base.config, temporal_ensemble_coeff=0.1, n_action_steps=1)
    return HookedACT.from_checkpoint(replace(base, config=config))


def with_an_edit(base):
    model = with_the_queue(base)
    with torch.no_grad():
        # All values, in random directions: a single neuron may be silent in this scene.
        W_out = model.decoder[0].mlp.W_out
        W_out += 0.1 * torch.randn(W_out.shape, generator=torch.Generator().manual_seed(4))
    return model


def without_an_epsilon(base):
    """As the original ACT normalises."""
    from actlens.normalization import Affine, NormalizationMode

    affines = {
        key: Affine.from_stats(NormalizationMode.MEAN_STD, entries, eps=0.0, what=key)
        for key, entries in base.statistics.items()
    }
    return with_the_queue(replace(base, normalization=affines, eps=0.0))


MADE_HERE = {
    "queue": with_the_queue,
    "ensemble": with_the_ensemble,
    "edited": with_an_edit,
    "no_epsilon": without_an_epsilon,
}
BUNDLED = ("so101-pick-cube", "so101-pick-cube-5pos")


def bundled_ticks():
    """The first scenes of the bundled pairs, pictures in 0..1 as LeRobot takes them."""
    from actlens import load_pairs
    from actlens.scene import stack

    scenes = stack([pair.clean for pair in load_pairs("so101-cube-moved")[:3]])
    return {key: x / 255 if x.dtype == torch.uint8 else x for key, x in scenes.items()}


@pytest.fixture(scope="module")
def driven(base, run_lerobot, tmp_path_factory):
    """Our policy, what it was shown and what LeRobot did with its folder, by name."""
    from actlens import HookedACT
    from actlens.checkpoints.bundled import bundled_folder

    place = tmp_path_factory.mktemp("policies")
    policies = {}
    for name, make in MADE_HERE.items():
        model = make(base)
        shown = ticks(11, torch.Generator().manual_seed(2))
        policies[name] = (model, shown, model.save_pretrained(place / name))
    for name in BUNDLED:
        model = HookedACT.from_pretrained(name)
        policies[name] = (model, bundled_ticks(), bundled_folder(name))
    arguments = []
    for name, (_, shown, folder) in policies.items():
        save_file(shown, place / f"{name}-shown.safetensors")
        arguments += [folder, place / f"{name}-shown.safetensors", place / f"{name}.safetensors"]
    run_lerobot("lerobot_select_action.py", *arguments)
    return lambda name: (*policies[name][:2], load_file(place / f"{name}.safetensors"))


def ours_tick_by_tick(model, shown):
    count, actions = len(shown["observation.state"]), []
    for tick in range(count):
        if tick in (0, count // 2 + 1):  # where the script resets
            model.reset()
        actions.append(model.select_action({k: v[tick].clone() for k, v in shown.items()}))
    return torch.cat(actions)


@pytest.mark.parametrize("name", ["queue", "ensemble", "no_epsilon", *BUNDLED])
def test_lerobot_gives_the_same_action_at_every_tick(name, driven):
    model, shown, theirs = driven(name)
    ours = ours_tick_by_tick(model, shown)
    if name == "ensemble":  # LeRobot blends normalised actions, we blend them in dataset units
        torch.testing.assert_close(ours, theirs["actions"], atol=2e-6, rtol=2e-6)
    else:
        assert torch.equal(ours, theirs["actions"])


@pytest.mark.parametrize("name", [*MADE_HERE, *BUNDLED])
def test_whole_chunks_are_lerobots_bit_for_bit(name, driven):
    """Those of an edited policy too: it goes back on the robot."""
    model, shown, theirs = driven(name)
    first = {key: value[0].clone() for key, value in shown.items()}
    assert torch.equal(model.predict_action_chunk(first)[0], theirs["chunk"])


def test_the_edit_is_in_what_lerobot_does(driven):
    assert not torch.equal(driven("edited")[2]["chunk"], driven("queue")[2]["chunk"])


def test_bundled_policies_give_the_same_bits_for_bytes(driven):
    model, shown, theirs = driven(BUNDLED[0])
    first = {k: (v[0] * 255).round().to(torch.uint8) for k, v in shown.items() if v.ndim == 4}
    chunk = model.predict_action_chunk(first | {"observation.state": shown["observation.state"][0]})
    assert torch.equal(chunk[0], theirs["chunk"])
