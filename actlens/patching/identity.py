"""Which policy and which code a patched number comes from, as hashes."""

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from actlens.model.act import HookedACT
from actlens.shards import source_hash, to_tree
from actlens.shards.keys import canonical

_NO_PART_IN_PATCHING = (
    "__main__", "attribution", "doctor", "interop", "keyvalue", "provenance", "report", "rome",
    "sim", "store", "train",
)  # fmt: skip
"""Modules of actlens on which no patched number depends."""


def model_hash(model: HookedACT) -> str:
    """The SHA-256 of a policy: architecture, weights and normalisation as they are in memory."""
    normalizer = model.normalizer
    origin = "" if model.checkpoint is None else model.checkpoint.source
    description = {
        "config": to_tree(model.config),
        "normalization": [list(normalizer.features), to_tree(normalizer.modes)],
        "offsets": to_tree(normalizer.offsets),
        # Where a policy comes from can tell the arm it moves; where it lies on a disk cannot.
        "origin": origin if origin.startswith(("bundled:", "hub:")) else "",
    }
    digest = hashlib.sha256(canonical(description).encode())
    tensors = model.state_dict() | dict(model.named_buffers())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@cache
def code_version() -> Mapping[str, str]:
    """What computes: actlens, its source when this process first asked, and torch."""
    return {
        "actlens": version("hooked-act"),
        "source": source_hash(Path(__file__).parents[1], without=_NO_PART_IN_PATCHING),
        "torch": torch.__version__,
    }
