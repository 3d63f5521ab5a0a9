"""Every part of one scene patched into another, one at a time, by the intervention engine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from actlens.config import ACTION_KEY
from actlens.errors import InterventionError
from actlens.interventions import (
    Audit,
    FromScene,
    Intervention,
    Precision,
    SceneRun,
    run,
    run_within,
)
from actlens.interventions.budget import LARGEST_TOLERANCE
from actlens.interventions.memory import DEFAULT_BUDGET
from actlens.kinematics import Arm, known_arm
from actlens.metrics import (
    Along,
    Positions,
    Projection,
    Weights,
    change,
    position_weights,
    project,
    rms,
)
from actlens.model.act import HookedACT
from actlens.patching.parts import Part
from actlens.scene import Scene


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
    precision: Precision = Precision.FULL
    """Of the large products of patched activations."""
    positions: Positions = Positions.WHOLE
    """Which positions of the action chunk are measured."""
    by_position: bool = True
    """Keep what every part did at every chunk position: `8 * parts * chunk` bytes a sweep. Turn it
    off for thousands of pairs."""

    def __post_init__(self) -> None:
        if self.precision is not Precision.FULL and not self.max_error:
            raise InterventionError(
                "Half precision is not exact: allow an error (max_error, such as 0.002), against "
                "which every sweep is audited."
            )


@dataclass(frozen=True)
class PairSweep:
    """Every part patched in one direction between one pair; arrays follow `parts_of(model)`.

    Everything is a sum over the measured chunk positions, each times its weight, so that pairs are
    pooled as ratios of sums. `along`, `moved` and `total` are the parts of the restored share
    (`actlens.metrics.Projection`, normalised units); `site_change` and `output_change` are the
    receipts: the largest absolute change at the site and of the normalised actions. A part that a
    pair does not have (no differing cells) is NaN.
    """

    along: Float[np.ndarray, " part"]
    moved: Float[np.ndarray, " part"]
    site_change: Float[np.ndarray, " part"]
    output_change: Float[np.ndarray, " part"]
    total: float
    effect: float
    """Root mean square difference of the two scenes' actions, in dataset units."""
    weights: Float[np.ndarray, " chunk"]
    """Of the chunk positions; 0 where not measured."""

    joint_along: Float32[np.ndarray, "part joint"]
    """`along` by joint; adds up to it."""
    joint_total: Float[np.ndarray, " joint"]
    joint_size: Float32[np.ndarray, "part joint"]
    """Absolute changes in dataset units."""
    joint_signed: Float32[np.ndarray, "part joint"]
    """Changes in dataset units; those of opposite sign cancel."""
    joint_difference: Float[np.ndarray, " joint"]
    """Absolute differences of the two scenes' actions, in dataset units."""

    position_total: Float[np.ndarray, " chunk"]
    position_difference: Float[np.ndarray, " chunk"]
    """Absolute differences in dataset units, averaged over joints."""
    position_along: Float32[np.ndarray, "part chunk"] | None = None
    """`along` by chunk position; adds up to it."""
    position_size: Float32[np.ndarray, "part chunk"] | None = None
    """Absolute changes in dataset units, averaged over joints."""

    gripper_along: Float[np.ndarray, " part"] | None = None
    """<tip_x - tip_base, tip_target - tip_base> in square millimetres; None if the arm's kinematics
    are unknown, as all of the gripper's."""
    gripper_total: float | None = None
    gripper_end: Float32[np.ndarray, " part"] | None = None
    """Millimetres between the gripper's tip and the base run's at the last executed position."""
    gripper_largest: Float32[np.ndarray, " part"] | None = None
    """The largest such distance at any measured position."""
    gripper_end_difference: float | None = None
    """Millimetres between the two scenes' own tips at the last executed position."""
    gripper_largest_difference: float | None = None
    audit: Audit | None = None
    """What the sweep was held against; None if it is exact."""

    @property
    def projection(self) -> Projection:
        """Shares, off-axis movement, cosine and distance of every part."""
        along, moved = torch.from_numpy(self.along), torch.from_numpy(self.moved)
        return Projection(along, torch.full_like(along, self.total), moved)


