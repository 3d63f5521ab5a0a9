"""When in the chunk a neuron speaks: its coefficient and its effect by chunk position."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.config import ACTConfig
from actlens.keyvalue.directions import columns_of
from actlens.keyvalue.effects import Effects
from actlens.metrics import Positions, position_weights
from actlens.notebook import DrawnAsTable
from actlens.scene import Scene


def scene_weights(
    config: ACTConfig, scenes: Sequence[Scene], positions: Positions = Positions.WHOLE
) -> Float[Tensor, "scene position"]:
    """What every chunk position of every scene weighs: nothing where its demonstration had ended.

    Args:
        positions: all that the policy predicts, or what is carried out of it.
    """
    return torch.stack([position_weights(config, positions, [scene]) for scene in scenes])


@dataclass(frozen=True)
class Profiles(DrawnAsTable):
    """Means over scenes by chunk position, for every neuron of the last decoder MLP, float64.

    A direction is the same at every position there, so a neuron is a direction, who triggers it,
    and this. NaN at positions that no scene counts.
    """

    joints: tuple[str, ...]
    spread: Float[Tensor, " joint"]
    """Dataset units of one normalised unit."""
    coefficient: Float[Tensor, "neuron position"]
    """What the neuron holds."""
    effect: Float[Tensor, "neuron position joint"]
    """How the actions move if it is changed, normalised units: exact, and with its sign."""

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        effects: Effects,
        coefficients: Float[Tensor, "scene position neuron"],
        weights: Float[Tensor, "scene position"] | None = None,
    ) -> Self:
        """The profiles over some scenes; some 30 ms a scene for a thousand neurons.

        Args:
            coefficients: of the same scenes, `MLPRuns.keys`.
            weights: of scenes and positions (`scene_weights`); all alike if not given.
        """
        weights = torch.ones_like(effects.scale) if weights is None else weights.to(effects.scale)
        coefficient = torch.zeros(effects.change.shape[1:], dtype=torch.float64).to(effects.values)
        effect = torch.zeros_like(effects.exact(0))
        for scene, weight in enumerate(weights):
            coefficient += coefficients[scene].double() * weight[:, None]
            effect += effects.exact(scene) * weight[:, None]
        total = weights.sum(0)
        total = torch.where(total > 0, total, torch.nan)
        return cls(effects.joints, effects.spread, coefficient.T / total, effect / total[:, None])

    @property
    def coefficient_peak(self) -> Int[Tensor, " neuron"]:
        """The chunk position at which the mean coefficient is largest; -1 where it never fires."""
        return _peak(self.coefficient.abs())

    @property
    def effect_peak(self) -> Int[Tensor, " neuron"]:
        """The chunk position at which the mean effect is largest, by its norm in normalised units;
        -1 where there is none."""
        return _peak(self.effect.norm(dim=-1))

    @property
    def variation(self) -> Float[Tensor, " neuron"]:
        """(largest - smallest) / largest mean coefficient: 0 = the same all along the chunk, so
        that its peak means nothing; 1 = silent somewhere; NaN where it never fires."""
        size = self.coefficient.abs()
        known = size[:, size.isfinite().all(0)]
        low, high = known.aminmax(dim=1)
        return torch.where(high > 0, (high - low) / high, torch.nan)

    def frame(self):
        """One row per neuron: where it peaks, and the mean effect there by joint, dataset units."""
        import pandas as pd

        at = self.effect_peak
        rows = torch.arange(len(at), device=at.device)
        there = self.effect[rows, at.clamp_min(0)] * self.spread
        columns = {
            "coefficient_peak": self.coefficient_peak.cpu().numpy(),
            "effect_peak": at.cpu().numpy(),
            "variation": self.variation.cpu().numpy(),
        }
        return pd.DataFrame(columns | columns_of(self.joints, there)).rename_axis("neuron")


def _peak(size: Float[Tensor, "neuron position"]) -> Int[Tensor, " neuron"]:
    largest, at = size.nan_to_num(-1.0).max(1)
    return torch.where(largest > 0, at, -1)
