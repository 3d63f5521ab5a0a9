"""Key statistics and edits as folders: numbers in safetensors, all else in JSON, nothing executed.

The JSON file names the hash of the other, so that files of two folders cannot be mixed.
"""

import hashlib
import json
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from actlens.checkpoints.files import read_json
from actlens.checkpoints.weights import read_header, read_tensors, require_finite, sha256_of
from actlens.errors import CheckpointError
from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite
from actlens.rome.errors import EditError
from actlens.rome.fingerprint import digests_of
from actlens.rome.record import EditRecord
from actlens.rome.ridge import RidgeCurve
from actlens.rome.statistics import KeyStatistics
from actlens.rome.weight_edit import WeightEdit
from actlens.text import clean_text, quoted

_STATISTICS, _EDIT = "key_statistics", "edit"
_HASH = re.compile("[0-9a-f]{64}")


def save_statistics(statistics: KeyStatistics, folder: str | Path) -> Path:
    """Write `key_statistics.safetensors` and `key_statistics.json`, and give the folder."""
    tensors = {
        "moment": statistics.moment,
        "sample": statistics.sample,
        "sampled_from": statistics.sampled_from,
        "action_span": statistics.action_span,
    }
    said = {
        "block": statistics.site.block,
        "n_keys": statistics.n_keys,
        "n_frames": statistics.n_frames,
        "n_episodes": statistics.n_episodes,
        "ridges": statistics.ridge_curve.ridges,
        "drift": statistics.ridge_curve.drift,
        "upstream_sha256": statistics.upstream_sha256,
        "data_sha256": statistics.data_sha256,
        "source": statistics.source,
    }
    return _write(Path(folder), _STATISTICS, tensors, said)


def load_statistics(folder: str | Path, *, model: HookedACT | None = None) -> KeyStatistics:
    """Read what `save_statistics` wrote.

    Args:
        model: the policy they are for, so that others' are refused at once; else they are when
            they are used.

    Raises:
        CheckpointError: if the files are missing, damaged, or do not belong together.
        EditError: if they hold something else than key statistics, or of other weights.
    """
    names = ("moment", "sample", "sampled_from", "action_span")
    tensors, said = _read(Path(folder), _STATISTICS, dict.fromkeys(names, 2))
    moment, sample = tensors["moment"], tensors["sample"]
    n = len(moment)
    sizes = tensors["sampled_from"].shape[1], len(tensors["action_span"])
    if moment.shape != (n, n) or sample.shape[1] != n or sizes != (3, 2):
        raise EditError(f"{folder}: the shapes of the statistics do not fit one another.")
    with _understood(folder):
        curve = RidgeCurve(*(tuple(map(float, said[name])) for name in ("ridges", "drift")))
        statistics = KeyStatistics(
            MLPSite(clean_text(said["block"])),
            moment,
            sample,
            tensors["sampled_from"],
            tensors["action_span"],
            int(said["n_keys"]),
            int(said["n_frames"]),
            int(said["n_episodes"]),
            curve,
            _hash(said["upstream_sha256"]),
            _hash(said["data_sha256"]),
            clean_text(said["source"]),
        )
    if model is not None:
        MLPSite.of(model, statistics.site.block)
        statistics.require_fits(digests_of(model))
    return statistics


def save_edit(edit: WeightEdit, folder: str | Path) -> Path:
    """Write `edit.safetensors` and `edit.json`, and give the folder."""
    tensors = {"left": edit.left, "right": edit.right, "keys": edit.keys}
    said = {
        "block": edit.site.block,
        "weight_norm": edit.weight_norm,
        "weights_sha256": edit.weights_sha256,
        "edited_sha256": edit.edited_sha256,
        "record": edit.record.to_json(),
    }
    return _write(Path(folder), _EDIT, tensors, said)


def load_edit(folder: str | Path) -> WeightEdit:
    """Read what `save_edit` wrote. Whether it fits a policy is asked when it is applied.

    Raises:
        CheckpointError: if the files are missing, damaged, or do not belong together.
        EditError: if they hold something else than an edit.
    """
    tensors, said = _read(Path(folder), _EDIT, dict.fromkeys(("left", "right", "keys"), 2))
    left, right, keys = (tensors[name] for name in ("left", "right", "keys"))
    if left.shape[1] != len(right) or keys.shape[1] != right.shape[1]:
        raise EditError(f"{folder}: the shapes of the edit's factors do not fit one another.")
    with _understood(folder):
        return WeightEdit(
            MLPSite(clean_text(said["block"])),
            left,
            right,
            keys,
            float(said["weight_norm"]),
            _hash(said["weights_sha256"]),
            _hash(said["edited_sha256"]),
            EditRecord.from_json(said["record"]),
        )


def _write(folder: Path, name: str, tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> Path:
    """The numbers first, then the JSON that vouches for them."""
    content = save({key: tensor.cpu().contiguous() for key, tensor in tensors.items()})
    said = {"written_by": "actlens", **said, "tensors_sha256": hashlib.sha256(content).hexdigest()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.safetensors").write_bytes(content)
        (folder / f"{name}.json").write_text(
            json.dumps(said, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        )
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written ({error.strerror or error})."
        ) from error
    return folder


def _read(
    folder: Path, name: str, axes: Mapping[str, int]
) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The tensors, each with so many axes, and what the JSON says beside them."""
    path = folder / f"{name}.safetensors"
    said = read_json(folder / f"{name}.json")
    header = read_header(path)
    found = {key: len(shape) for key, shape in header.shapes.items()}
    if found != dict(axes):
        raise EditError(
            f"{path}: holds {', '.join(map(quoted, found)) or 'nothing'}; it should hold matrices "
            f"called {', '.join(axes)}."
        )
    if said.get("tensors_sha256") != sha256_of(path):
        raise CheckpointError(
            f"{path}: is not the file that {name}.json was written with; save both again."
        )
    tensors = read_tensors(header, axes)
    require_finite(path, tensors)
    return tensors, said


@contextmanager
def _understood(folder: str | Path) -> Generator[None]:
    """Turns what damaged entries raise into one error that names the folder."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EditError(
            f"{folder}: the JSON is not understood ({type(error).__name__}: {clean_text(error)})."
        ) from error


def _hash(text: object) -> str:
    if not isinstance(text, str) or not _HASH.fullmatch(text):
        raise ValueError(f"{quoted(text)} is no SHA-256")
    return text
