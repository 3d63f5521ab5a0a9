"""What the ridge trades: reaching the request, carrying over to scenes like it, sparing others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from actlens.errors import SceneError
from actlens.interventions.mlp_runs import MLPRuns
from actlens.metrics import Projection, project
from actlens.model.act import HookedACT
from actlens.rome.editing import EditOptions, solve_edit
from actlens.rome.jitter import Jitter
from actlens.rome.metric import KeyMetric
from actlens.rome.prepared import Prepared, prepare
from actlens.rome.request import JointLimits, Request
from actlens.rome.statistics import KeyStatistics
from actlens.rome.weight_edit import WeightEdit, edited_actions
from actlens.scene import Scene

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class RidgeSweep:
    """One edit for every request and ridge; all shares are of the change that was asked for.

    Measured in normalised actions over the request's positions. `reached` and `near` are the share
    that came about along the change (1: all of it), `far` is the size of any change.
    """

    ridges: tuple[float, ...]
    reached: Float[np.ndarray, "ridge request"]
    near: Float[np.ndarray, "ridge request"]
    """Mean over the scenes near the request's; NaN where there are none."""
    far: Float[np.ndarray, "ridge request"]
    """Root mean square over the scenes far from it; NaN where there are none."""
    relative_norm: Float[np.ndarray, "ridge request"]
    condition: Float[np.ndarray, "ridge request"]


def sweep_ridges(
    model: HookedACT,
    requests: Sequence[Request],
    statistics: KeyStatistics,
    *,
    near: Sequence[Sequence[Scene]],
    far: Sequence[Sequence[Scene]],
    ridges: Sequence[float] = RIDGES,
    options: EditOptions | None = None,
    jitter: Jitter | None = None,
    limits: JointLimits | None = None,
    progress: Callable[[int], None] = lambda n_edits: None,
) -> RidgeSweep:
    """Make every request by itself with every ridge, and see what it does where.

    Args:
        near: scenes that should change as the request's, for every request.
        far: scenes that should not change, for every request.
        progress: told how many edits were made.

    Raises:
        SceneError: if `near` or `far` has another length than `requests`.
        EditError: as `make_edit`.
    """
    for name, scenes in (("near", near), ("far", far)):
        if len(scenes) != len(requests):
            raise SceneError(f"{len(scenes)} lists of {name} scenes for {len(requests)} requests.")
    metrics = [KeyMetric.of(statistics, ridge) for ridge in ridges]
    block = statistics.site.block
    limits = limits or JointLimits.demonstrated(statistics)
    found = np.full((5, len(metrics), len(requests)), np.nan)
    for j, (request, alike, others) in enumerate(zip(requests, near, far, strict=True)):
        prepared = prepare(model, [request], block, jitter=jitter, limits=limits)
        elsewhere = [
            MLPRuns.of(model, prepared.runs.site, scenes) if scenes else None
            for scenes in (alike, others)
        ]
        for i, metric in enumerate(metrics):
            edit = solve_edit(prepared, metric, options=options)
            reached, near_by, far_off = (
                _projected(edit, prepared, runs) for runs in (prepared.runs, *elsewhere)
            )
            if reached is not None:
                found[0, i, j] = float(reached.share.mean())
            if near_by is not None:
                found[1, i, j] = float(near_by.share.mean())
            if far_off is not None:
                found[2, i, j] = float((far_off.moved / far_off.total).mean().sqrt())
            found[3:, i, j] = edit.relative_norm, edit.record.condition
            progress(1)
    return RidgeSweep(tuple(ridges), *found)


def _projected(edit: WeightEdit, prepared: Prepared, runs: MLPRuns | None) -> Projection | None:
    """How far the edit moves some scenes along what the one request asked for."""
    if runs is None:
        return None
    (one,) = prepared.resolved
    at = list(one.positions)
    asked = one.target - prepared.runs.actions[0, at]
    start = runs.actions[:, at]
    return project(edited_actions(runs, edit)[:, at], start, start + asked)
