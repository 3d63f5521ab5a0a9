"""Checkpoints of the original ACT (tonyzhaozh/act) and mobile ALOHA's act-plus-plus.

A `policy_best.ckpt` is a pickled state dict without any configuration, and the normalisation is in
`dataset_stats.pkl` beside it. Sizes are inferred from shapes; what shapes cannot say is asked for.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor

from actlens.checkpoints.architecture import expected_shapes
from actlens.checkpoints.checkpoint import Checkpoint
from actlens.checkpoints.decoder_layers import count_layers, count_trained_layers, numbered
from actlens.checkpoints.pickled_weights import read_state_dict
from actlens.checkpoints.statistics_pickle import read_statistics_pickle, require_statistics
from actlens.checkpoints.weights import require_equal, require_finite, sha256_of
from actlens.config import ACTION_KEY, IMAGE_PREFIX, STATE_KEY, ACTConfig, Backbone, Camera
from actlens.errors import CheckpointError, ConfigError
from actlens.normalization import Affine, NormalizationMode
from actlens.text import listed, quoted

STATISTICS_FILE = "dataset_stats.pkl"


class DecoderLayersUsed(StrEnum):
    """Whose output becomes actions, where a checkpoint has several decoder layers.

    The original code builds seven and indexes the first's output (tonyzhaozh/act issue 25); forks
    index the last. A trained checkpoint tells by its biases, so nobody has to know.
    """

    FIRST = "first"
    ALL = "all"


@dataclass(frozen=True)
class OriginalOptions:
    """What an original ACT checkpoint does not say about itself."""

    cameras: Sequence[str] | None = None
    """Camera names in the order of training (`camera_names` of the task)."""
    image_size: tuple[int, int] = (480, 640)
    """Rows and columns, of every camera: the original stacks them in one tensor."""
    n_heads: int = 8
    decoder_layers_used: DecoderLayersUsed | None = None
    """Told from the weights if None."""


# Their names -> LeRobot's. Note `encoder`: theirs is the VAE's.
_RENAMED = {
    "input_proj.": "encoder_img_feat_input_proj.",
    "input_proj_robot_state.": "encoder_robot_state_input_proj.",
    "latent_out_proj.": "encoder_latent_input_proj.",
    "additional_pos_embed.": "encoder_1d_feature_pos_embed.",
    "transformer.encoder.": "encoder.",
    "transformer.decoder.": "decoder.",
    "query_embed.": "decoder_pos_embed.",
    "action_head.": "action_head.",
    "encoder.": "vae_encoder.",
    "cls_embed.": "vae_encoder_cls_embed.",
    "encoder_joint_proj.": "vae_encoder_robot_state_input_proj.",
    "encoder_action_proj.": "vae_encoder_action_input_proj.",
    "latent_proj.": "vae_encoder_latent_output_proj.",
    "pos_table": "vae_encoder_pos_enc",
    "is_pad_head.": "is_pad_head.",
}
_BACKBONE = re.compile(r"backbones\.(\d+)\.0\.body\.(.+)")


def find_original(path: Path) -> Path | None:
    """The checkpoint file, given itself or its folder; best before last before the latest epoch."""
    if path.is_file():
        return path if path.suffix in {".ckpt", ".pt", ".pth"} else None
    for name in ("policy_best.ckpt", "policy_last.ckpt"):
        if (path / name).is_file():
            return path / name
    numbered = [*path.glob("policy_epoch_*_seed_*.ckpt"), *path.glob("policy_step_*_seed_*.ckpt")]
    return max(numbered, key=_number, default=None)


def _number(path: Path) -> tuple[int, str]:
    found = re.search(r"_(\d+)_seed", path.name)
    return (int(found.group(1)) if found else -1, path.name)


def count_backbones(path: Path) -> int:
    """How many backbones a checkpoint file has: one, or act-plus-plus's one for each camera.

    Raises:
        UnsafeFileError: if the pickle asks for more than tensors; nothing of it was run.
        CheckpointError: if the file is missing, damaged, or no original ACT's.
    """
    return _rename(path, read_state_dict(path))[1]


def read_original(path: Path, options: OriginalOptions) -> Checkpoint:
    """The checkpoint in a `policy_*.ckpt` with its `dataset_stats.pkl`.

    Raises:
        UnsafeFileError: if a pickle asks for more than tensors and arrays; nothing of it was run.
        CheckpointError: if a file is missing or damaged, the tensors are no original ACT's, or the
            camera names were not given.
    """
    state = read_state_dict(path)
    notes = [
        f"{path.name} does not say its number of heads; {options.n_heads} are assumed.",
        "Dilation cannot be told from the weights; none is assumed.",
    ]
    tensors, n_backbones = _rename(path, state)
    cameras = _cameras(path, options, n_backbones)
    if n_backbones > 1:
        notes.append(f"Its {n_backbones} backbones are equal, so one stands for all.")
    config = _infer(path, tensors, cameras, options)
    weights, dead = _split_dead(tensors, config)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    require_equal(path, expected_shapes(config), shapes, against="an original ACT's")
    weights = {name: weights[name] for name in expected_shapes(config)}
    require_finite(path, weights)
    notes += _decoder_notes(tensors, config)
    statistics = _read_statistics(path.parent / STATISTICS_FILE, config)
    return Checkpoint(
        config=config,
        weights=weights,
        normalization={
            # The original adds no epsilon: it clips the standard deviations at 0.01 beforehand.
            key: Affine.from_stats(
                NormalizationMode.MEAN_STD, stats, eps=0.0, what=f"{path}: {quoted(key)}"
            )
            for key, stats in statistics.items()
        },
        statistics=statistics,
        eps=0.0,
        dead_weights=dead,
        source=str(path),
        sha256=sha256_of(path),
        notes=tuple(notes),
    )


def _rename(path: Path, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """The tensors by LeRobot's names, and how many backbones the file has."""
    tensors: dict[str, Tensor] = {}
    backbones: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in state.items():
        name = key.removeprefix("model.")
        if found := _BACKBONE.fullmatch(name):
            backbones.setdefault(found[1], {})[f"backbone.{found[2]}"] = tensor
            continue
        prefix = next((prefix for prefix in _RENAMED if name.startswith(prefix)), None)
        if prefix is None:
            unknown.append(key)
            continue
        tensors[_RENAMED[prefix] + name.removeprefix(prefix)] = tensor
    variants = ("backbones.", "pos.", "input_proj_env_state.")
    if any(key.removeprefix("model.").startswith(variants) for key in unknown):
        raise CheckpointError(
            f"{path}: {quoted(unknown[0])} belongs to a variant that actlens does not read: "
            "learned pixel positions, or a policy without cameras."
        )
    if unknown:
        raise CheckpointError(
            f"{path}: {listed(unknown)}: no original ACT has such tensors, so this is another "
            "policy or a changed fork."
        )
    first, *others = backbones.values() or [{}]
    for index, other in enumerate(others, start=1):
        same = first.keys() == other.keys() and all(torch.equal(first[k], other[k]) for k in first)
        if not same:
            raise CheckpointError(
                f"{path}: has {len(backbones)} different backbones, one for each camera "
                f"(act-plus-plus); number {index} differs from number 0. actlens, like LeRobot, "
                "has one for all cameras."
            )
    return tensors | first, len(backbones)


