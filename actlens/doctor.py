"""What is wrong with a checkpoint, in plain words and with the way to mend it.

`diagnose` looks at everything it still can after the first fault and never raises because of what
the files say: that becomes a finding.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from actlens.checkpoints.architecture import expected_shapes
from actlens.checkpoints.checkpoint import Checkpoint
from actlens.checkpoints.files import listed
from actlens.checkpoints.lerobot import (
    Layout,
    find_folder,
    layout_of,
    parameter_names,
    read_normalization,
    read_weights_header,
)
from actlens.checkpoints.lerobot_config import LeRobotConfig, read_lerobot_config
from actlens.checkpoints.original_act import (
    DecoderLayersUsed,
    OriginalOptions,
    count_backbones,
    find_original,
    read_original,
)
from actlens.checkpoints.reading import locate, nothing_here
from actlens.checkpoints.sidecar import read_sidecar
from actlens.checkpoints.weights import (
    Header,
    read_tensors,
    require_equal,
    require_finite,
    require_floats,
    sha256_of,
)
from actlens.config import ACTION_KEY, ACTConfig
from actlens.errors import CheckpointError
from actlens.normalization import Affine, NormalizationMode

_T = TypeVar("_T")

ORIGINAL_LAYOUT = "original ACT or act-plus-plus (pickled state dict and statistics)"


class Severity(StrEnum):
    """How much a finding matters, mildest first."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """One thing seen: what, where, and how to mend it (empty where there is nothing to do)."""

    severity: Severity
    where: str
    what: str
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Everything `diagnose` saw of one checkpoint."""

    place: str
    layout: str
    """Which program and release wrote it; empty if that could not be told."""
    findings: tuple[Finding, ...]
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Numbers of weights (frozen batch norms included) by part of the network."""
    sha256: str = ""
    """Of the weights file."""

    @property
    def healthy(self) -> bool:
        """Whether `load_checkpoint` would accept it: no finding is an error."""
        return all(finding.severity is not Severity.ERROR for finding in self.findings)

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity is severity)


def diagnose(
    place: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cameras: Sequence[str] | None = None,
    image_size: tuple[int, int] | None = None,
    n_heads: int | None = None,
    decoder_layers_used: DecoderLayersUsed = DecoderLayersUsed.FIRST,
) -> Diagnosis:
    """Examine any checkpoint: files, weights, normalisation, cameras, and what never runs.

    The arguments are those of `load_checkpoint`. An original ACT without camera names is examined
    with made-up ones.
    """
    try:
        path, _ = locate(place, revision=revision)
        if folder := find_folder(path):
            return _diagnose_lerobot(folder)
        if original := find_original(path):
            options = OriginalOptions(
                cameras=cameras,
                image_size=image_size or OriginalOptions.image_size,
                n_heads=OriginalOptions.n_heads if n_heads is None else n_heads,
                decoder_layers_used=DecoderLayersUsed(decoder_layers_used),
            )
            return _diagnose_original(original, options)
        raise nothing_here(path)
    except CheckpointError as error:
        return Diagnosis(str(place), "", (Finding(Severity.ERROR, "files", str(error)),))
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})."
        return Diagnosis(str(place), "", (Finding(Severity.ERROR, "files", what),))


class _Examination:
    """Collects findings while a checkpoint is taken apart."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def add(self, severity: Severity, where: str, what: str, fix: str = "") -> None:
        self.findings.append(Finding(severity, where, what, fix))

    def attempt(self, where: str, step: Callable[[], _T]) -> _T | None:
        """The step's result; a refusal becomes an error finding for each line that starts one."""
        try:
            return step()
        except CheckpointError as error:
            for problem in _problems(str(error)):
                self.add(Severity.ERROR, where, problem)
        except OSError as error:
            self.add(Severity.ERROR, where, f"cannot be read ({error.strerror or error}).")
        return None


def _problems(message: str) -> list[str]:
    """The problems of one error; indented lines belong to the problem before them."""
    problems: list[str] = []
    for line in message.split("\n"):
        if line.startswith(" ") and problems:
            problems[-1] += "\n" + line
        else:
            problems.append(line)
    return problems


def _diagnose_lerobot(folder: Path) -> Diagnosis:
    seen = _Examination()
    read = seen.attempt("config.json", lambda: read_lerobot_config(folder))
    seen.attempt("actlens.json", lambda: read_sidecar(folder))
    header = seen.attempt("weights", lambda: read_weights_header(folder))
    tensors = _examine_weights(seen, read, header) if header else None
    if read:
        seen.add(Severity.OK, "config.json", _describe(read.config))
        _note(seen, "config.json", read.notes)
        if read.raw.get("use_amp"):
            seen.add(
                Severity.NOTE,
                "config.json",
                "use_amp: LeRobot runs it in mixed precision on a GPU, so actions differ from "
                "actlens's in the third or fourth digit.",
            )
        if header:
            _examine_normalization(seen, folder, read, header)
        _examine_cameras(seen, read.config)
        _examine_idle_parts(seen, read.config)
    return Diagnosis(
        place=str(folder),
        layout=layout_of(folder, read).value if read else "",
        findings=tuple(seen.findings),
        parameters=_count(tensors or {}),
        sha256=(seen.attempt("weights", lambda: sha256_of(header.path)) or "") if header else "",
    )


