"""A folder that we save, run by LeRobot itself: the same actions, tick by tick."""

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


@pytest.mark.parametrize("ensemble", [None, 0.1], ids=["queue", "temporal_ensemble"])
def test_lerobot_gives_the_same_action_at_every_tick(base, ensemble, run_lerobot, tmp_path):
    from actlens.model.act import HookedACT

    steps = 4 if ensemble is None else 1
    config = replace(base.config, temporal_ensemble_coeff=ensemble, n_action_steps=steps)
    model = HookedACT.from_checkpoint(replace(base, config=config))
    folder = model.save_pretrained(tmp_path / "policy")
    observations = ticks(11, torch.Generator().manual_seed(2))
    save_file(observations, tmp_path / "observations.safetensors")
    run_lerobot(
        "lerobot_select_action.py",
        folder,
        tmp_path / "observations.safetensors",
        tmp_path / "actions.safetensors",
    )
    theirs = load_file(tmp_path / "actions.safetensors")
    ours = []
    for tick in range(11):
        if tick in (0, 11 // 2 + 1):
            model.reset()
        ours.append(model.select_action({k: v[tick].clone() for k, v in observations.items()}))
    ours = torch.cat(ours)
    if ensemble is None:
        assert torch.equal(ours, theirs["actions"])
    else:  # LeRobot blends normalised actions, we blend them in dataset units
        torch.testing.assert_close(ours, theirs["actions"], atol=2e-6, rtol=2e-6)
    first = {k: v[0].clone() for k, v in observations.items()}
    assert torch.equal(model.predict_action_chunk(first)[0], theirs["chunk"])


def test_an_edited_policy_goes_back_to_lerobot_with_its_edit(base, run_lerobot, tmp_path):
    from actlens.model.act import HookedACT

    model = HookedACT.from_checkpoint(base)
    with torch.no_grad():
        # All values, in random directions: a single neuron may be silent in this scene.
        W_out = model.decoder[0].mlp.W_out
        W_out += 0.1 * torch.randn(W_out.shape, generator=torch.Generator().manual_seed(4))
    folder = model.save_pretrained(tmp_path / "edited")
    observations = ticks(1, torch.Generator().manual_seed(3))
    save_file(observations, tmp_path / "o.safetensors")
    run_lerobot(
        "lerobot_select_action.py", folder, tmp_path / "o.safetensors", tmp_path / "a.safetensors"
    )
    first = {k: v[0].clone() for k, v in observations.items()}
    theirs = load_file(tmp_path / "a.safetensors")["chunk"]
    assert torch.equal(model.predict_action_chunk(first)[0], theirs)
    assert not torch.equal(HookedACT.from_checkpoint(base)(first)[0], theirs)
