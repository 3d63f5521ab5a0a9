"""How well two ways of reading a value predict what changing its neuron does."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.keyvalue.effects import Effects
from actlens.notebook import DrawnAsTable


@dataclass(frozen=True)
class Miss:
    """How far predicted effects are from exact ones: |predicted - exact| / |exact| by neuron."""

    by_neuron: Float[Tensor, " neuron"]

    @property
    def median(self) -> float:
        """Over neurons."""
        return float(self.by_neuron.quantile(0.5))

    @property
    def worst(self) -> float:
        """Over neurons."""
        return float(self.by_neuron.max())


@dataclass(frozen=True)
class EffectAudit(DrawnAsTable):
    """How well two readings of a value predict what changing the neuron does."""

    neurons: Int[Tensor, " neuron"]
    """Those with the largest exact effects, strongest first."""
    n_scenes: int
    size: Float[Tensor, " neuron"]
    """Root mean square of the exact effect, normalised units."""
    linear: Miss
    """Through the whole Jacobian of the norms."""
    frozen: Miss
    """With the norms' scales frozen: the contributions taken for effects."""

    def frame(self):
        """One row per reading: median and worst miss, as shares of the effect."""
        import pandas as pd

        readings = {"whole Jacobian": self.linear, "frozen scales": self.frozen}
        rows = [{"reading": k, "median": v.median, "worst": v.worst} for k, v in readings.items()]
        return pd.DataFrame(rows)


def audit_effects(
    effects: Effects,
    weights: Float[Tensor, "scene position"] | None = None,
    *,
    n_neurons: int = 40,
) -> EffectAudit:
    """Hold both readings against exact single-neuron changes, over scenes, positions and joints.

    Args:
        weights: of scenes and positions; all alike if not given.
        n_neurons: so many of the neurons with the largest exact effects.
    """
    weights = torch.ones_like(effects.scale) if weights is None else weights.to(effects.scale)
    squares = torch.zeros(3, len(effects.values)).to(effects.values)
    for scene, weight in enumerate(weights):
        exact = effects.exact(scene)
        off = (exact, effects.linear(scene) - exact, effects.frozen(scene) - exact)
        squares += torch.stack([one.square().sum(-1) @ weight for one in off])
    exact, linear, frozen = squares.sqrt()
    top = exact.topk(min(n_neurons, int((exact > 0).sum()))).indices
    n_summed = weights.sum() * len(effects.joints)
    return EffectAudit(
        top,
        effects.n_scenes,
        exact[top] / n_summed.sqrt(),
        Miss(linear[top] / exact[top]),
        Miss(frozen[top] / exact[top]),
    )