def _diagnose_original(path: Path, options: OriginalOptions) -> Diagnosis:
    seen = _Examination()
    if options.cameras is None:
        n = seen.attempt("weights", lambda: max(1, count_backbones(path)))
        if n is None:
            return Diagnosis(str(path), ORIGINAL_LAYOUT, tuple(seen.findings))
        names = tuple(f"camera{i}" for i in range(n))
        options = OriginalOptions(
            names, options.image_size, options.n_heads, options.decoder_layers_used
        )
        seen.add(
            Severity.NOTE,
            "cameras",
            f"The checkpoint does not say its camera names; it is examined with {listed(names)}.",
            "Give cameras=[…] when you load it: the task's camera_names, in the same order.",
        )
    checkpoint = seen.attempt("checkpoint", lambda: read_original(path, options))
    if checkpoint:
        seen.add(Severity.OK, "weights", _describe(checkpoint.config))
        _note(seen, "weights", checkpoint.notes)
        _examine_values(seen, checkpoint.weights)
        _examine_statistics(seen, checkpoint.normalization)
        _examine_dead(seen, checkpoint)
        _examine_cameras(seen, checkpoint.config)
        _examine_idle_parts(seen, checkpoint.config)
    return Diagnosis(
        place=str(path),
        layout=ORIGINAL_LAYOUT,
        findings=tuple(seen.findings),
        parameters=_count(checkpoint.weights if checkpoint else {}),
        sha256=checkpoint.sha256 if checkpoint else "",
    )


def _note(seen: _Examination, where: str, notes: Sequence[str]) -> None:
    for note in notes:
        seen.add(Severity.NOTE, where, note)


def _describe(config: ACTConfig) -> str:
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


def _examine_weights(
    seen: _Examination, read: LeRobotConfig | None, header: Header
) -> dict[str, Tensor] | None:
    """Names, shapes, dtypes and values; the tensors by LeRobot's names if they can be read."""
    names = seen.attempt("weights", lambda: parameter_names(header))
    if names is None:
        return None
    before = len(seen.findings)
    if read:
        shapes = {name: header.shapes[key] for name, key in names.items()}
        seen.attempt(
            "weights", lambda: require_equal(header.path, expected_shapes(read.config), shapes)
        )
    seen.attempt("weights", lambda: require_floats(header, names.values()))
    if read and len(seen.findings) == before:
        dtypes = sorted({header.dtypes[key] for key in names.values()})
        seen.add(
            Severity.OK,
            "weights",
            f"All {len(names)} tensors are there with the right shapes, in {', '.join(dtypes)}.",
        )
        if len(dtypes) > 1:
            seen.add(
                Severity.WARNING, "weights", "Tensors have different dtypes.", "Save it in one."
            )
    found = seen.attempt("weights", lambda: read_tensors(header, names.values()))
    if found is None:
        return None
    tensors = {name: found[key] for name, key in names.items()}
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    seen.attempt("weights", lambda: require_finite(header.path, floats))
    _examine_values(seen, floats)
    renamed = sum(key != f"model.{name}" for name, key in names.items())
    if renamed:
        seen.add(Severity.NOTE, "weights", f"{renamed} tensors have a name of older releases.")
    return tensors


def _examine_values(seen: _Examination, tensors: Mapping[str, Tensor]) -> None:
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


def _examine_normalization(
    seen: _Examination, folder: Path, read: LeRobotConfig, header: Header
) -> None:
    found = seen.attempt("normalisation", lambda: read_normalization(folder, read, header))
    if found is None:
        return
    modes = ", ".join(f"{key} {affine.mode}" for key, affine in found.affines.items())
    seen.add(Severity.OK, "normalisation", f"Every feature has what its mode needs: {modes}.")
    _note(seen, "normalisation", found.notes)
    if layout_of(folder, read) is not Layout.PROCESSORS:
        seen.add(
            Severity.NOTE,
            "normalisation",
            "The statistics are among the weights: LeRobot 0.4 on loads this checkpoint with a "
            "warning only and runs it un-normalised.",
            "Convert it: save_checkpoint(load_checkpoint(old), new).",
        )
    _examine_statistics(seen, found.affines)


def _examine_statistics(seen: _Examination, affines: Mapping[str, Affine]) -> None:
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


def _examine_dead(seen: _Examination, checkpoint: Checkpoint) -> None:
    layers = {name.split(".")[2] for name in checkpoint.dead_weights if name.startswith("decoder.")}
    if layers:
        n = sum(tensor.numel() for tensor in checkpoint.dead_weights.values())
        seen.add(
            Severity.NOTE,
            "decoder",
            f"{n:,} numbers are dead: decoder layers {min(layers, key=int)} to "
            f"{max(layers, key=int)} and the padding head, which inference never reads.",
        )


def _examine_cameras(seen: _Examination, config: ACTConfig) -> None:
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


def _examine_idle_parts(seen: _Examination, config: ACTConfig) -> None:
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


def _count(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Numbers by part of the network."""
    counts: dict[str, int] = {}
    for name, tensor in tensors.items():
        part = next((part for prefix, part in _PARTS.items() if name.startswith(prefix)), None)
        part = part or "projections, positions and head"
        counts[part] = counts.get(part, 0) + math.prod(tensor.shape)
    return counts
