"""What a checkpoint holds, whatever files it came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from actlens.config import ACTConfig
from actlens.normalization import Affine


@dataclass(frozen=True)
class Checkpoint:
    """A policy as (architecture, weights, normalisation), read from files and nothing executed.

    `weights` has LeRobot's parameter names without the leading `model.`; every tensor keeps the
    dtype of the file. `raw_config` is the `config.json` as it was read, so that a saved copy keeps
    fields actlens does not interpret (training presets, hub tags).
    """

    config: ACTConfig
    weights: Mapping[str, Tensor]
    normalization: Mapping[str, Affine]
    """By feature key: every camera key, `observation.state`, `action`, …"""
    statistics: Mapping[str, Mapping[str, Tensor]]
    """The raw statistics by feature key (`mean`, `std`, `min`, …), written back on saving."""
    eps: float = 1e-8
    renames: Mapping[str, str] = field(default_factory=dict)
    """Robot's or dataset's observation keys -> the policy's keys (LeRobot's rename step)."""
    raw_config: Mapping[str, Any] = field(default_factory=dict)
    dead_weights: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors of the file that inference never reads (the original ACT's decoder layers 1…6)."""
    source: str = ""
    """Where it was read from, for messages and provenance."""
    sha256: str = ""
    """Of the weights file."""
    notes: tuple[str, ...] = ()
    """What the reader had to assume or mend, in plain words, for `doctor` and reports."""
