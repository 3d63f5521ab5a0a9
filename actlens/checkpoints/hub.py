"""Checkpoints from the Hugging Face hub: safetensors and JSON only, never a pickle."""

import re
from pathlib import Path

from actlens.errors import CheckpointError
from actlens.text import quoted

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def is_hub_id(text: str) -> bool:
    """Whether a text has the form `user/name`."""
    return bool(_REPOSITORY.fullmatch(text))


def fetch_checkpoint(hub_id: str, *, revision: str | None = None) -> Path:
    """The folder of a hub repository's checkpoint, from the local cache or downloaded to it.

    Honours `HF_HUB_OFFLINE` and the other variables of huggingface_hub. The folder is named after
    the commit, so that a moving branch can be told later.

    Args:
        hub_id: `user/name`.
        revision: a branch, tag or commit; the default branch if None.

    Raises:
        CheckpointError: if it is neither in the cache nor within reach, or holds no checkpoint.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        folder = snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=["*.json", "*.safetensors"],
            # Training states and other policies lie in folders of the repository.
            ignore_patterns=["*/*"],
        )
    except (errors.HTTPError, OSError, ValueError) as error:
        at = f" at {quoted(revision)}" if revision else ""
        raise CheckpointError(
            f"{quoted(hub_id)} is no folder here, and the hub did not give it{at} "
            f"({type(error).__name__}: {quoted(error)}). Check the name and the connection, or "
            "download the repository and give its folder."
        ) from error
    return Path(folder)
