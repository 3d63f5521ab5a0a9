"""What can be seen of a checkpoint that could be read: values, statistics, cameras, idle parts."""

import math
from collections.abc import Mapping

from torch import Tensor

from actlens.checkpoints.checkpoint import Checkpoint
from actlens.config import ACTION_KEY, ACTConfig
from actlens.doctor.diagnosis import Examination, Severity
from actlens.normalization import Affine, NormalizationMode
from actlens.text import listed


def describe(config: ACTConfig) -> str:
    """The architecture in a sentence."""
    cameras = ", ".join(
        f"{camera.name} {camera.height}x{camera.width}" for camera in config.cameras
    )
    inputs = [f"cameras {cameras}"] if cameras else []
    inputs += [f"a state of {config.state_dim}"] if config.state_dim else []
    inputs += [f"an environment state of {config.env_state_dim}"] if config.env_state_dim else []
    return (
        f"{config.backbone.value if config.cameras else 'no backbone'}, "
        f"{config.n_encoder_layers} encoder and {config.n_decoder_layers} decoder layers of width "
        f"{config.d_model} with {config.n_heads} heads and {config.d_mlp} neurons; "
        f"{' and '.join(inputs)}; {config.chunk} actions of {config.action_dim} dimensions, "
        f"{config.n_action_steps} of them executed."
    )


def examine_values(seen: Examination, tensors: Mapping[str, Tensor]) -> None:
    """Values that load and still cannot be right."""
    zero = [name for name, tensor in tensors.items() if tensor.ndim > 1 and not tensor.any()]
    if zero:
        seen.add(
            Severity.WARNING,
            "weights",
            f"{len(zero)} weight matrices are all zeros ({listed(zero)}).",
            "Check that the training saved them: a trained ACT has none.",
        )
    negative = [
        name
        for name, tensor in tensors.items()
        if name.endswith("running_var") and (tensor.float() < 0).any()
    ]
    if negative:
        seen.add(
            Severity.WARNING,
            "weights",
            f"Batch norms have negative variances ({listed(negative)}), so images become NaN.",
            "Take the backbone from an undamaged checkpoint.",
        )


def examine_statistics(seen: Examination, affines: Mapping[str, Affine]) -> None:
    """Statistics that are complete and still suspicious."""
    for key, affine in affines.items():
        if affine.mode is NormalizationMode.IDENTITY:
            if key == ACTION_KEY:
                seen.add(Severity.NOTE, "normalisation", "Actions are not normalised at all.")
            continue
        if affine.shift.ndim == 3:
            if affine.shift.abs().max() > 2:
                seen.add(
                    Severity.WARNING,
                    "normalisation",
                    f"The statistics of {key!r} look like pixels of 0 to 255; LeRobot's images are "
                    "0 to 1.",
                    "Recompute them, or divide them by 255.",
                )
            continue
        still = [i for i, unit in enumerate(affine.unscale.tolist()) if unit <= 1e-6]
        if still:
            seen.add(
                Severity.WARNING,
                "normalisation",
                f"Components {still} of {key!r} never moved in training, so the smallest deviation "
                "is blown up beyond anything the network has seen.",
                "Hold them at their training value, or widen their statistics.",
            )


def examine_dead(seen: Examination, checkpoint: Checkpoint) -> None:
    """Tensors of the file that inference never reads."""
    layers = {name.split(".")[2] for name in checkpoint.dead_weights if name.startswith("decoder.")}
    if layers:
        n = sum(tensor.numel() for tensor in checkpoint.dead_weights.values())
        seen.add(
            Severity.NOTE,
            "decoder",
            f"{n:,} numbers are dead: decoder layers {min(layers, key=int)} to "
            f"{max(layers, key=int)} and the padding head, which inference never reads.",
        )


def examine_cameras(seen: Examination, config: ACTConfig) -> None:
    """Cameras that nothing but their order tells apart."""
    sizes: dict[tuple[int, int], list[str]] = {}
    for camera in config.cameras:
        sizes.setdefault((camera.height, camera.width), []).append(camera.name)
    for (height, width), names in sizes.items():
        if len(names) > 1:
            seen.add(
                Severity.NOTE,
                "cameras",
                f"{', '.join(names)} have one size ({height}x{width}) and ACT gives cameras no "
                "identity: with equal statistics, swapping their images changes no action, and "
                "nothing complains.",
                "Check once that each name shows what you think.",
            )


def examine_idle_parts(seen: Examination, config: ACTConfig) -> None:
    """Parts that are there and that say nothing about a scene."""
    if config.use_vae:
        seen.add(
            Severity.NOTE,
            "latent",
            "The VAE encoder only trains: at inference the latent is zero, and its token is the "
            "same for every scene.",
        )
    else:
        seen.add(
            Severity.NOTE,
            "latent",
            "Trained without a VAE; the latent token is the same for every scene.",
        )
    if config.n_decoder_layers == 1:
        seen.add(
            Severity.NOTE,
            "decoder",
            "With one decoder layer its self-attention is a constant: its inputs are zeros, so its "
            "patterns mean nothing.",
        )
    if config.temporal_ensemble_coeff is not None:
        seen.add(
            Severity.NOTE,
            "actions",
            f"Actions are averaged over time with coefficient {config.temporal_ensemble_coeff:g}; "
            "an effect on one chunk reaches the robot diluted.",
        )


_PARTS = {
    "backbone": "backbone",
    "vae_encoder": "VAE encoder (training only)",
    "encoder.": "encoder",
    "decoder.": "decoder",
}


def count(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Numbers by part of the network."""
    counts: dict[str, int] = {}
    for name, tensor in tensors.items():
        part = next((part for prefix, part in _PARTS.items() if name.startswith(prefix)), None)
        part = part or "projections, positions and head"
        counts[part] = counts.get(part, 0) + math.prod(tensor.shape)
    return counts
