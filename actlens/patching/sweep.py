"""Every part of one scene patched into another, one at a time, by the intervention engine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float

from actlens.config import ACTION_KEY
from actlens.interventions import Audit, FromScene, Intervention, SceneRun, run, run_within
from actlens.interventions.budget import LARGEST_TOLERANCE
from actlens.interventions.engine import DEFAULT_BUDGET
from actlens.metrics import project, rms
from actlens.model.act import HookedACT
from actlens.patching.parts import Part


class Direction(StrEnum):
    """What is run and what is put in; the two answer different questions, so both are reported."""

    DENOISE = "denoise"
    """Run the corrupt scene, put the clean activation in: is the part sufficient?"""
    NOISE = "noise"
    """Run the clean scene, put the corrupt activation in: is the part necessary?"""


@dataclass(frozen=True)
class SweepOptions:
    """How the sweep is run."""

    memory_budget: int = DEFAULT_BUDGET
    """Bytes that the temporaries of patches that share a forward may take."""
    image_tolerance: int = 24
    """Largest channel difference (of 255) at which two pixels still count as the same."""
    min_effect: float = 1.0
    """Pairs whose actions differ by less (root mean square, dataset units) are left out."""
    max_error: float = 0.0
    """Allowed error of a patched chunk, as a share of the base run's norm; 0 is exact. Each sweep
    is audited on exact patches (`actlens.interventions.run_within`)."""
    n_audit: int = 12
    """Patches of each sweep that are made again exactly, where an error is allowed."""


@dataclass(frozen=True)
class PairSweep:
    """Every part patched in one direction between one pair; arrays follow `parts_of(model)`.

    `along`, `moved` and `total` are the parts of the restored share (`actlens.metrics.Projection`);
    `site_change` and `output_change` are the receipts: the largest absolute change at the site and
    of the normalised actions. A part that a pair does not have (no differing cells) is NaN.
    """

    along: Float[np.ndarray, " part"]
    moved: Float[np.ndarray, " part"]
    site_change: Float[np.ndarray, " part"]
    output_change: Float[np.ndarray, " part"]
    total: float
    effect: float
    """Root mean square difference of the two scenes' actions, in dataset units."""
    audit: Audit | None = None
    """What the sweep was held against; None if it is exact."""


def sweep_pair(
    model: HookedACT,
    base: SceneRun,
    donor: SceneRun,
    target: SceneRun,
    *,
    groups: Mapping[str, tuple[int, ...]],
    parts: Sequence[Part],
    options: SweepOptions,
    tolerance: float = LARGEST_TOLERANCE,
    seed: int = 0,
    advance: Callable[[int], None] = lambda n: None,
) -> PairSweep:
    """Patch every part of `donor` into `base`, and project on the difference `base -> target`.

    For denoising base is the corrupt scene's run and donor = target the clean one's. For the null
    the donor is another scene's than the target.

    Args:
        groups: token indices by group name, for parts with a group.
        tolerance: to begin with, where an error is allowed.
        seed: of the audit's random half.
        advance: told how many patches were done, for progress bars.
    """
    sites = [(i, part.site(groups)) for i, part in enumerate(parts)]
    present = [i for i, site in sites if site is not None]
    patches = [Intervention.at(site, FromScene("donor")) for _, site in sites if site is not None]
    advance(len(parts) - len(present))
    donors = {"donor": donor}
    facts = {"memory_budget": options.memory_budget, "advance": advance}
    audit = None
    if options.max_error:
        effects, audit = run_within(
            model, base, patches, donors,
            max_error=options.max_error, n_audit=options.n_audit,
            tolerance=tolerance, seed=seed, **facts,
        )  # fmt: skip
    else:
        effects = run(model, base, patches, donors, **facts)
    shares = project(effects.actions, base.actions, target.actions)

    def spread(values: np.ndarray) -> np.ndarray:
        everywhere = np.full(len(parts), np.nan)
        everywhere[present] = values
        return everywhere

    return PairSweep(
        along=spread(shares.along.numpy(force=True)),
        moved=spread(shares.moved.numpy(force=True)),
        site_change=spread(effects.site_change),
        output_change=spread(effects.output_change),
        total=float(project(target.actions, base.actions, target.actions).total),
        effect=action_difference(model, target, base),
        audit=audit,
    )


def action_difference(model: HookedACT, one: SceneRun, other: SceneRun) -> float:
    """Root mean square difference of two scenes' action chunks, in dataset units."""
    first, second = (model.normalizer.unnormalize(ACTION_KEY, run.actions) for run in (one, other))
    return float(rms(first - second))
