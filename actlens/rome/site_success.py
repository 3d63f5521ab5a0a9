"""The same requests edited at every block, at random sites, and traced (Hase et al. 2023)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.config import ACTION_KEY
from actlens.errors import SceneError
from actlens.interventions.mlp_runs import MLPRuns
from actlens.metrics import Projection, project
from actlens.model.act import HookedACT
from actlens.model.units import spread_of
from actlens.rome.block_tracing import Tracing, trace_blocks
from actlens.rome.editing import EditOptions, solve_edit
from actlens.rome.errors import EditError
from actlens.rome.fingerprint import Digests, digests_of
from actlens.rome.jitter import NO_JITTER
from actlens.rome.metric import KeyMetric
from actlens.rome.prepared import Prepared
from actlens.rome.request import JointLimits, Request, Resolved, resolve
from actlens.rome.rivals import Change, at_random_keys, within_neurons
from actlens.rome.site_result import Outcomes, SiteSuccess
from actlens.rome.statistics import KeyStatistics
from actlens.rome.values import GaussNewton
from actlens.rome.weight_edit import edited_actions
from actlens.scene import Scene


@dataclass(frozen=True)
class SiteOptions:
    """How sites are compared."""

    edit: EditOptions | None = None
    """The same at every block. By default Gauss-Newton that stops where the request is granted, for
    at most 16 steps: in an encoder block every step differentiates the rest of the network once for
    each requested number, and what takes longer counts as failed."""
    tracing: Tracing = field(default_factory=Tracing)
    share: float = 0.5
    """Of a block's neurons, drawn anew for every request: a random site."""
    n_far: int = 6
    """Other requests' scenes, of other episodes, that should not change."""
    within: float = 1.0
    """Dataset units by which an action may miss its target and still be granted."""
    seed: int = 0


@torch.no_grad()
def site_success(
    model: HookedACT,
    requests: Sequence[Request],
    statistics: Sequence[KeyStatistics],
    near: Sequence[Sequence[Scene]],
    *,
    options: SiteOptions | None = None,
    limits: JointLimits | None = None,
    progress: Callable[[int], None] = lambda n_edits: None,
) -> SiteSuccess:
    """Edit every request at every block, and hold the success against causal tracing.

    Every edit is made by itself, at the keys of the request's own scene: there are no other views,
    and neighbours of a request are not averaged in. Every scene is run once for all blocks. Where a
    block admits no edit, that is a result.

    Args:
        statistics: of every block to try, from `key_statistics_of`.
        near: scenes that should change as the request's, for every request.
        limits: what targets are checked against; nothing, if not given.
        progress: told how many edits were made.

    Raises:
        SceneError: if `near` has another length than `requests`, or a scene does not fit.
        EditError: if there are not requests from two episodes, a request makes no sense for this
            policy, or statistics belong to other weights.
    """
    options = options or SiteOptions()
    if len(near) != len(requests):
        raise SceneError(f"{len(near)} lists of near scenes for {len(requests)} requests.")
    scenes = [request.scene for request in requests]
    if len({(scene.source, scene.episode) for scene in scenes}) < 2:
        raise EditError("Give requests from two episodes or more: each is far from the others.")
    digests = digests_of(model)
    for one in statistics:
        one.require_fits(digests)
    sites = [one.site for one in statistics]
    kept = MLPRuns.of_sites(model, sites, scenes)
    beside = [MLPRuns.of_sites(model, sites, alike) if alike else None for alike in near]
    resolved = [
        resolve(model, request, present, limits)
        for request, present in zip(requests, kept[0].actions, strict=True)
    ]
    traced = trace_blocks(
        model,
        scenes,
        [site.block for site in sites],
        [one.positions for one in resolved],
        options.tracing,
    )
    kinds = np.zeros((3, 5, len(requests), len(sites)))
    failures = [[""] * len(sites) for _ in requests]
    slack = options.within / spread_of(model, ACTION_KEY, kept[0].actions)
    edit = options.edit or _until_granted(slack)
    for b, one in enumerate(statistics):
        metric = _metric(one)
        for r, request in enumerate(requests):
            own = kept[b].of_scenes([r])
            case = _Case(
                _prepared(model, request, resolved[r], own, digests),
                None if (alike := beside[r]) is None else alike[b],
                kept[b].of_scenes(_far(scenes, r, options.n_far)),
                slack,
            )
            kinds[:, :, r, b], failures[r][b] = _attempt(case, metric, edit, options, r)
            progress(1)
    edits, random_neurons, random_keys = (
        Outcomes(reached, granted > 0, close, far, norm)
        for reached, granted, close, far, norm in kinds
    )
    return SiteSuccess(
        blocks=tuple(site.block for site in sites),
        requests=tuple(f"{scene.source} {scene.address}".strip() for scene in scenes),
        episodes=_numbered(scenes),
        traced=traced.share,
        corrupted=traced.corrupted,
        edits=edits,
        random_neurons=random_neurons,
        random_keys=random_keys,
        share=options.share,
        failures=tuple(map(tuple, failures)),
    )


