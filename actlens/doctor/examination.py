"""Taking a checkpoint apart, step by step, whatever state it is in."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from actlens.checkpoints.architecture import expected_shapes
from actlens.checkpoints.decoder_layers import require_live_layers
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
from actlens.checkpoints.reading import locate, nothing_here, refuse_original_options
from actlens.checkpoints.sidecar import read_sidecar
from actlens.checkpoints.weights import (
    Header,
    read_tensors,
    require_equal,
    require_finite,
    require_floats,
    sha256_of,
)
from actlens.doctor.checks import (
    count,
    describe,
    examine_cameras,
    examine_dead,
    examine_idle_parts,
    examine_statistics,
    examine_values,
)
from actlens.doctor.diagnosis import Diagnosis, Examination, Finding, Severity
from actlens.errors import CheckpointError
from actlens.text import listed

ORIGINAL_LAYOUT = "original ACT or act-plus-plus (pickled state dict and statistics)"


def diagnose(
    place: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cameras: Sequence[str] | None = None,
    image_size: tuple[int, int] | None = None,
    n_heads: int | None = None,
    decoder_layers_used: DecoderLayersUsed | None = None,
) -> Diagnosis:
    """Examine any checkpoint: files, weights, normalisation, cameras, and what never runs.

    The arguments are those of `load_checkpoint`. An original ACT without camera names is examined
    with made-up ones.
    """
    try:
        path, _ = locate(place, revision=revision)
        if folder := find_folder(path):
            refuse_original_options(
                folder,
                cameras=cameras,
                image_size=image_size,
                n_heads=n_heads,
                decoder_layers_used=decoder_layers_used,
            )
            return _diagnose_lerobot(folder)
        if original := find_original(path):
            options = OriginalOptions(
                cameras=cameras,
                image_size=image_size or OriginalOptions.image_size,
                n_heads=OriginalOptions.n_heads if n_heads is None else n_heads,
                decoder_layers_used=decoder_layers_used and DecoderLayersUsed(decoder_layers_used),
            )
            return _diagnose_original(original, options)
        raise nothing_here(path)
    except CheckpointError as error:
        return Diagnosis(str(place), "", (Finding(Severity.ERROR, "files", str(error)),))
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})."
        return Diagnosis(str(place), "", (Finding(Severity.ERROR, "files", what),))


def _diagnose_lerobot(folder: Path) -> Diagnosis:
    seen = Examination()
    read = seen.attempt("config.json", lambda: read_lerobot_config(folder))
    seen.attempt("actlens.json", lambda: read_sidecar(folder))
    header = seen.attempt("weights", lambda: read_weights_header(folder))
    tensors = _examine_weights(seen, read, header) if header else None
    if read:
        seen.add(Severity.OK, "config.json", describe(read.config))
        seen.note("config.json", read.notes)
        if read.raw.get("use_amp"):
            seen.add(
                Severity.NOTE,
                "config.json",
                "use_amp: LeRobot runs it in mixed precision on a GPU, so actions differ from "
                "actlens's in the third or fourth digit.",
            )
        if header:
            _examine_normalization(seen, folder, read, header)
        examine_cameras(seen, read.config)
        examine_idle_parts(seen, read.config)
    return Diagnosis(
        place=str(folder),
        layout=layout_of(folder, read).value if read else "",
        findings=tuple(seen.findings),
        parameters=count(tensors or {}),
        sha256=(seen.attempt("weights", lambda: sha256_of(header.path)) or "") if header else "",
    )


def _diagnose_original(path: Path, options: OriginalOptions) -> Diagnosis:
    seen = Examination()
    if options.cameras is None:
        n = seen.attempt("weights", lambda: max(1, count_backbones(path)))
        if n is None:
            return Diagnosis(str(path), ORIGINAL_LAYOUT, tuple(seen.findings))
        names = tuple(f"camera{i}" for i in range(n))
        options = replace(options, cameras=names)
        seen.add(
            Severity.NOTE,
            "cameras",
            f"The checkpoint does not say its camera names; it is examined with {listed(names)}.",
            "Give cameras=[…] when you load it: the task's camera_names, in the same order.",
        )
    checkpoint = seen.attempt("checkpoint", lambda: read_original(path, options))
    if checkpoint:
        seen.add(Severity.OK, "weights", describe(checkpoint.config))
        seen.note("weights", checkpoint.notes)
        examine_values(seen, checkpoint.weights)
        examine_statistics(seen, checkpoint.normalization)
        examine_dead(seen, checkpoint)
        examine_cameras(seen, checkpoint.config)
        examine_idle_parts(seen, checkpoint.config)
    return Diagnosis(
        place=str(path),
        layout=ORIGINAL_LAYOUT,
        findings=tuple(seen.findings),
        parameters=count(checkpoint.weights if checkpoint else {}),
        sha256=checkpoint.sha256 if checkpoint else "",
    )


def _examine_weights(
    seen: Examination, read: LeRobotConfig | None, header: Header
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
            what = "Tensors have different dtypes; LeRobot and actlens compute all in float32."
            seen.add(Severity.NOTE, "weights", what)
    found = seen.attempt("weights", lambda: read_tensors(header, names.values()))
    if found is None:
        return None
    tensors = {name: found[key] for name, key in names.items()}
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    seen.attempt("weights", lambda: require_finite(header.path, floats))
    seen.attempt("decoder", lambda: require_live_layers(header.path, floats))
    examine_values(seen, floats)
    renamed = sum(key != f"model.{name}" for name, key in names.items())
    if renamed:
        seen.add(Severity.NOTE, "weights", f"{renamed} tensors have a name of older releases.")
    return tensors


def _examine_normalization(
    seen: Examination, folder: Path, read: LeRobotConfig, header: Header
) -> None:
    found = seen.attempt("normalisation", lambda: read_normalization(folder, read, header))
    if found is None:
        return
    modes = ", ".join(f"{key} {affine.mode}" for key, affine in found.affines.items())
    seen.add(Severity.OK, "normalisation", f"Every feature has what its mode needs: {modes}.")
    seen.note("normalisation", found.notes)
    if layout_of(folder, read) is not Layout.PROCESSORS:
        seen.add(
            Severity.NOTE,
            "normalisation",
            "The statistics are among the weights: LeRobot 0.4 on loads this checkpoint with a "
            "warning only and runs it un-normalised.",
            "Convert it: save_checkpoint(load_checkpoint(old), new).",
        )
    examine_statistics(seen, found.affines)
