"""A checkpoint as a folder that LeRobot 0.4 to 0.6 loads itself."""

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from actlens.checkpoints.architecture import expected_shapes
from actlens.checkpoints.checkpoint import Checkpoint
from actlens.checkpoints.lerobot import WEIGHTS_FILE
from actlens.checkpoints.lerobot_config import CONFIG_FILE, to_lerobot_json
from actlens.checkpoints.lerobot_features import FeatureKind
from actlens.checkpoints.lerobot_processors import (
    DEVICE,
    NORMALIZER,
    POSTPROCESSOR_FILE,
    PREPROCESSOR_FILE,
    RENAME,
    TO_BATCH,
    UNNORMALIZER,
)
from actlens.checkpoints.sidecar import SIDECAR_FILE, Sidecar, is_ours
from actlens.checkpoints.weights import require_equal, require_finite
from actlens.config import ACTION_KEY, STATE_KEY, ACTConfig
from actlens.errors import CheckpointError
from actlens.normalization import Affine, NormalizationMode

_CARD_FILE = "README.md"
_PREPROCESSOR_STATE = "policy_preprocessor_step_3_normalizer_processor.safetensors"
_POSTPROCESSOR_STATE = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"


def save_checkpoint(
    checkpoint: Checkpoint, directory: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Write a checkpoint where LeRobot's `from_pretrained` and its robots can use it.

    Weights and statistics keep every bit and their dtypes. A new folder appears whole or not at
    all; in an existing one each file but its model card is replaced whole, and a reader refuses the
    folder while only some are.

    Args:
        checkpoint: what to save; its weights must be complete and finite. `dead_weights` have no
            place in LeRobot's network and are left out.
        directory: the folder to make, or one that `save_checkpoint` made before.
        overwrite: also replace the checkpoint files of a folder that something else made.

    Returns:
        The folder.

    Raises:
        CheckpointError: if the weights do not fit the configuration, the normalisation cannot be
            said in LeRobot's words, the folder holds something else, or it cannot be written.
    """
    target = Path(directory)
    _require_free(target, overwrite=overwrite)
    files = _contents(checkpoint)
    staging = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
    try:
        staging.mkdir(parents=True)
        for name, content in files.items():
            _write(staging / name, content)
        _publish(staging, target, files)
    except OSError as error:
        raise CheckpointError(
            f"{target}: cannot be written ({error.strerror or error})."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _require_free(target: Path, *, overwrite: bool) -> None:
    """Refuse a file, and a folder with anything else than a checkpoint of ours in it."""
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target}: is a file; give a folder.")
    if overwrite or not target.exists() or not any(target.iterdir()):
        return
    if not is_ours(target):
        raise CheckpointError(
            f"{target}: already holds something that actlens did not write; give another folder, "
            "or overwrite=True to replace its checkpoint files."
        )


def _contents(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Every file of the folder, the sidecar last."""
    config = checkpoint.config
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
    require_equal(Path(WEIGHTS_FILE), expected_shapes(config), shapes)
    require_finite(Path(WEIGHTS_FILE), checkpoint.weights)
    modes = _modes_by_kind(checkpoint)
    written = to_lerobot_json(config, modes, checkpoint.raw_config)
    statistics = {
        f"{key}.{name}": tensor
        for key, entries in checkpoint.statistics.items()
        for name, tensor in entries.items()
    }
    return {
        WEIGHTS_FILE: _safetensors({f"model.{k}": v for k, v in checkpoint.weights.items()}),
        _PREPROCESSOR_STATE: _safetensors(statistics),
        _POSTPROCESSOR_STATE: _safetensors(statistics),
        PREPROCESSOR_FILE: _json(_preprocessor(checkpoint, written)),
        POSTPROCESSOR_FILE: _json(_postprocessor(checkpoint, written)),
        CONFIG_FILE: _json(written),
        _CARD_FILE: _card(checkpoint).encode(),
        SIDECAR_FILE: Sidecar(config.joints, source=checkpoint.source).to_json().encode(),
    }


def _kinds(config: ACTConfig) -> dict[str, FeatureKind]:
    """The features that the network uses, by key."""
    kinds = {camera.key: FeatureKind.VISUAL for camera in config.cameras}
    if config.state_dim is not None:
        kinds[STATE_KEY] = FeatureKind.STATE
    if config.env_state_dim is not None:
        kinds[config.env_state_key] = FeatureKind.ENV
    return kinds | {ACTION_KEY: FeatureKind.ACTION}


def _modes_by_kind(checkpoint: Checkpoint) -> dict[FeatureKind, NormalizationMode]:
    """LeRobot's `normalization_mapping`, which knows one mode for all features of a kind.

    Raises:
        CheckpointError: if a feature has no normalisation, two cameras have different modes, or the
            statistics that a mode needs are not there to be written.
    """
    modes: dict[FeatureKind, NormalizationMode] = {}
    for key, kind in _kinds(checkpoint.config).items():
        if key not in checkpoint.normalization:
            raise CheckpointError(f"the checkpoint has no normalisation for {key!r}.")
        mode = checkpoint.normalization[key].mode
        if mode is not NormalizationMode.IDENTITY and key not in checkpoint.statistics:
            raise CheckpointError(f"the checkpoint has no statistics for {key!r} ({mode}).")
        if modes.setdefault(kind, mode) is not mode:
            raise CheckpointError(
                f"{key!r} is normalised by {mode}, another {kind} feature by {modes[kind]}; "
                "LeRobot's files since 2025 hold one mode for all of a kind."
            )
        if mode is not NormalizationMode.IDENTITY:
            _require_written_by(checkpoint, key)
    return modes


def _require_written_by(checkpoint: Checkpoint, key: str) -> None:
    """Refuse a map that its statistics, which are what is written, do not give.

    The absolute tolerance is the epsilon that LeRobot up to 0.3.3 added to every range.
    """
    affine = checkpoint.normalization[key]
    statistics = {
        name: tensor.reshape(affine.shift.shape)
        for name, tensor in checkpoint.statistics[key].items()
        if tensor.numel() == affine.shift.numel()
    }
    written = Affine.from_stats(affine.mode, statistics, eps=checkpoint.eps, what=repr(key))
    pairs = (
        (affine.shift, written.shift),
        (affine.scale, written.scale),
        (affine.unscale, written.unscale),
    )
    if not all(torch.allclose(a, b, rtol=1e-6, atol=1e-8) for a, b in pairs):
        raise CheckpointError(
            f"the normalisation of {key!r} is not what its statistics say, and LeRobot's files "
            "hold statistics only; change both."
        )


def _preprocessor(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    device = config.get("device") or "cpu"
    features = config["input_features"] | config["output_features"]
    normalizer = _normalizer(checkpoint, config, features)
    return {
        "name": "policy_preprocessor",
        "steps": [
            {"registry_name": RENAME, "config": {"rename_map": dict(checkpoint.renames)}},
            {"registry_name": TO_BATCH, "config": {}},
            {"registry_name": DEVICE, "config": {"device": device, "float_dtype": None}},
            {
                "registry_name": NORMALIZER,
                "config": normalizer,
                "state_file": _PREPROCESSOR_STATE,
            },
        ],
    }


def _postprocessor(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    unnormalizer = _normalizer(checkpoint, config, config["output_features"])
    return {
        "name": "policy_postprocessor",
        "steps": [
            {
                "registry_name": UNNORMALIZER,
                "config": unnormalizer,
                "state_file": _POSTPROCESSOR_STATE,
            },
            {"registry_name": DEVICE, "config": {"device": "cpu", "float_dtype": None}},
        ],
    }


def _normalizer(
    checkpoint: Checkpoint, config: Mapping[str, Any], features: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "eps": checkpoint.eps,
        "features": features,
        "norm_map": config["normalization_mapping"],
    }


def _card(checkpoint: Checkpoint) -> str:
    """A minimal model card."""
    config = checkpoint.config
    cameras = ", ".join(
        f"`{camera.name}` {camera.height}x{camera.width}" for camera in config.cameras
    )
    return (
        "---\nlibrary_name: lerobot\npipeline_tag: robotics\ntags:\n- robotics\n- lerobot\n- act\n"
        "- actlens\n---\n\n# ACT policy, saved by actlens\n\n"
        f"Cameras: {cameras or 'none'}. Action dimensions: {config.action_dim}. "
        f"Chunk: {config.chunk} steps.\n\n"
        "Loads in LeRobot 0.4 to 0.6: `ACTPolicy.from_pretrained(folder, strict=True)`.\n"
    )


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=4) + "\n").encode()


def _safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    # A clone each, because safetensors refuses names that share memory.
    return save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    )


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _publish(staging: Path, target: Path, files: Mapping[str, bytes]) -> None:
    """Move the written files to their place."""
    if not target.exists() or not any(target.iterdir()):
        # Replacing an empty folder by a full one is one step of the file system.
        if target.exists():
            target.rmdir()
        staging.replace(target)
        return
    unfinished = staging / "unfinished"
    _write(unfinished, Sidecar((), complete=False).to_json().encode())
    unfinished.replace(target / SIDECAR_FILE)
    for name in files:
        if name != _CARD_FILE or not (target / name).exists():
            (staging / name).replace(target / name)
