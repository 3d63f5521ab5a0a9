"""LeRobot's normalisation up to 0.3.3: statistics among the weights."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from actlens.checkpoints.lerobot_features import Feature
from actlens.checkpoints.lerobot_statistics import LeRobotNormalization, to_affine
from actlens.errors import CheckpointError
from actlens.normalization import NormalizationMode
from actlens.text import listed, quoted

_PREFIXES = (
    "normalize_inputs.buffer_",
    "normalize_targets.buffer_",
    "unnormalize_outputs.buffer_",
)
# A constant in the code of those releases.
_EPS = 1e-8


def is_buffer(name: str) -> bool:
    """Whether a tensor of the weights file is a statistic of LeRobot up to 0.3.3."""
    return name.startswith(_PREFIXES)


def read_buffers(
    path: Path, features: tuple[Feature, ...], buffers: Mapping[str, Tensor]
) -> LeRobotNormalization:
    """The normalisation of LeRobot up to 0.3.3, whose statistics are among the weights.

    Their names spell the features with `_` for `.`; each is matched against the declared features,
    never turned back, because `side_cam` and `side.cam` are spelt alike.

    Args:
        path: the weights file, for messages.
        features: what `config.json` declares.
        buffers: the tensors that `is_buffer` accepts, by their names in the file.

    Raises:
        CheckpointError: if a statistic belongs to no declared feature, or a feature lacks one.
    """
    owners = {feature.key.replace(".", "_"): feature.key for feature in features}
    statistics: dict[str, dict[str, Tensor]] = {}
    problems = []
    for name, tensor in buffers.items():
        prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
        spelt, _, statistic = name.removeprefix(prefix).rpartition(".")
        if spelt not in owners:
            problems.append(
                f"{path}: {quoted(name)} is a statistic of no declared feature; config.json "
                f"declares {listed(owners.values())}."
            )
            continue
        known = statistics.setdefault(owners[spelt], {})
        if statistic in known and not torch.equal(known[statistic], tensor):
            problems.append(
                f"{path}: {quoted(name)} differs from the same statistic of another step; actions "
                "would be undone with other statistics than they were trained with."
            )
        known[statistic] = tensor
    affines = {}
    for feature in features:
        what = f"{path}: {quoted(feature.key)}"
        try:
            affines[feature.key] = to_affine(
                feature,
                feature.mode,
                statistics.get(feature.key, {}),
                eps=_EPS,
                what=what,
                eps_in_every_range=True,
            )
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("\n".join(problems))
    notes = ()
    if any(affine.mode is NormalizationMode.MIN_MAX for affine in affines.values()):
        notes = (
            "LeRobot up to 0.3.3 adds 1e-8 to every MIN_MAX range and later releases do not: a "
            "copy saved for them normalises a range of width w by 1e-8 / w differently.",
        )
    return LeRobotNormalization(affines, statistics, _EPS, notes=notes)
