"""ROME for a policy: key, value, update. The model is left as it is."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.config import ACTION_KEY
from actlens.interventions.mlp_runs import MLPRuns
from actlens.metrics import executed_positions
from actlens.model.act import HookedACT
from actlens.rome.conflicts import Compatibility, Conflict, compatibility
from actlens.rome.errors import EditError
from actlens.rome.fingerprint import scene_sha256, tensor_sha256, weights_sha256
from actlens.rome.jitter import Jitter
from actlens.rome.linearised import Linearised
from actlens.rome.metric import KeyMetric, Keys, Readers
from actlens.rome.prepared import Prepared, prepare
from actlens.rome.problem import Problem
from actlens.rome.record import EditRecord, RequestRecord, Rows
from actlens.rome.request import JointLimits, Request, Resolved
from actlens.rome.update import Exact, Update
from actlens.rome.values import GaussNewton, ValueSolver
from actlens.rome.weight_edit import WeightEdit


@dataclass(frozen=True)
class EditOptions:
    """How an edit is made."""

    update: Update = field(default_factory=Exact)
    """How values are spread over the weights."""
    values: ValueSolver = field(default_factory=GaussNewton)
    """How the values are found."""


def make_edit(
    model: HookedACT,
    requests: Sequence[Request],
    metric: KeyMetric,
    *,
    options: EditOptions | None = None,
    jitter: Jitter | None = None,
    earlier: Sequence[WeightEdit] = (),
    limits: JointLimits | None = None,
) -> WeightEdit:
    """The change of one MLP's output weights after which the policy does what is asked for.

    Args:
        metric: of the MLP to edit, from its key statistics.
        jitter: views of every scene over which its key is averaged.
        earlier: edits that the policy has already, which are to keep what they wrote.
        limits: what targets are checked against; what the demonstrations span, if not given.

    Raises:
        EditError: if a request makes no sense for this policy or lies beyond the limits, the
            statistics belong to other weights, or the targets cannot be reached.
        SceneError: if a scene does not fit the policy.
    """
    block = metric.statistics.site.block
    limits = limits or JointLimits.demonstrated(metric.statistics)
    prepared = prepare(model, requests, block, jitter=jitter, limits=limits)
    return solve_edit(prepared, metric, options=options, earlier=earlier)


@torch.no_grad()
def solve_edit(
    prepared: Prepared,
    metric: KeyMetric,
    *,
    options: EditOptions | None = None,
    earlier: Sequence[WeightEdit] = (),
) -> WeightEdit:
    """The edit for requests that were prepared: no forward is made.

    v* is what must be written at k* so that the request's own scene, whose key is not quite k*,
    gets the target; the update spreads it over the weights.

    Raises:
        EditError: if the statistics are of another MLP or other weights, or the targets cannot be
            reached.
    """
    options = options or EditOptions()
    statistics = metric.statistics
    site = prepared.runs.site
    if statistics.site != site:
        raise EditError(
            f"These key statistics are of {statistics.site.block}; the requests were prepared for "
            f"{site.block}."
        )
    for edit in earlier:
        if edit.site != site:
            raise EditError(
                f"An earlier edit is of {edit.site.block}: keys of {site.block} cannot keep what "
                "it wrote."
            )
    statistics.require_fits(prepared.digests)
    keys = torch.cat(prepared.keys)
    written = torch.cat([keys[:0], *(edit.keys for edit in earlier)])
    together = _compatibility(prepared, metric)
    try:
        values, n_steps = _values(prepared, metric, written, options)
    except EditError as error:
        raise EditError(f"{error}{_told(together.conflicts)}") from error
    left, right = _compact(values, options.update.rows(metric, keys, written))
    record = EditRecord(
        _granted(prepared, left, right),
        prepared.model.config.joints,
        {
            "ridge": metric.ridge,
            "update": _plain(options.update),
            "values": _plain(options.values),
            "jitter": _plain(prepared.jitter),
        },
        {
            name: getattr(statistics, name)
            for name in ("n_keys", "n_frames", "n_episodes", "data_sha256", "source")
        },
        Readers.of(metric, keys, written).condition,
        together.price,
        together.conflicts,
        n_steps,
        tuple(edit.edited_sha256 for edit in earlier),
    )
    norm = float(prepared.weight.double().norm())
    before = weights_sha256(prepared.digests)
    edit = WeightEdit(site, left, right, keys, norm, before, "", record)
    after = {**prepared.digests, site.matrix: tensor_sha256(edit.on(prepared.weight))}
    return replace(edit, edited_sha256=weights_sha256(after))


def _values(
    prepared: Prepared, metric: KeyMetric, written: Keys, options: EditOptions
) -> tuple[Float[Tensor, "d_model key"], int]:
    """v* - W k* for every key, and the solver's steps."""
    model, runs, joint = prepared.model, prepared.runs, options.update.joint
    unrelated = options.values.unrelated
    others = MLPRuns.of(model, runs.site, unrelated) if unrelated else None
    everything = range(len(prepared.requests))
    found, n_steps = [], 0
    for group in [list(everything)] if joint else [[i] for i in everything]:
        keys = torch.cat([prepared.keys[i] for i in group])
        readers = Readers.of(metric, keys, written if joint else None)
        resolved = [prepared.resolved[i] for i in group]
        problem = Problem.of(runs.of_scenes(group), readers, resolved)
        quiet = None if others is None else Problem.of(others, readers, _as_it_is(model, others))
        solution = options.values.solve(problem, readers, quiet)
        found.append(solution.write @ readers.root.T)
        n_steps += solution.n_steps
    return torch.cat(found, 1), n_steps