def sweep_pair(
    model: HookedACT,
    base: SceneRun,
    donor: SceneRun,
    target: SceneRun,
    *,
    groups: Mapping[str, tuple[int, ...]],
    parts: Sequence[Part],
    options: SweepOptions,
    scenes: Sequence[Scene] = (),
    arm: Arm | None = None,
    tolerance: float = LARGEST_TOLERANCE,
    seed: int = 0,
    advance: Callable[[int], None] = lambda n: None,
) -> PairSweep:
    """Patch every part of `donor` into `base`, and project on the difference `base -> target`.

    For denoising base is the corrupt scene's run and donor = target the clean one's. For the null
    the donor is another scene's than the target.

    Args:
        groups: token indices by group name, for parts with a group.
        scenes: the pair's; positions after the end of their demonstrations are not measured.
        arm: whose gripper the actions move; recognised where the policy says it, if not given.
        tolerance: to begin with, where an error is allowed.
        seed: of the audit's random half.
        advance: told how many patches were done, for progress bars.
    """
    sites = [(i, part.site(groups)) for i, part in enumerate(parts)]
    present = [i for i, site in sites if site is not None]
    patches = [Intervention.at(site, FromScene("donor")) for _, site in sites if site is not None]
    advance(len(parts) - len(present))
    donors = {"donor": donor}
    facts = {
        "memory_budget": options.memory_budget,
        "precision": options.precision,
        "advance": advance,
    }
    audit = None
    if options.max_error:
        effects, audit = run_within(
            model, base, patches, donors,
            max_error=options.max_error, n_audit=options.n_audit,
            tolerance=tolerance, seed=seed, **facts,
        )  # fmt: skip
    else:
        effects = run(model, base, patches, donors, **facts)

    def spread(values: Tensor) -> Tensor:
        everywhere = values.new_full((len(parts), *values.shape[1:]), torch.nan)
        everywhere[present] = values
        return everywhere

    # The target goes first, as if it were a part's: what is measured of it is what there is to do.
    moved = torch.cat([target.actions[None], spread(effects.actions)])
    weights = position_weights(model.config, options.positions, scenes).to(moved.device)
    by = lambda axis: project(moved, base.actions, target.actions, weights=weights, along=axis)
    whole, joint, position = by(None), by(Along.JOINT), by(Along.POSITION)
    in_units = partial(model.normalizer.unnormalize, ACTION_KEY)
    changed = change(in_units(moved), in_units(base.actions), weights=weights)
    return PairSweep(
        along=_array(whole.along[1:]),
        moved=_array(whole.moved[1:]),
        site_change=_array(spread(torch.from_numpy(effects.site_change))),
        output_change=_array(spread(torch.from_numpy(effects.output_change))),
        total=float(whole.along[0]),
        effect=action_difference(model, target, base, options=options, scenes=scenes),
        weights=_array(weights),
        joint_along=_array(joint.along[1:].float()),
        joint_total=_array(joint.along[0]),
        joint_size=_array(changed.size[1:].float()),
        joint_signed=_array(changed.signed[1:].float()),
        joint_difference=_array(changed.size[0]),
        position_total=_array(position.along[0]),
        position_difference=_array(changed.by_position[0]),
        position_along=_array(position.along[1:].float()) if options.by_position else None,
        position_size=_array(changed.by_position[1:].float()) if options.by_position else None,
        audit=audit,
        **_gripper(model, in_units(moved), in_units(base.actions), weights, scenes, arm),
    )


def _array(values: Tensor) -> np.ndarray:
    return values.numpy(force=True)


def _gripper(
    model: HookedACT,
    moved: Float[Tensor, "row chunk joint"],
    start: Float[Tensor, "chunk joint"],
    weights: Weights,
    scenes: Sequence[Scene],
    arm: Arm | None,
) -> dict[str, Any]:
    """The gripper's fields of a sweep, from joint positions; the first row moved is the target."""
    origin = "" if model.checkpoint is None else model.checkpoint.source
    arm = arm or known_arm(model.config.joints, origin)
    if arm is None:
        return {}
    tips, tip = 1000 * arm.tip(moved), 1000 * arm.tip(start)
    along = project(tips, tip, tips[0], weights=weights).along
    distance = (tips - tip).norm(dim=-1)
    executed = position_weights(model.config, Positions.EXECUTED, scenes)
    end = distance[:, int(executed.nonzero()[-1])].float()
    largest = distance[:, weights > 0].amax(1).float()
    return {
        "gripper_along": _array(along[1:]),
        "gripper_total": float(along[0]),
        "gripper_end": _array(end[1:]),
        "gripper_largest": _array(largest[1:]),
        "gripper_end_difference": float(end[0]),
        "gripper_largest_difference": float(largest[0]),
    }


def action_difference(
    model: HookedACT,
    one: SceneRun,
    other: SceneRun,
    *,
    options: SweepOptions | None = None,
    scenes: Sequence[Scene] = (),
) -> float:
    """Root mean square difference of two scenes' action chunks, in dataset units.

    Args:
        options: whose positions are measured; the whole chunk if not given.
        scenes: as in `sweep_pair`.
    """
    positions = Positions.WHOLE if options is None else options.positions
    first, second = (model.normalizer.unnormalize(ACTION_KEY, run.actions) for run in (one, other))
    weights = position_weights(model.config, positions, scenes).to(first.device)
    return float(rms(first - second, weights=weights))
