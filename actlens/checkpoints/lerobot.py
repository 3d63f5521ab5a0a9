"""LeRobot's ACT checkpoints of every layout, from the first (2024) to 0.6.1, read."""

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

from actlens.checkpoints.architecture import expected_shapes
from actlens.checkpoints.checkpoint import Checkpoint
from actlens.checkpoints.decoder_layers import require_live_layers
from actlens.checkpoints.lerobot_buffers import is_buffer, read_buffers
from actlens.checkpoints.lerobot_config import CONFIG_FILE, LeRobotConfig, read_lerobot_config
from actlens.checkpoints.lerobot_processors import (
    POSTPROCESSOR_FILE,
    PREPROCESSOR_FILE,
    read_processors,
)
from actlens.checkpoints.lerobot_statistics import LeRobotNormalization
from actlens.checkpoints.sidecar import SIDECAR_FILE, read_sidecar
from actlens.checkpoints.weights import (
    Header,
    read_header,
    read_tensors,
    require_equal,
    require_finite,
    require_floats,
    sha256_of,
)
from actlens.errors import CheckpointError
from actlens.normalization import NormalizationMode
from actlens.text import listed, quoted

WEIGHTS_FILE = "model.safetensors"
_STEP_FOLDER = "pretrained_model"
_PREFIX = "model."

# Before LeRobot #314 (July 2024) the 1-D positions were named after their two tokens.
_OLD_NAMES = {"encoder_robot_and_latent_pos_embed.weight": "encoder_1d_feature_pos_embed.weight"}


class Layout(StrEnum):
    """Where a LeRobot checkpoint keeps its normalisation, and when that was."""

    FIRST = "LeRobot 2024 (config.json with input_shapes, statistics among the weights)"
    BUFFERS = "LeRobot February 2025 to 0.3.3 (statistics among the weights)"
    PROCESSORS = "LeRobot 0.4 to 0.6 (statistics in processor files)"


def find_folder(path: Path) -> Path | None:
    """The folder with `config.json`, given itself, a step's folder, `checkpoints/last` or a run."""
    candidates = [path, path / _STEP_FOLDER]
    for steps in (path, path / "checkpoints"):
        candidates.append(steps / "last" / _STEP_FOLDER)
        # `last` is a link to the latest step, which copies between machines often lose.
        numbered = [step for step in steps.glob("[0-9]*") if step.name.isdecimal()]
        if numbered:
            candidates.append(max(numbered, key=lambda step: int(step.name)) / _STEP_FOLDER)
    for candidate in candidates:
        if (candidate / CONFIG_FILE).is_file():
            return candidate
    return None


def layout_of(folder: Path, config: LeRobotConfig) -> Layout:
    """Which of LeRobot's layouts a folder has."""
    if (folder / PREPROCESSOR_FILE).exists() or (folder / POSTPROCESSOR_FILE).exists():
        return Layout.PROCESSORS
    return Layout.FIRST if config.before_2025 else Layout.BUFFERS


def read_lerobot(folder: Path) -> Checkpoint:
    """The checkpoint in a folder that holds `config.json` and `model.safetensors`.

    Shapes are compared with the configuration before any tensor is read.

    Raises:
        UnsafeFileError: if a processor names a class or a file outside the folder.
        CheckpointError: if a file is missing, damaged or foreign, or anything about the policy's
            weights or normalisation would have to be guessed.
    """
    config = _with_joints(folder, read_lerobot_config(folder))
    header = read_weights_header(folder)
    names = parameter_names(header)
    shapes = {name: header.shapes[key] for name, key in names.items()}
    require_equal(header.path, expected_shapes(config.config), shapes)
    require_floats(header, names.values())
    normalization = read_normalization(folder, config, header)
    tensors = read_tensors(header, names.values())
    weights = {name: tensors[names[name]] for name in expected_shapes(config.config)}
    require_finite(header.path, weights)
    require_live_layers(header.path, weights)
    return Checkpoint(
        config=config.config,
        weights=weights,
        normalization=normalization.affines,
        statistics=normalization.statistics,
        eps=normalization.eps,
        renames=normalization.renames,
        raw_config=config.raw,
        source=str(folder),
        sha256=sha256_of(header.path),
        notes=(*config.notes, *_renaming_notes(names), *normalization.notes),
    )