def _cameras(path: Path, options: OriginalOptions, n_backbones: int) -> tuple[Camera, ...]:
    if options.cameras is None:
        count = f" ({n_backbones} of them)" if n_backbones > 1 else ""
        raise CheckpointError(
            f"{path}: does not say which cameras it was trained with: give cameras=[…]{count}, "
            "the task's camera_names in the same order, and image_size=(rows, columns) if it was "
            "not 480x640."
        )
    if n_backbones > 1 and len(options.cameras) != n_backbones:
        raise CheckpointError(
            f"{path}: has a backbone for each of {n_backbones} cameras, but "
            f"{len(options.cameras)} were named."
        )
    height, width = options.image_size
    return tuple(
        Camera(name if name.startswith(IMAGE_PREFIX) else IMAGE_PREFIX + name, height, width)
        for name in options.cameras
    )


def _infer(
    path: Path,
    tensors: Mapping[str, Tensor],
    cameras: tuple[Camera, ...],
    options: OriginalOptions,
) -> ACTConfig:
    """The architecture from the tensors' shapes."""

    def size(name: str, axis: int) -> int:
        if name not in tensors or tensors[name].ndim <= axis:
            raise CheckpointError(f"{path}: has no {name!r} (LeRobot's name), so it is no ACT.")
        return tensors[name].shape[axis]

    latent_dim = size("encoder_latent_input_proj.weight", 1)
    projection = "vae_encoder_latent_output_proj.weight"
    if projection in tensors and tensors[projection].shape[0] != 2 * latent_dim:
        raise CheckpointError(
            f"{path}: its latent is quantised (act-plus-plus with --use_vq), which at inference is "
            "drawn from a second network; actlens reads ACT with a Gaussian latent."
        )
    chunk = size("decoder_pos_embed.weight", 0)
    try:
        return ACTConfig(
            cameras=cameras,
            action_dim=size("action_head.weight", 0),
            state_dim=size("encoder_robot_state_input_proj.weight", 1),
            chunk=chunk,
            n_action_steps=chunk,
            backbone=_infer_backbone(tensors),
            d_model=size("decoder_pos_embed.weight", 1),
            n_heads=options.n_heads,
            d_mlp=size("encoder.layers.0.linear1.weight", 0),
            pre_norm="encoder.norm.weight" in tensors,
            n_encoder_layers=count_layers("encoder", tensors),
            n_decoder_layers=_live_layers(path, tensors, options.decoder_layers_used),
            use_vae=count_layers("vae_encoder", tensors) > 0,
            latent_dim=latent_dim,
            n_vae_encoder_layers=count_layers("vae_encoder", tensors) or 4,
        )
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _live_layers(path: Path, tensors: Mapping[str, Tensor], asked: DecoderLayersUsed | None) -> int:
    """How many decoder layers the actions pass through; refuses what the weights contradict."""
    built, trained = count_layers("decoder", tensors), count_trained_layers(tensors)
    seen = trained or (built if asked is DecoderLayersUsed.ALL else 1)
    if asked is DecoderLayersUsed.ALL and seen < built:
        raise CheckpointError(
            f"{path}: decoder {numbered(seen, built - 1)} of {built} were never trained (all their "
            f"biases are zero, as at the start), so the actions did not pass through them: leave "
            "decoder_layers_used out."
        )
    if asked is DecoderLayersUsed.FIRST and seen > 1:
        raise CheckpointError(
            f"{path}: decoder {numbered(1, seen - 1)} of {built} were trained, so this is a fork "
            "whose actions passed through them: leave decoder_layers_used out."
        )
    return seen


