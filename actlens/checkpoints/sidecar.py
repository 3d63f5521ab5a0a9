"""`actlens.json`, the small file beside a saved checkpoint for what LeRobot has no place for."""

import json
from dataclasses import dataclass
from pathlib import Path

from actlens.checkpoints.files import read_json
from actlens.errors import CheckpointError
from actlens.text import quoted

SIDECAR_FILE = "actlens.json"


@dataclass(frozen=True)
class Sidecar:
    """What actlens knows of a checkpoint that it saved."""

    joints: tuple[str, ...]
    source: str = ""
    complete: bool = True
    """False while the folder's files are being replaced."""

    def to_json(self) -> str:
        """The file's text."""
        content = {"complete": self.complete, "joints": list(self.joints), "source": self.source}
        return json.dumps({"written_by": "actlens", **content}, indent=2, ensure_ascii=False) + "\n"


def read_sidecar(folder: Path) -> Sidecar | None:
    """The folder's `actlens.json`, or None where there is none.

    Raises:
        CheckpointError: if it is damaged, or says that writing this folder was interrupted.
    """
    path = folder / SIDECAR_FILE
    if not path.exists():
        return None
    content = read_json(path)
    joints = content.get("joints")
    if not isinstance(joints, list) or not all(isinstance(name, str) for name in joints):
        raise CheckpointError(f"{path}: joints must be a list of names, found {quoted(joints)}.")
    if content.get("complete") is not True:
        raise CheckpointError(
            f"{path}: writing this folder was interrupted, so its files may belong to two "
            "policies; save the checkpoint again."
        )
    return Sidecar(tuple(joints), source=str(content.get("source", "")))


def is_ours(folder: Path) -> bool:
    """Whether actlens wrote the folder's checkpoint, completely or not."""
    path = folder / SIDECAR_FILE
    return path.is_file() and read_json(path).get("written_by") == "actlens"
