"""What it takes to get a result again: versions, hashes, seeds and the command."""

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import actlens
from actlens.model.act import HookedACT

_PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pandas", "einops")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def scenes_hash(observations: list[Mapping[str, torch.Tensor]]) -> str:
    """The SHA-256 of scenes' pictures and states, in order: the same scenes, the same hash."""
    digest = hashlib.sha256()
    for observation in observations:
        for key in sorted(observation):
            digest.update(key.encode())
            digest.update(observation[key].contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _git_commit() -> str | None:
    """The commit of the checkout that actlens runs from, marked where files were changed.

    None where it is installed: the repository around its environment is somebody else's.
    """
    folder = Path(actlens.__file__).resolve().parent
    run = lambda *words: subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False
    )
    try:
        top = run("rev-parse", "--show-toplevel")
        commit = run("rev-parse", "HEAD")
        changed = run("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:  # no git on this machine
        return None
    if commit.returncode or Path(top.stdout.strip()).resolve() != folder.parent:
        return None
    return commit.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


def provenance(
    model: HookedACT, config: Any, *, seconds: float, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything about a run but its numbers. Paths lose the home and the working folder.

    Args:
        config: the frozen dataclass of the run's options.
        seconds: of wall time.
        facts: what else identifies the run (hashes of scenes, calibration, …).
    """
    checkpoint = model.checkpoint
    return {
        "actlens": actlens.__version__,
        "commit": _git_commit(),
        "command": shlex.join(["python", "-m", *_module_and_flags()]),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "config": _plain(asdict(config) if is_dataclass(config) else config),
        "weights_sha256": None if checkpoint is None else checkpoint.sha256,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": str(model.action_head.weight.device),
        "dtype": str(model.action_head.weight.dtype).removeprefix("torch."),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        **_plain(dict(facts)),
    }


def _module_and_flags() -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name if spec is not None else Path(sys.argv[0]).stem
    return [name.removesuffix(".__main__"), *map(_relative, sys.argv[1:])]


def _relative(argument: str) -> str:
    """Home and working folder taken out of an argument."""
    for folder in (str(Path.cwd()), str(Path.home())):
        argument = argument.replace(folder + os.sep, "")
    return argument


def _plain(value: Any) -> Any:
    """The value in JSON's types."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return _relative(str(value))
    return value


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON beside the target and move it into place."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False))
    temporary.replace(path)
