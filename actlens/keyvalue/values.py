"""What the values of one MLP do, in the form that its place in the network allows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.interventions.mlp_runs import MLPRuns
from actlens.keyvalue.attribution import Contributions
from actlens.keyvalue.directions import Directions, last_site
from actlens.keyvalue.effect_audit import EffectAudit, audit_effects
from actlens.keyvalue.effects import Effects
from actlens.keyvalue.motion import gripper_shift
from actlens.keyvalue.profiles import Profiles, scene_weights
from actlens.keyvalue.ranking import NeuronRanking, rank_neurons
from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite
from actlens.notebook import DrawnAsTable
from actlens.scene import Scene

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ClosedFormValues(DrawnAsTable):
    """Of the last decoder MLP: everything is exact, for all neurons."""

    contributions: Contributions
    effects: Effects
    """Of ablating each neuron."""
    profiles: Profiles
    audit: EffectAudit
    size: Float[Tensor, " neuron"]
    """Root mean square of the exact effect, normalised units."""
    adds: Float[Tensor, "neuron joint"]
    """Minus the mean effect of ablation, at the chunk position where it is largest; units."""
    shift: Float[Tensor, "neuron 3"] | None
    """What that is at the gripper in mm: x forward, y left, z up; None where the arm is not
    known."""

    @classmethod
    def of(cls, model: HookedACT, runs: MLPRuns, weights: Float[Tensor, "scene position"]) -> Self:
        """The values over some scenes."""
        effects = Effects.of(model, runs)
        profiles = Profiles.of(effects, runs.keys, weights)
        at = profiles.effect_peak.clamp_min(0)
        there = -profiles.effect[torch.arange(len(at)), at].nan_to_num(0.0)
        action = runs.actions.double().mean(0)[at]
        return cls(
            Contributions.of(model, runs),
            effects,
            profiles,
            audit_effects(effects, weights),
            effects.size(weights),
            there * profiles.spread,
            gripper_shift(model, action, there),
        )

    @property
    def directions(self) -> Directions:
        """The scale-free directions."""
        return self.contributions.directions

    def frame(self) -> "pd.DataFrame":
        """One row per neuron."""
        import pandas as pd

        joints = self.profiles.joints
        columns = {
            "effect_rms": self.size.cpu().numpy(),
            "peak_position": self.profiles.effect_peak.cpu().numpy(),
            "variation_over_chunk": self.profiles.variation.cpu().numpy(),
        }
        for joint, adds, towards in zip(
            joints, self.adds.T, self.directions.in_units.T, strict=True
        ):
            columns[f"adds {joint}"] = adds.cpu().numpy()
            columns[f"direction {joint}"] = towards.cpu().numpy()
        if self.shift is not None:
            for axis, values in zip("xyz", self.shift.T, strict=True):
                columns[f"gripper_{axis}_mm"] = values.cpu().numpy()
        return pd.DataFrame(columns).rename_axis("neuron")


@dataclass(frozen=True)
class RankedValues(DrawnAsTable):
    """Of any other MLP: attention lies behind it, so effects are asked scene by scene."""

    ranking: NeuronRanking

    @property
    def size(self) -> Float[Tensor, " neuron"]:
        """Root mean square of the first-order effect, normalised units."""
        return self.ranking.size

    @property
    def adds(self) -> Float[Tensor, "neuron joint"]:
        """Minus the mean first-order effect of ablating it at all tokens, units."""
        return -self.ranking.effect.mean(0) * self.ranking.spread

    def frame(self) -> "pd.DataFrame":
        """One row per neuron."""
        import pandas as pd

        named = zip(self.ranking.joints, self.adds.T, strict=True)
        columns = {"effect_rms": self.size.cpu().numpy()}
        columns |= {f"adds {joint}": values.cpu().numpy() for joint, values in named}
        return pd.DataFrame(columns).rename_axis("neuron")


Values = ClosedFormValues | RankedValues


def read_values(model: HookedACT, block: str, scenes: Sequence[Scene]) -> tuple[MLPRuns, Values]:
    """Run some scenes and ask what each neuron of a block does there.

    Args:
        block: `decoder.0`, `encoder.2`, ….
        scenes: of as many episodes as can be; positions behind an episode's end do not count.

    Raises:
        HookNameError: if the policy has no such block.
        SceneError: if there is no scene, or one does not fit the policy.
    """
    site = MLPSite.of(model, block)
    runs = MLPRuns.of(model, site, scenes)
    weights = scene_weights(model.config, scenes)
    if site == last_site(model):
        return runs, ClosedFormValues.of(model, runs, weights)
    return runs, RankedValues(rank_neurons(model, runs, weights))


def strongest(values: Values, n: int) -> Int[Tensor, " n"]:
    """The neurons with the largest effects, largest first."""
    return values.size.topk(min(n, len(values.size))).indices


def aligned(
    values: ClosedFormValues, towards: Float[Tensor, " joint"], n: int, *, min_cosine: float = 0.7
) -> Int[Tensor, " neuron"]:
    """The neurons with the largest effects among those whose values point one way.

    Args:
        towards: a direction in joint space, normalised units.
        n: at most so many, largest effect first.
        min_cosine: of a scale-free direction with `towards`; six joints leave much room for
            cosines by chance.
    """
    cosine = torch.cosine_similarity(values.directions.normalized, towards.double()[None])
    size = torch.where(cosine >= min_cosine, values.size.to(cosine), 0.0)
    best = size.topk(min(n, len(size))).indices
    return best[size[best] > 0]
