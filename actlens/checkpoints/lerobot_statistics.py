"""Statistics of LeRobot's features as maps between dataset units and normalised ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from actlens.checkpoints.lerobot_features import Feature, FeatureKind
from actlens.errors import CheckpointError
from actlens.normalization import NEEDED_STATISTICS, Affine, NormalizationMode

Statistics = Mapping[str, Mapping[str, Tensor]]
"""By feature key and by name: `mean`, `std`, `min`, …"""


@dataclass(frozen=True)
class LeRobotNormalization:
    """How a checkpoint normalises: the maps, and everything needed to write them back."""

    affines: Mapping[str, Affine]
    statistics: Statistics
    eps: float
    renames: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def to_affine(
    feature: Feature,
    mode: NormalizationMode,
    statistics: Mapping[str, Tensor],
    *,
    eps: float,
    what: str,
    eps_in_every_range: bool = False,
) -> Affine:
    """The map of one feature; statistics of shape `(3,)` for images are read as `(3, 1, 1)`.

    Args:
        feature: what `config.json` declares.
        mode: how it is normalised, which is not always what `config.json` says.
        statistics: of this feature, by name.
        eps: LeRobot's epsilon.
        what: names file and feature in the error.
        eps_in_every_range: as LeRobot did up to 0.3.3; see `Affine.from_stats`.

    Raises:
        CheckpointError: if a statistic the mode needs is missing, of another shape, or useless.
    """
    wanted = feature.statistics_shape
    shaped = {}
    for name, tensor in statistics.items():
        if feature.kind is FeatureKind.VISUAL and tuple(tensor.shape) == wanted[:1]:
            tensor = tensor.reshape(wanted)
        if name in NEEDED_STATISTICS[mode] and tuple(tensor.shape) != wanted:
            raise CheckpointError(
                f"{what}: {name} must have shape {wanted}, found {tuple(tensor.shape)}."
            )
        shaped[name] = tensor
    return Affine.from_stats(
        mode, shaped, eps=eps, what=what, eps_in_every_range=eps_in_every_range
    )