@dataclass(frozen=True)
class _Case:
    """One request at one block, and the scenes in which its changes are measured."""

    prepared: Prepared
    near: MLPRuns | None
    far: MLPRuns
    slack: Float[Tensor, " joint"]
    """By how much a granted action may miss, normalised."""

    @property
    def untouched(self) -> tuple[float, ...]:
        """What is measured where no edit could be made."""
        return 0.0, 0.0, float("nan") if self.near is None else 0.0, 0.0, float("nan")

    def measured(self, change: Change, relative_norm: float) -> tuple[float, ...]:
        """As the fields of `Outcomes`, in their order."""
        own, (one,) = self.prepared.runs, self.prepared.resolved
        missed = (change(own)[0, list(one.positions)] - one.target).abs()
        far = self._projected(change, self.far)
        return (
            float(self._projected(change, own).share),
            float((missed <= self.slack).all()),
            float("nan")
            if self.near is None
            else float(self._projected(change, self.near).share.mean()),
            float((far.moved / far.total).mean().sqrt()),
            relative_norm,
        )

    def _projected(self, change: Change, runs: MLPRuns) -> Projection:
        """How far a change moves some scenes along what was asked for."""
        (one,) = self.prepared.resolved
        at = list(one.positions)
        start = runs.actions[:, at]
        asked = one.target - self.prepared.runs.actions[0, at]
        return project(change(runs)[:, at], start, start + asked)


def _attempt(
    case: _Case,
    metric: KeyMetric | EditError,
    how: EditOptions,
    options: SiteOptions,
    number: int,
) -> tuple[Float[np.ndarray, "3 5"], str]:
    """An edit and its two random sites, measured; or why there is no edit."""
    try:
        if isinstance(metric, EditError):
            raise metric
        edit = solve_edit(case.prepared, metric, options=how)
    except EditError as error:
        return np.array([case.untouched] * 3), str(error)
    generator = torch.Generator().manual_seed(1000 * options.seed + number)
    n = edit.keys.shape[1]
    drawn = torch.randperm(n, generator=generator)[: max(1, round(options.share * n))]
    neurons = within_neurons(edit, metric, drawn)
    own = [request.scene.episode for request in case.prepared.requests]
    keys = at_random_keys(edit, metric, seed=1000 * options.seed + number, avoid=own)
    rows = [
        case.measured(lambda runs: edited_actions(runs, edit), edit.relative_norm),
        case.measured(neurons, neurons.relative_norm),
        case.measured(keys, keys.relative_norm),
    ]
    return np.array(rows), ""


def _until_granted(slack: Float[Tensor, " joint"]) -> EditOptions:
    """A little less than the slack: rounding must not decide what is granted."""
    return EditOptions(values=GaussNewton(tolerance=0.9 * float(slack.min()), max_steps=16))


def _metric(statistics: KeyStatistics) -> KeyMetric | EditError:
    try:
        return KeyMetric.of(statistics)
    except EditError as error:
        return error


def _prepared(
    model: HookedACT, request: Request, one: Resolved, own: MLPRuns, digests: Digests
) -> Prepared:
    """As `prepare` makes it without jitter and neighbours, from runs that were made already."""
    at = list(one.positions) if own.rest.positionwise else slice(None)
    weight = own.site.layer(model).weight.detach().clone()
    keys = own.keys[0, at].double().cpu()
    return Prepared(model, (request,), (one,), own, (keys,), weight, digests, NO_JITTER)


def _far(scenes: Sequence[Scene], number: int, n_far: int) -> list[int]:
    """The next requests in turn whose scenes are of other episodes."""
    order = [(number + step) % len(scenes) for step in range(1, len(scenes))]
    own = (scenes[number].source, scenes[number].episode)
    return [i for i in order if (scenes[i].source, scenes[i].episode) != own][:n_far]


def _numbered(scenes: Sequence[Scene]) -> Int[np.ndarray, " scene"]:
    """A number for every episode."""
    number: dict[tuple[str, int], int] = {}
    return np.array([number.setdefault((one.source, one.episode), len(number)) for one in scenes])