def _with_joints(folder: Path, config: LeRobotConfig) -> LeRobotConfig:
    """The configuration with the joint names that actlens keeps beside it, where it does."""
    sidecar = read_sidecar(folder)
    if sidecar is None:
        return config
    if len(sidecar.joints) != config.config.action_dim:
        raise CheckpointError(
            f"{folder / SIDECAR_FILE}: names {len(sidecar.joints)} joints, but the action has "
            f"{config.config.action_dim} dimensions."
        )
    return replace(config, config=replace(config.config, joints=sidecar.joints))


def read_weights_header(folder: Path) -> Header:
    """The table of contents of `model.safetensors`, or why there is none.

    Raises:
        CheckpointError: saying what the folder holds instead.
    """
    path = folder / WEIGHTS_FILE
    if path.exists():
        return read_header(path)
    raise CheckpointError(f"{folder}: {why_no_weights(folder) or f'has no {WEIGHTS_FILE}.'}")


def why_no_weights(folder: Path) -> str:
    """What a folder holds in place of `model.safetensors`, and what to do; nothing if unknown."""
    if (folder / "adapter_model.safetensors").exists() or (folder / "adapter_config.json").exists():
        return (
            "holds PEFT adapters without their base policy; merge them first (peft's "
            "`merge_and_unload`) and save the whole policy."
        )
    if any(folder.glob("pytorch_model_fsdp_*")) or any(folder.glob("*.distcp")):
        return (
            "holds the shards of a distributed checkpoint (DCP); save the policy in LeRobot's "
            f"safetensors format, so that there is a {WEIGHTS_FILE}."
        )
    return ""


def parameter_names(header: Header) -> dict[str, str]:
    """The keys of the file by LeRobot's current parameter names, statistics left out.

    Raises:
        CheckpointError: if two keys mean the same parameter.
    """
    names: dict[str, str] = {}
    for key in header.shapes:
        if is_buffer(key):
            continue
        # torch.compile wraps modules under this name.
        name = key.replace("_orig_mod.", "").removeprefix(_PREFIX)
        name = _OLD_NAMES.get(name, name)
        if name in names:
            raise CheckpointError(
                f"{header.path}: {quoted(names[name])} and {quoted(key)} mean the same parameter."
            )
        names[name] = key
    return names


def _renaming_notes(names: Mapping[str, str]) -> list[str]:
    renamed = [key for name, key in names.items() if key != _PREFIX + name]
    if not renamed:
        return []
    return [f"{len(renamed)} tensors have an older name, such as {quoted(renamed[0])}."]


def read_normalization(folder: Path, config: LeRobotConfig, header: Header) -> LeRobotNormalization:
    """The normalisation, from wherever the layout keeps it.

    Raises:
        UnsafeFileError: if a processor names a class or a file outside the folder.
        CheckpointError: if a feature would run un-normalised although its mode says otherwise.
    """
    buffers = [key for key in header.shapes if is_buffer(key)]
    if layout_of(folder, config) is Layout.PROCESSORS:
        if buffers:
            raise CheckpointError(
                f"{header.path}: holds statistics ({quoted(buffers[0])}, …) beside processor files "
                "that hold them too; which were used cannot be told. Keep one of the two."
            )
        return read_processors(folder, config.features)
    needed = [f.key for f in config.features if f.mode is not NormalizationMode.IDENTITY]
    if needed and not buffers:
        raise CheckpointError(
            f"{folder}: holds no normalisation, neither {PREPROCESSOR_FILE} and "
            f"{POSTPROCESSOR_FILE} (LeRobot 0.4 on) nor statistics among the weights (before), but "
            f"config.json asks for it for {listed(needed)}. Copy the processor files from the "
            "training run's pretrained_model folder."
        )
    return read_buffers(header.path, config.features, read_tensors(header, buffers))
