"""Rules that grant many requests by one change: at once, or in turn."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from actlens.rome.cases import Case
from actlens.rome.editing import EditOptions, solve_edit
from actlens.rome.fingerprint import tensor_sha256
from actlens.rome.metric import KeyMetric
from actlens.rome.prepared import Prepared
from actlens.rome.rivals import Change
from actlens.rome.study import Study
from actlens.rome.targets import TargetSet
from actlens.rome.update import NullSpace, SoftLeastSquares
from actlens.rome.ways import ScopedEdits
from actlens.rome.weight_edit import WeightEdit, edited_actions

if TYPE_CHECKING:
    pass

Rule = Callable[[Sequence[Case], TargetSet], Change]
"""Grants the requests of several cases by one change."""


def rules(study: Study) -> Mapping[str, Rule]:
    """The ways to grant many requests, by name.

    Raises:
        EditError: if the statistics leave no null space.
    """
    metric, scoped = study.metric(), study.scoped()
    null_space = EditOptions(NullSpace.of(metric.statistics))
    soft = EditOptions(SoftLeastSquares())
    return {
        "at once, with scopes": lambda cases, found: with_scopes(cases, found, scoped),
        "at once, exact": lambda cases, found: at_once(cases, found, metric),
        "at once, MEMIT": lambda cases, found: at_once(cases, found, metric, soft),
        "at once, AlphaEdit": lambda cases, found: at_once(cases, found, metric, null_space),
        "in turn, kept apart": lambda cases, found: in_turn(cases, metric, keep=True),
        "in turn, ROME": lambda cases, found: in_turn(cases, metric, keep=False),
    }


def with_scopes(cases: Sequence[Case], found: TargetSet, edits: ScopedEdits) -> Change:
    """One edit for all requests, each with its scope.

    Raises:
        EditError: as `scoped` and `solve_edit`.
    """
    situations = [case.target.situation for case in cases]
    edit = edits.edit(joined(cases, found), situations)
    return lambda runs: edited_actions(runs, edit)


def joined(cases: Sequence[Case], found: TargetSet) -> Prepared:
    """The requests of some cases as one: nothing is run."""
    parts = [case.prepared for case in cases]
    together = lambda name: tuple(x for part in parts for x in getattr(part, name))
    return replace(
        parts[0],
        requests=together("requests"),
        resolved=together("resolved"),
        keys=together("keys"),
        runs=found.runs.of_scenes([case.target.probes[0][0] for case in cases]),
    )


def at_once(
    cases: Sequence[Case],
    found: TargetSet,
    metric: KeyMetric,
    options: EditOptions | None = None,
) -> Change:
    """One edit for all requests.

    Raises:
        EditError: as `solve_edit`.
    """
    edit = solve_edit(joined(cases, found), metric, options=options)
    return lambda runs: edited_actions(runs, edit)


def in_turn(cases: Sequence[Case], metric: KeyMetric, *, keep: bool) -> Change:
    """An edit for each request, made in the policy that the ones before leave.

    Args:
        keep: whether each is cleared of the keys of the ones before, so that these keep what they
            wrote.

    Raises:
        EditError: as `solve_edit`.
    """
    edits: list[WeightEdit] = []
    for case in cases:
        prepared = _after(case.prepared, edits)
        edits.append(solve_edit(prepared, metric, earlier=edits if keep else ()))
    return lambda runs: edited_actions(runs, *edits)


def _after(prepared: Prepared, edits: Sequence[WeightEdit]) -> Prepared:
    """As if prepared in the policy with some edits in its weights; keys stay as they are."""
    if not edits:
        return prepared
    runs, weight = prepared.runs, prepared.weight
    written = sum(edit.written_at(runs.keys) for edit in edits)
    for edit in edits:
        weight = edit.on(weight)
    output = runs.output + torch.as_tensor(written).to(runs.output)
    runs = replace(runs, output=output, actions=edited_actions(runs, *edits))
    digests = {**prepared.digests, runs.site.matrix: tensor_sha256(weight)}
    return replace(prepared, runs=runs, weight=weight, digests=digests)
