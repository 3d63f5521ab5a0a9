"""Which sites are patched exactly, and doing so."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from actlens.attribution.cuts import Cut
from actlens.attribution.options import AttributionOptions
from actlens.interventions import FromScene, Intervention, SceneRun, run
from actlens.metrics import Weights, project
from actlens.model.act import HookedACT


@dataclass(frozen=True)
class Sample:
    """The audited sites, the same for every pair, cut after cut."""

    sites: Int[np.ndarray, " audited"]
    """Numbers among the sites of all cuts."""
    is_top: Bool[np.ndarray, " audited"]
    """Whether for its estimate, not at random."""


def draw_sample(
    cuts: Sequence[Cut], strength: Float[np.ndarray, " site"], n: int, *, seed: int = 0
) -> Sample:
    """Of every cut the n sites of the largest strength, and n others at random."""
    generator = np.random.default_rng(seed)
    sites, is_top, start = [], [], 0
    for cut in cuts:
        order = start + np.argsort(-strength[start : start + len(cut)], kind="stable")
        top, others = order[:n], order[n:]
        drawn = generator.permutation(others)[:n]
        sites += [top, drawn]
        is_top += [np.ones(len(top), dtype=bool), np.zeros(len(drawn), dtype=bool)]
        start += len(cut)
    return Sample(np.concatenate(sites), np.concatenate(is_top))


def exact_effects(
    model: HookedACT,
    base: SceneRun,
    donor: SceneRun,
    cuts: Sequence[Cut],
    sample: Sample,
    *,
    weights: Weights,
    options: AttributionOptions,
    advance: Callable[[int], None] = lambda n: None,
) -> Float[np.ndarray, " audited"]:
    """How far patching each audited site by itself moves the actions towards the donor's.

    In the unit of `actlens.metrics.Projection.along`.
    """
    starts = np.cumsum([0, *map(len, cuts)])
    of_cut = np.searchsorted(starts, sample.sites, side="right") - 1
    patches = [
        Intervention.at(cuts[i].site(int(site - starts[i])), FromScene("donor"))
        for i, site in zip(of_cut, sample.sites, strict=True)
    ]
    donors: Mapping[str, SceneRun] = {"donor": donor}
    effects = run(
        model, base, patches, donors, memory_budget=options.memory_budget, advance=advance
    )
    along = project(effects.actions, base.actions, donor.actions, weights=weights).along
    # Where the two scenes agree nothing is done; what moves is the rounding of another batch.
    return np.where(effects.site_change == 0, 0.0, along.numpy(force=True))
