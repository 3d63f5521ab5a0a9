"""All estimates of one pair of scenes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float

from actlens.attribution.cost import cost_in_forwards
from actlens.attribution.cuts import START, Cut
from actlens.attribution.estimates import attribute, estimates, names_needed
from actlens.attribution.linearise import Linearised, Scalar, linearise
from actlens.attribution.options import AttributionOptions, Gradient
from actlens.config import ACTION_KEY
from actlens.interventions import SceneRun, run_scene
from actlens.metrics import Direction, Weights, position_weights, project, rms
from actlens.model.act import HookedACT
from actlens.scene import ScenePair

_OTHER = {Direction.DENOISE: Direction.NOISE, Direction.NOISE: Direction.DENOISE}


@dataclass(frozen=True)
class Ends:
    """A pair's two runs: the one that is patched and its donor, by direction."""

    base: dict[Direction, SceneRun]
    weights: Weights
    """Of the chunk positions."""
    effect: float
    """Root mean square difference of the two actions, in dataset units."""

    @classmethod
    def of(cls, model: HookedACT, pair: ScenePair, options: AttributionOptions) -> Self:
        """Run both scenes."""
        clean, corrupt = (run_scene(model, scene) for scene in (pair.clean, pair.corrupt))
        weights = position_weights(model.config, options.positions, (pair.clean, pair.corrupt))
        weights = weights.to(clean.actions.device)
        first, second = (
            model.normalizer.unnormalize(ACTION_KEY, run.actions) for run in (clean, corrupt)
        )
        effect = float(rms(first - second, weights=weights))
        return cls({Direction.DENOISE: corrupt, Direction.NOISE: clean}, weights, effect)

    def donor(self, way: Direction) -> SceneRun:
        """The other run."""
        return self.base[_OTHER[way]]

    def restored(self, way: Direction) -> Scalar:
        """How far actions have come from the base run's to the donor's: what is explained."""
        start, target = self.base[way].actions, self.donor(way).actions
        return lambda actions: project(actions, start, target, weights=self.weights).along


@dataclass(frozen=True)
class PairEstimates:
    """Estimates of every site by direction, in the unit of `actlens.metrics.Projection.along`."""

    plain: dict[Direction, Float[np.ndarray, " site"]]
    """With the gradient at the run that is patched."""
    chosen: dict[Direction, Float[np.ndarray, " site"]]
    """As the options ask for."""
    total: float
    """What there is to restore."""
    effect: float
    """Root mean square difference of the two scenes' actions, in dataset units."""


def estimate_pair(
    model: HookedACT, ends: Ends, cuts: Sequence[Cut], options: AttributionOptions
) -> PairEstimates:
    """Both directions from a forward and a backward at each of the two scenes.

    Each run is the other's donor. Noising is denoising with both differences, of activations and of
    actions, turned round: what is linear in them needs no gradients of its own.
    """
    names = names_needed(cuts, qk_fix=options.qk_fix)
    at = {way: linearise(model, ends.base[way], names, ends.restored(way)) for way in Direction}

    def of(way: Direction, there: Linearised) -> Float[np.ndarray, " site"]:
        run, donor = at[way].activations, at[_OTHER[way]].activations
        found = estimates(model, cuts, run, donor, there.gradients, qk_fix=options.qk_fix)
        return found.numpy(force=True)

    plain = {way: of(way, at[way]) for way in Direction}
    chosen = plain
    if options.gradient is Gradient.SYMMETRISED:
        chosen = dict.fromkeys(Direction, (plain[Direction.DENOISE] + plain[Direction.NOISE]) / 2)
    elif options.gradient is Gradient.INTEGRATED:
        way = Direction.DENOISE
        start, stop = ends.base[way][START], ends.donor(way)[START]
        steps = []
        for i in range(options.points):
            tokens = torch.lerp(start, stop, (i + 0.5) / options.points)
            there = linearise(model, ends.base[way], names, ends.restored(way), tokens=tokens)
            steps.append((of(way, there), -of(_OTHER[way], there)))
        chosen = dict(zip((way, _OTHER[way]), np.mean(steps, 0), strict=True))
    total = float(ends.restored(Direction.DENOISE)(ends.donor(Direction.DENOISE).actions))
    return PairEstimates(plain, chosen, total, ends.effect)


def cost_of_one_gradient(
    model: HookedACT, ends: Ends, cuts: Sequence[Cut], options: AttributionOptions
) -> float:
    """Of all estimates of one direction with one gradient, in forwards of the transformer."""
    way = Direction.DENOISE
    base, donor, scalar = ends.base[way], ends.donor(way), ends.restored(way)
    work = lambda: attribute(model, base, donor, cuts, scalar, qk_fix=options.qk_fix)
    return cost_in_forwards(model, base, work)
