"""A new policy out of another one's checkpoint, with other weights or a wider MLP."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from actlens.checkpoints.architecture import expected_shapes
from actlens.checkpoints.checkpoint import Checkpoint
from actlens.config import ACTION_KEY, STATE_KEY
from actlens.model.act import HookedACT
from actlens.model.lerobot_names import from_lerobot
from actlens.normalization import NEEDED_STATISTICS, Affine, NormalizationMode, Normalizer
from actlens.planted.errors import PlantError

_EPS = 1e-8


def checkpoint_of(model: HookedACT) -> Checkpoint:
    """The present weights as a checkpoint in float32, also of a model that was made in memory.

    A feature without statistics is the identity.
    """
    names = expected_shapes(model.config)
    present = model.state_dict()
    weights = {n: present[from_lerobot(n)].detach().cpu().float().clone() for n in names}
    if model.checkpoint is not None:
        return replace(model.checkpoint, weights=weights, sha256="")
    normalization, statistics = {}, {}
    for key in _features(model):
        mode = model.normalizer.modes.get(key, NormalizationMode.IDENTITY)
        found = {}
        if mode is not NormalizationMode.IDENTITY:
            found = _statistics(model.normalizer, key, mode)
            statistics[key] = found
        normalization[key] = Affine.from_stats(mode, found, eps=_EPS, what=key)
    return Checkpoint(model.config, weights, normalization, statistics, _EPS, source="in memory")


def _features(model: HookedACT) -> list[str]:
    config = model.config
    keys = [camera.key for camera in config.cameras]
    if config.state_dim is not None:
        keys.append(STATE_KEY)
    if config.env_state_dim is not None:
        keys.append(config.env_state_key)
    return [*keys, ACTION_KEY]


def _statistics(normalizer: Normalizer, key: str, mode: NormalizationMode) -> dict[str, Tensor]:
    """What the mode's map was made from."""
    at = normalizer.features.index(key)
    shift, unscale = (
        normalizer.get_buffer(f"{part}_{at}").float().cpu() for part in ("shift", "unscale")
    )
    low, high = NEEDED_STATISTICS[mode]
    wide = mode is not NormalizationMode.MEAN_STD
    return {low: shift, high: shift + 2 * unscale if wide else unscale}


def rewritten(
    model: HookedACT,
    changes: Mapping[str, Tensor],
    *,
    d_mlp: int | None = None,
    source: str = "",
) -> HookedACT:
    """A new policy with some weights replaced; the old one is left alone. In eval mode.

    Args:
        changes: new tensors by the model's own names (`decoder.0.mlp.linear1.weight`, …).
        d_mlp: neurons of every MLP of the new policy. Those that `changes` does not name are padded
            with neurons that are never on and write nothing: their function stays. One config
            number sets the width of all, so a table that is larger than the policy's MLP costs
            memory in every block: about 8 `d_model` bytes a neuron and block.
        source: where the new checkpoint says that it comes from.

    Raises:
        PlantError: if a change has another shape, or `d_mlp` is smaller than the policy's.
    """
    checkpoint = checkpoint_of(model)
    config = checkpoint.config
    if d_mlp is not None:
        if d_mlp < config.d_mlp:
            raise PlantError(
                f"The policy's MLPs have {config.d_mlp} neurons; the copy cannot have {d_mlp}."
            )
        config = replace(config, d_mlp=d_mlp)
    weights = {}
    unknown = set(changes)
    for name, shape in expected_shapes(config).items():
        own = from_lerobot(name)
        value = changes.get(own, checkpoint.weights[name]).detach().cpu().float()
        unknown.discard(own)
        if own not in changes and tuple(value.shape) != shape:
            value = _padded(value, shape)
        if tuple(value.shape) != shape:
            raise PlantError(f"{own} has shape {tuple(value.shape)}; it must be {shape}.")
        weights[name] = value.contiguous()
    if unknown:
        raise PlantError(f"This policy has no weights {', '.join(sorted(unknown))}.")
    made = replace(checkpoint, config=config, weights=weights, source=source or checkpoint.source)
    return loaded(made, like=model.action_head.weight)


def _padded(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    wide = value.new_zeros(shape)
    wide[tuple(slice(n) for n in value.shape)] = value
    return wide


def in_double(model: HookedACT) -> HookedACT:
    """A copy that computes in float64, of weights that float32 holds exactly."""
    return loaded(checkpoint_of(model), like=model.action_head.weight.double())


def loaded(checkpoint: Checkpoint, *, like: Tensor) -> HookedACT:
    """The policy of a checkpoint, of the dtype and on the device of `like`.

    The random state stays as it is: a new network draws weights before it gets its own.
    """
    with torch.random.fork_rng(devices=[]):
        return HookedACT.from_checkpoint(checkpoint, device=like.device, dtype=like.dtype)
