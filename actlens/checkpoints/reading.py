"""One door to every checkpoint: a bundled name, a path, or a Hugging Face hub id."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from actlens.checkpoints.bundled import bundled_folder, bundled_names
from actlens.checkpoints.checkpoint import Checkpoint
from actlens.checkpoints.hub import fetch_checkpoint, is_hub_id
from actlens.checkpoints.lerobot import find_folder, read_lerobot, why_no_weights
from actlens.checkpoints.original_act import (
    DecoderLayersUsed,
    OriginalOptions,
    find_original,
    read_original,
)
from actlens.errors import CheckpointError, ConfigError
from actlens.text import listed, quoted

_WHAT_TO_GIVE = (
    "give a LeRobot folder or training run, an original ACT's folder or .ckpt, a bundled policy's "
    "name, or user/name on the Hugging Face hub"
)


def load_checkpoint(
    path_or_name_or_hub_id: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cameras: Sequence[str] | None = None,
    image_size: tuple[int, int] | None = None,
    n_heads: int | None = None,
    decoder_layers_used: DecoderLayersUsed | None = None,
    joints: Sequence[str] | None = None,
) -> Checkpoint:
    """Read a policy, whatever wrote it: LeRobot from 2024 to 0.6.1, actlens, or the original ACT.

    Nothing that the files say is executed or imported, and nothing is guessed: a policy that would
    run with other numbers than its training left is refused.

    Args:
        path_or_name_or_hub_id: a folder (a `pretrained_model`, a step, `checkpoints/last` or a
            whole run), an original ACT's folder or `policy_best.ckpt`, a bundled policy's name, or
            `user/name` on the Hugging Face hub. A path that exists comes first.
        revision: a branch, tag or commit of the hub repository.
        cameras: an original ACT's camera names, in the order of training; it does not say them.
        image_size: an original ACT's rows and columns of pixels; 480x640 if None.
        n_heads: an original ACT's attention heads; 8 if None.
        decoder_layers_used: whose output an original ACT used, of its seven decoder layers; told
            from the weights if None, and refused where they say otherwise.
        joints: names for the action's dimensions, where the files have none or others are wanted.

    Raises:
        UnsafeFileError: if reading on would run code or leave the checkpoint's folder.
        CheckpointError: if there is no checkpoint, or it is damaged, foreign or contradicts itself.
    """
    path, source = locate(path_or_name_or_hub_id, revision=revision)
    try:
        if folder := find_folder(path):
            refuse_original_options(
                folder,
                cameras=cameras,
                image_size=image_size,
                n_heads=n_heads,
                decoder_layers_used=decoder_layers_used,
            )
            checkpoint = read_lerobot(folder)
        elif original := find_original(path):
            options = OriginalOptions(
                cameras=cameras,
                image_size=image_size or OriginalOptions.image_size,
                n_heads=OriginalOptions.n_heads if n_heads is None else n_heads,
                decoder_layers_used=decoder_layers_used and DecoderLayersUsed(decoder_layers_used),
            )
            checkpoint = read_original(original, options)
        else:
            raise nothing_here(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if joints is not None:
        try:
            checkpoint = replace(
                checkpoint, config=replace(checkpoint.config, joints=tuple(joints))
            )
        except ConfigError as error:
            raise CheckpointError(f"{path}: {error}") from error
    return replace(checkpoint, source=source) if source else checkpoint


def locate(place: str | os.PathLike[str], *, revision: str | None = None) -> tuple[Path, str]:
    """Where the files are, and a name for them that says more than the path, where there is one.

    Raises:
        CheckpointError: if it is no path, no bundled policy, and not to be had from the hub.
    """
    text = os.fspath(place)
    if not text:
        raise CheckpointError(f"The path is empty: {_WHAT_TO_GIVE}.")
    try:
        path = Path(place).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{quoted(text)}: is no usable path ({quoted(error)}).") from error
    if exists:
        if revision is not None:
            raise CheckpointError(f"{path}: is a path here; revision= is for hub repositories.")
        return path, ""
    if text in bundled_names():
        if revision is not None:
            raise CheckpointError(f"{text}: comes with actlens; revision= is for hub repositories.")
        return bundled_folder(text), f"bundled:{text}"
    if is_hub_id(text):
        folder = fetch_checkpoint(text, revision=revision)
        return folder, f"hub:{text}@{folder.name}"
    if path.parent != Path():
        raise CheckpointError(f"{path}: does not exist; {_WHAT_TO_GIVE}.")
    return bundled_folder(text), ""


def refuse_original_options(folder: Path, **given: object) -> None:
    """Refuse what only an original ACT's files leave to say, where a config.json says it.

    Raises:
        CheckpointError: if any of the options is given.
    """
    if stray := [name for name, value in given.items() if value is not None]:
        raise CheckpointError(
            f"{folder}: its config.json says its {', '.join(stray)}; these arguments are for "
            "original ACT checkpoints."
        )


def nothing_here(path: Path) -> CheckpointError:
    """The error that says why a path is no checkpoint."""
    if not path.is_dir():
        return CheckpointError(f"{path}: is a file; give the folder with config.json.")
    if reason := why_no_weights(path):
        return CheckpointError(f"{path}: {reason}")
    holds = listed(sorted(entry.name for entry in path.iterdir())) or "nothing"
    return CheckpointError(
        f"{path}: holds no checkpoint: no config.json here or in pretrained_model or "
        f"checkpoints/last/pretrained_model, and no policy_best.ckpt. It holds {holds}."
    )
