"""Run many interventions on one scene without recomputing what they cannot change.

Interventions at the same hook points share their operations, one batch row each. Everything before
the first edit comes from the base run; so does all that no edit reaches (the decoder's queries,
under an edit of the tokens); single changed tokens pass their first attention by an exact update.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.hooks import HookPoint
from actlens.interventions.closed_form import last_neurons, with_neurons_changed
from actlens.interventions.effects import Effects, Tally
from actlens.interventions.evaluate import Precision, evaluate, steps
from actlens.interventions.intervention import Edit, Intervention
from actlens.interventions.memory import DEFAULT_BUDGET, neurons_within, rows_within
from actlens.interventions.network import ACTIONS, canonical, checked_point, network
from actlens.interventions.rows import Rows, Value, whole
from actlens.interventions.scene_run import SceneRun
from actlens.interventions.softmax_update import LARGEST_SHARE
from actlens.interventions.sources import Call, Moment
from actlens.model.act import HookedACT

_POSITIONS = ("token", "query", "chunk")


@torch.no_grad()
def run(
    model: HookedACT,
    base: SceneRun,
    interventions: Sequence[Intervention],
    donors: Mapping[str, SceneRun] | None = None,
    *,
    tolerance: float = 0.0,
    precision: Precision = Precision.FULL,
    memory_budget: int = DEFAULT_BUDGET,
    advance: Callable[[int], None] = lambda n: None,
) -> Effects:
    """The action chunk under each of the interventions, each made by itself.

    Args:
        base: the scene to intervene on.
        donors: the runs that sources name, by role.
        tolerance: leave tokens as they are that move by a smaller share of their norm; 0 is exact.
            `run_within` chooses it from an allowed error.
        precision: of the large products; `Precision.HALF` is faster on most machines, not exact.
        memory_budget: bytes that the temporaries of one batch may take; it does not change results
            beyond float rounding.
        advance: told how many interventions were done, for progress bars.

    Raises:
        InterventionError: if an intervention does not fit the network or the donors, or one alone
            needs more memory than the budget.
        HookNameError: if a site does not exist.
    """
    planned = [_plan(model, base, intervention) for intervention in interventions]
    groups: dict[tuple[tuple[str, ...], int], list[int]] = {}
    neurons: list[int] = []
    for i, plan in enumerate(planned):
        if plan.neuron is not None:
            neurons.append(i)
        else:
            groups.setdefault((plan.names, plan.positions), []).append(i)
    tally = Tally(len(planned))
    actions = base.actions.new_empty((len(planned), *base.actions.shape))
    rows = neurons_within(memory_budget, base)
    for start in range(0, len(neurons), rows):
        batch = neurons[start : start + rows]
        edits = _Edits([planned[i] for i in batch], batch, base, donors or {}, tally)
        chosen = torch.tensor([planned[i].neuron for i in batch], device=actions.device)
        change = edits.of_neurons(model.hook_point(last_neurons(model)))
        actions[batch] = with_neurons_changed(model, base, chosen, change)
        advance(len(batch))
    for (names, positions), members in groups.items():
        ops = steps(network(model, names), names, (ACTIONS,))
        rows = rows_within(memory_budget, ops, base)
        for start in range(0, len(members), rows):
            batch = members[start : start + rows]
            edits = _Edits([planned[i] for i in batch], batch, base, donors or {}, tally)
            changes = {name: partial(edits.at, model.hook_point(name), positions) for name in names}
            neglect = partial(tally.neglect, batch)
            found = evaluate(ops, base, changes, (ACTIONS,), tolerance, neglect, precision)
            actions[batch] = whole(found.get(ACTIONS), base[ACTIONS])
            advance(len(batch))
    return tally.effects(actions, base)


@torch.no_grad()
def activations_under(
    model: HookedACT,
    base: SceneRun,
    intervention: Intervention,
    wanted: Collection[str],
    donors: Mapping[str, SceneRun] | None = None,
    *,
    frozen: Collection[str] = (),
) -> SceneRun:
    """What some hook points hold under one intervention.

    Args:
        frozen: hook points that keep the base run's value whatever happens before them.

    Raises:
        InterventionError: if the intervention does not fit the network or the donors.
        HookNameError: if a hook point does not exist.
    """
    plan = _plan(model, base, intervention)
    points = {canonical(model, name) for name in wanted}
    held = {canonical(model, name) for name in frozen} - set(plan.names)
    ops = steps(network(model, {*plan.names, *points, *held}), plan.names, points, held)
    edits = _Edits([plan], [0], base, donors or {}, Tally(1))
    changes = {
        name: partial(edits.at, model.hook_point(name), plan.positions) for name in plan.names
    }
    found = evaluate(ops, base, changes, points)
    return SceneRun({name: whole(found.get(name), base[name]) for name in points})


@dataclass(frozen=True)
class _Plan:
    """One intervention's edits by hook point, under the points' own names."""

    edits: Mapping[str, tuple[Edit, ...]]
    positions: int = 0
    """How many positions (tokens or queries) its one edit replaces, if it does only that and they
    are few; else 0."""
    neuron: int | None = None
    """The one neuron of the last decoder MLP that its one edit changes, if it does only that."""

    @property
    def names(self) -> tuple[str, ...]:
        """The hook points it edits."""
        return tuple(sorted(self.edits))


def _plan(model: HookedACT, base: SceneRun, intervention: Intervention) -> _Plan:
    edits: dict[str, tuple[Edit, ...]] = {}
    for edit in intervention.edits:
        name = checked_point(model, edit.site)
        edits[name] = (*edits.get(name, ()), edit)
    if len(intervention.edits) > 1:  # the order of several edits is kept on whole activations only
        return _Plan(edits)
    (edit,) = intervention.edits
    point = model.hook_point(edit.site.name)
    neuron = edit.site.where.get("neuron")
    if point.name == last_neurons(model) and isinstance(neuron, int):
        point.index(edit.site.where, base[last_neurons(model)].shape)
        return _Plan(edits, neuron=neuron)
    return _Plan(edits, _replaced(edit, point, base))


def _replaced(edit: Edit, point: HookPoint, base: SceneRun) -> int:
    """How many positions an edit replaces, if it does only that and they are few; else 0."""
    if len(point.axes) < 3 or point.axes[0] != "batch" or point.axes[1] not in _POSITIONS:
        return 0
    chosen = edit.site.where.get(point.axes[1])
    if len(edit.site.where) > 1 or chosen is None or isinstance(chosen, slice):
        return 0
    if isinstance(edit.source, Call):  # is shown the very part that a hook would show it
        return 0
    count = 1 if isinstance(chosen, int) else len(chosen)
    return count if count <= LARGEST_SHARE * base[point.name or ""].shape[1] else 0


@dataclass(frozen=True)
class _Edits:
    """A batch of interventions on one scene, one row each."""

    plans: Sequence[_Plan]
    numbers: Sequence[int]
    base: SceneRun
    donors: Mapping[str, SceneRun]
    tally: Tally

    def at(self, point: HookPoint, positions: int, value: Value | None) -> Value:
        """What a hook point holds after its edits; the `Change` of `evaluate`."""
        own = self.base[point.name or ""]
        if value is None and positions:
            return self._rows(point, own)
        edited = whole(value, own).expand(len(self.plans), *own.shape[1:])
        edited = edited.clone(memory_format=torch.contiguous_format)
        batched = point.axes[:1] == ("batch",)
        for row, plan in enumerate(self.plans):
            one = edited[row : row + 1] if batched else edited[row]
            for edit in plan.edits[point.name or ""]:
                index = point.index(edit.site.where, one.shape)
                before = one[index].clone()
                after = edit.source.value(before, Moment(point, index, self.donors))
                one[index] = after
                self.tally.record([self.numbers[row]], before[None], after[None])
        return edited

    def of_neurons(self, point: HookPoint) -> Float[Tensor, "row query"]:
        """What each edit adds to the one neuron it changes, by query."""
        own = self.base[point.name or ""]
        change = own.new_zeros(len(self.plans), own.shape[1])
        for row, plan in enumerate(self.plans):
            (edit,) = plan.edits[point.name or ""]
            index = point.index(edit.site.where, own.shape)
            before = own[index]
            after = edit.source.value(before.clone(), Moment(point, index, self.donors))
            change[row][index[1]] = (after - before)[0]
            self.tally.record([self.numbers[row]], before[None], after[None])
        return change

    def _rows(self, point: HookPoint, own: Tensor) -> Rows:
        """Whole positions replaced, and nothing else touched."""
        index, before, after = [], [], []
        for plan in self.plans:
            (edit,) = plan.edits[point.name or ""]
            chosen = edit.site.where[point.axes[1]]
            assert not isinstance(chosen, slice)
            entries = (chosen,) if isinstance(chosen, int) else chosen
            at = point.index({point.axes[1]: entries}, own.shape)
            part = own[at]
            after.append(edit.source.value(part, Moment(point, at, self.donors)))
            before.append(part)
            index.append([i % own.shape[1] for i in entries])
        edited = torch.cat(after)
        self.tally.record(self.numbers, torch.cat(before), edited)
        return Rows.even(torch.tensor(index, device=own.device), edited)
