"""From dataset units to the network's normalised units and back, as the checkpoint was trained."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from actlens.errors import CheckpointError


class NormalizationMode(StrEnum):
    """How LeRobot normalises one kind of feature. Values are LeRobot's own names."""

    IDENTITY = "IDENTITY"
    MEAN_STD = "MEAN_STD"
    MIN_MAX = "MIN_MAX"
    QUANTILES = "QUANTILES"
    QUANTILE10 = "QUANTILE10"


NEEDED_STATISTICS: Mapping[NormalizationMode, tuple[str, ...]] = {
    NormalizationMode.IDENTITY: (),
    NormalizationMode.MEAN_STD: ("mean", "std"),
    NormalizationMode.MIN_MAX: ("min", "max"),
    NormalizationMode.QUANTILES: ("q01", "q99"),
    NormalizationMode.QUANTILE10: ("q10", "q90"),
}
"""What each mode computes with, by LeRobot's names."""


@dataclass(frozen=True)
class Affine:
    """`normalised = (x - shift) / scale + offset`, `x = (normalised - offset) * unscale + shift`.

    Every mode of LeRobot's is of this form, and in this order of operations its results are
    LeRobot's bit for bit. `scale` and `unscale` differ by LeRobot's epsilon, which it adds on the
    way in and not on the way out. Shapes broadcast against the feature: `(dim,)` for vectors,
    `(3, 1, 1)` for images.
    """

    mode: NormalizationMode
    shift: Float[Tensor, "..."]
    scale: Float[Tensor, "..."]
    unscale: Float[Tensor, "..."]
    offset: float = 0.0
    """-1 for the modes that map a range to [-1, 1]. Folded into `shift`, it would be lost to
    rounding where a range is zero: LeRobot maps such a constant to -1."""

    @classmethod
    def from_stats(
        cls,
        mode: NormalizationMode,
        stats: Mapping[str, Tensor],
        *,
        eps: float,
        what: str,
        eps_in_every_range: bool = False,
    ) -> "Affine":
        """Build the map from LeRobot's statistics of one feature.

        Args:
            mode: the feature's normalisation mode.
            stats: `mean` and `std`, or `min` and `max`, or the quantiles the mode needs.
            eps: added to (mean/std) or replacing zero ranges of (min/max) the scale.
            what: names file and feature in the error.
            eps_in_every_range: add `eps` to every min/max range on the way in, as LeRobot did up to
                0.3.3.

        Raises:
            CheckpointError: if a statistic that the mode needs is missing, not finite, the wrong
                way round (min above max) or such that it would divide by zero.
        """
        needed = NEEDED_STATISTICS[mode]
        if missing := [name for name in needed if name not in stats]:
            raise CheckpointError(
                f"{what}: {mode} needs {' and '.join(needed)}, but {', '.join(missing)} is "
                f"missing; found {sorted(stats) or 'nothing'}."
            )
        for name in needed:
            if not torch.isfinite(stats[name]).all():
                raise CheckpointError(
                    f"{what}: {name} is not finite, so the statistics were never filled in; "
                    "recompute them from the training dataset."
                )
        if mode is NormalizationMode.IDENTITY:
            zero, one = torch.zeros(()), torch.ones(())
            return cls(mode, zero, one, one)
        low, high = (stats[name].float() for name in needed)
        if mode is NormalizationMode.MEAN_STD:
            if (high < 0).any() or (high + eps <= 0).any():
                raise CheckpointError(f"{what}: std {high.min():g} cannot be divided by.")
            return cls(mode, low, high + eps, high)
        if (low > high).any():
            raise CheckpointError(f"{what}: {' lies above '.join(needed)}: are they swapped?")
        width = high - low
        positive = torch.where(width == 0, torch.full_like(width, eps), width)
        scale, unscale = (width + eps, width) if eps_in_every_range else (positive, positive)
        if (scale <= 0).any():
            raise CheckpointError(
                f"{what}: {' equals '.join(needed)} and eps is {eps:g}: cannot be divided by."
            )
        return cls(mode, low, scale / 2, unscale / 2, offset=-1.0)


_TOO_COARSE = (torch.float16, torch.bfloat16)


class Normalizer(nn.Module):
    """The affine maps of every feature, moving with the model over devices and dtypes.

    The statistics are buffers outside the state dict: they belong to the checkpoint, not to the
    network's weights. They stay in float32 under a network of 16 bits, in which 71 degrees would be
    a quarter of a degree off.
    """

    def __init__(self, affines: Mapping[str, Affine]):
        super().__init__()
        self.features = tuple(affines)
        self.modes = {key: affine.mode for key, affine in affines.items()}
        self.offsets = {key: affine.offset for key, affine in affines.items()}
        for i, affine in enumerate(affines.values()):
            for part in ("shift", "scale", "unscale"):
                self.register_buffer(f"{part}_{i}", getattr(affine, part).clone(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002  torch's own signature
        def keep(statistic: Tensor) -> Tensor:
            moved = fn(statistic)
            return statistic.to(moved.device) if moved.dtype in _TOO_COARSE else moved

        return super()._apply(keep, recurse)

    def _part(self, part: str, key: str) -> Tensor:
        return self.get_buffer(f"{part}_{self.features.index(key)}")

    def normalize(self, key: str, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Dataset units -> normalised units, in the dtype of `x`.

        Features without statistics pass unchanged.
        """
        if key not in self.features or self.modes[key] is NormalizationMode.IDENTITY:
            return x
        normalized = (x - self._part("shift", key)) / self._part("scale", key) + self.offsets[key]
        return normalized.to(x.dtype)

    def unnormalize(self, key: str, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Normalised units -> dataset units, in float32 at least.

        Features without statistics pass unchanged.
        """
        if key not in self.features or self.modes[key] is NormalizationMode.IDENTITY:
            return x
        return (x - self.offsets[key]) * self._part("unscale", key) + self._part("shift", key)