def _as_it_is(model: HookedACT, runs: MLPRuns) -> list[Resolved]:
    """Requests for what the policy does anyway."""
    positions = executed_positions(model.config)
    return [Resolved(positions, actions[list(positions)]) for actions in runs.actions]


def _compatibility(prepared: Prepared, metric: KeyMetric) -> Compatibility:
    if len(prepared.requests) < 2:
        return Compatibility(1.0, ())
    readers = Readers.of(metric, torch.cat(prepared.keys))
    problem = Problem.of(prepared.runs, readers, prepared.resolved)
    return compatibility(Linearised.at(problem, problem.nothing))


def _told(found: Sequence[Conflict]) -> str:
    """The dearest conflict in words, or nothing."""
    if not found:
        return ""
    worst = found[0]
    how = f"costs {worst.price:.3g} times the drift" if isfinite(worst.price) else "is impossible"
    return f" Granting requests {worst.first} and {worst.second} together {how}."


def _compact(
    values: Float[Tensor, "d_model key"], rows: Float[Tensor, "key neuron"]
) -> tuple[Float[Tensor, "d_model rank"], Float[Tensor, "rank neuron"]]:
    """Two factors of no larger rank than the matrix they make."""
    if values.shape[1] <= len(values):
        return values, rows
    u, lengths, v = torch.linalg.svd(values @ rows, full_matrices=False)
    return u * lengths, v


def _granted(prepared: Prepared, left: Tensor, right: Tensor) -> tuple[RequestRecord, ...]:
    """Each request with what comes of it under the edit."""
    runs = prepared.runs
    written = runs.keys.to(right) @ right.T @ left.T
    normalizer = prepared.model.normalizer
    units = lambda actions: normalizer.unnormalize(ACTION_KEY, actions).double()
    records = []
    for request, one, before, after in zip(
        prepared.requests, prepared.resolved, runs.actions, runs.actions_with(written), strict=True
    ):
        at, scene, target = list(one.positions), request.scene, units(one.target)
        records.append(
            RequestRecord(
                f"{scene.source} {scene.address}".strip(),
                scene_sha256(scene),
                one.positions,
                _rows(units(before[at])),
                _rows(target),
                float((units(after[at]) - target).abs().max()),
            )
        )
    return tuple(records)


def _rows(actions: Float[Tensor, "position joint"]) -> Rows:
    return tuple(tuple(row) for row in actions.tolist())


def _plain(part: Any) -> dict[str, Any]:
    """The kind and the numbers of a part of the options."""
    numbers = {
        f.name: value
        for f in fields(part)
        if isinstance(value := getattr(part, f.name), int | float | str | None)
    }
    return {"kind": type(part).__name__} | numbers
