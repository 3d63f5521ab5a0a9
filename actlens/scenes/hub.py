"""The folder of a dataset, wherever it is: in this package, on this machine, or on the hub."""

import os
import re
from pathlib import Path

from actlens.errors import SceneError
from actlens.text import clean_text

BUNDLED = Path(__file__).resolve().parents[1] / "bundled"

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = ("meta/*", "data/*", "videos/*")


def bundled_datasets() -> tuple[str, ...]:
    """Names of the datasets that come with actlens."""
    return tuple(sorted(p.parent.parent.name for p in BUNDLED.glob("datasets/*/meta/info.json")))


def dataset_folder(source: str | Path, *, revision: str | None = None) -> Path:
    """The folder that a bundled name, a path or a Hugging Face repository id stands for.

    They are tried in this order; a folder that has a bundled dataset's name is reached as
    `./NAME`. A repository that LeRobot has recorded or downloaded (`HF_LEROBOT_HOME`) is used where
    it lies, unless a `revision` is asked for; anything else is downloaded once to Hugging Face's
    cache, which is all there is to look at when `HF_HUB_OFFLINE=1`.

    Raises:
        SceneError: if there is nothing of that name, it cannot be downloaded, or a revision of a
            folder is asked for.
    """
    text = str(source)
    path = Path(source).expanduser()
    if isinstance(source, str) and text in bundled_datasets():
        path = BUNDLED / "datasets" / text
    if path.is_dir():
        if revision is not None:
            raise SceneError(f"{clean_text(text)} lies on this machine; a revision is for the hub.")
        return path
    if isinstance(source, Path) or not _REPO_ID.fullmatch(text) or ".." in text:
        raise SceneError(
            f"{clean_text(text)} is no folder, no repository id (owner/name) and none of the "
            f"bundled datasets: {', '.join(bundled_datasets()) or 'none is bundled'}."
        )
    recorded = _lerobot_home() / text
    if revision is None and (recorded / "meta" / "info.json").is_file():
        return recorded
    return _downloaded(text, revision)


def _lerobot_home() -> Path:
    cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return Path(os.environ.get("HF_LEROBOT_HOME", f"{cache}/lerobot")).expanduser()


def _downloaded(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = snapshot_download(
            repo_id, repo_type="dataset", revision=revision, allow_patterns=list(_WANTED)
        )
    except (OSError, ValueError, HfHubHTTPError) as problem:
        raise SceneError(
            f"{repo_id} is no folder here and cannot be had from the hub: {clean_text(problem)}"
        ) from problem
    return Path(folder)
