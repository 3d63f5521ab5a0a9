"""From observations as LeRobot has them, or scenes, to what the network reads."""

from collections.abc import Mapping

import torch
from torch import Tensor

from actlens.config import STATE_KEY, ACTConfig
from actlens.errors import SceneError
from actlens.model.embed import Inputs
from actlens.normalization import Normalizer
from actlens.scene import Observation, Scene


def read_entries(observation: Observation | Scene, config: ACTConfig) -> dict[str, Tensor]:
    """What a policy reads of an observation: shapes checked, batched, otherwise as given.

    Raises:
        SceneError: naming the key, the shape it has and the shape it should have.
    """
    found = observation.observation if isinstance(observation, Scene) else observation
    shapes: dict[str, tuple[int, ...]] = {
        camera.key: (3, camera.height, camera.width) for camera in config.cameras
    }
    if config.state_dim is not None:
        shapes[STATE_KEY] = (config.state_dim,)
    if config.env_state_dim is not None:
        shapes[config.env_state_key] = (config.env_state_dim,)
    entries = {key: _entry(found, key, shape) for key, shape in shapes.items()}
    sizes = {key: len(value) for key, value in entries.items()}
    if len(set(sizes.values())) > 1:
        raise SceneError(f"The observation's entries have different batch sizes: {sizes}.")
    return entries


def _entry(found: Mapping[str, Tensor], key: str, shape: tuple[int, ...]) -> Tensor:
    if key not in found:
        raise SceneError(
            f"The observation has no {key!r}, which this policy needs; it has {sorted(found)}."
        )
    value = torch.as_tensor(found[key])
    if value.shape == shape:
        value = value[None]
    if value.shape[1:] != shape:
        hint = ""
        if len(shape) == 3 and value.ndim >= 3 and value.shape[-1] == 3:
            hint = " These images are height, width, channel: permute them to channel first."
        raise SceneError(
            f"{key} has shape {tuple(value.shape)}; this policy needs "
            f"{shape} or (batch, {', '.join(map(str, shape))}).{hint}"
        )
    if not len(value):
        raise SceneError(f"{key} holds an empty batch.")
    return value


def prepare(
    observation: Observation | Scene,
    config: ACTConfig,
    normalizer: Normalizer,
    *,
    like: Tensor,
) -> Inputs:
    """An observation checked, batched, scaled and normalised, of the dtype and device of `like`.

    Raises:
        SceneError: naming the key and what is wrong with its shape, dtype or values.
    """
    entries = read_entries(observation, config)
    # 16 bits come after normalisation: before it, they would round degrees and not deviations.
    fine = {"device": like.device, "dtype": torch.promote_types(like.dtype, torch.float32)}
    images = tuple(
        normalizer.normalize(key, _image(key, entries[key], **fine)).to(like.dtype)
        for key in (camera.key for camera in config.cameras)
    )
    state, env_state = (
        normalizer.normalize(key, _vector(key, entries[key], **fine)).to(like.dtype)
        if key in entries
        else None
        for key in (STATE_KEY, config.env_state_key)
    )
    return Inputs(images, state, env_state, len(next(iter(entries.values()))))


def _image(key: str, image: Tensor, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The image in 0..1."""
    if image.dtype == torch.uint8:
        return image.to(device).to(dtype) / 255
    if not image.is_floating_point():
        raise SceneError(f"{key} holds {image.dtype}; pass uint8, or floats in 0..1.")
    image = image.to(device, dtype, copy=True)  # what is cached must not follow the caller's edits
    low, high = image.min(), image.max()
    if not (low >= 0 and high <= 1):
        raise SceneError(
            f"{key}: float images must lie in 0..1, these span "
            f"{low.item():.3g}..{high.item():.3g}; pass uint8, or divide by 255."
        )
    return image


def _vector(key: str, value: Tensor, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    value = value.to(device, dtype, copy=True)
    if not torch.isfinite(value).all():
        raise SceneError(f"{key} holds NaN or infinite values.")
    return value