def _decoder_notes(tensors: Mapping[str, Tensor], config: ACTConfig) -> list[str]:
    """Which of several decoder layers count, and why."""
    built, live = count_layers("decoder", tensors), config.n_decoder_layers
    if built == 1:
        return []
    told = "Their biases tell" if count_trained_layers(tensors) else "As in the original code"
    if live == built:
        return [f"{told}: all {built} decoder layers count; a fork of the original code."]
    return [
        f"{told}: the output of decoder layer {live - 1} becomes actions, and "
        f"{numbered(live, built - 1)} of {built} are dead."
    ]


def _infer_backbone(tensors: Mapping[str, Tensor]) -> Backbone:
    if "backbone.layer4.0.conv3.weight" in tensors:
        return Backbone.RESNET50
    return Backbone.RESNET34 if "backbone.layer4.2.conv1.weight" in tensors else Backbone.RESNET18


def _split_dead(
    tensors: Mapping[str, Tensor], config: ACTConfig
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors that the network has, and those that inference never reads."""
    live, dead = {}, {}
    for name, tensor in tensors.items():
        layer = re.match(r"decoder\.layers\.(\d+)\.", name)
        is_dead = (
            (layer and int(layer[1]) >= config.n_decoder_layers)
            or name.startswith("is_pad_head.")
            # act-plus-plus with --no_encoder keeps the parts around the encoder it has not.
            or (name.startswith("vae_encoder") and not config.use_vae)
        )
        (dead if is_dead else live)[name] = tensor
    return live, dead


def _read_statistics(path: Path, config: ACTConfig) -> dict[str, dict[str, Tensor]]:
    """Statistics by LeRobot's feature keys; images have ImageNet's, as in the original code."""
    if not path.exists():
        raise CheckpointError(
            f"{path}: is missing; the original ACT writes it beside its checkpoints, and without "
            "it actions have no units."
        )
    found = read_statistics_pickle(path)
    require_statistics(path, found, ("qpos_mean", "qpos_std", "action_mean", "action_std"))
    statistics = {}
    for key, name, size in (
        (STATE_KEY, "qpos", config.state_dim),
        (ACTION_KEY, "action", config.action_dim),
    ):
        statistics[key] = {
            part: found[f"{name}_{part}"]
            for part in ("mean", "std", "min", "max")
            if f"{name}_{part}" in found
        }
        for part, tensor in statistics[key].items():
            if tuple(tensor.shape) != (size,):
                raise CheckpointError(
                    f"{path}: {name}_{part} must have shape ({size},), found {tuple(tensor.shape)}."
                )
    for camera in config.cameras:
        statistics[camera.key] = {
            "mean": torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1),
            "std": torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1),
        }
    return statistics
