"""Recompute what changes, and only as far as somebody wants to know it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from enum import StrEnum

import torch
from torch import Tensor

from actlens.interventions.network import Attend, Op
from actlens.interventions.rows import Rows, Value
from actlens.interventions.scene_run import SceneRun
from actlens.interventions.softmax_update import updated

LARGEST_ACTIVE_SHARE = 0.7
"""With more positions than this moved, the whole activation is kept: picking rows costs as well."""


class Precision(StrEnum):
    """In what the large products of changed activations are computed."""

    FULL = "full"
    """In the model's own precision."""
    HALF = "half"
    """Differences from the base run pass through bfloat16 products and are added to the base run's
    own values: an error of some parts in a thousand of the effect, where computing the activations
    themselves in bfloat16 would drown small effects."""


Change = Callable[[Value | None], Value]
"""Takes what a hook point holds so far (None: as in the base run) to what it holds after edits."""


def reached(ops: Sequence[Op], edited: Collection[str], frozen: Collection[str] = ()) -> set[str]:
    """The outputs that edits can change; what is frozen stays as in the base run."""
    changed = set(edited)
    for op in ops:
        if op.output not in frozen and not changed.isdisjoint(op.inputs):
            changed.add(op.output)
    return changed


def needed(ops: Sequence[Op], wanted: Collection[str]) -> set[str]:
    """The outputs that `wanted` ones are computed from, themselves included."""
    above = set(wanted)
    for op in reversed(ops):
        if op.output in above:
            above.update(op.inputs)
    return above


def steps(
    ops: Sequence[Op],
    edited: Collection[str],
    wanted: Collection[str],
    frozen: Collection[str] = (),
) -> list[Op]:
    """The operations that edits call for: what they reach, as far as it leads to `wanted`."""
    changed, above = reached(ops, edited, frozen), needed(ops, wanted)
    return [op for op in ops if op.output in changed and op.output in above]


def evaluate(
    chosen: Sequence[Op],
    base: SceneRun,
    changes: Mapping[str, Change],
    wanted: Collection[str],
    tolerance: float = 0.0,
    neglect: Callable[[Tensor], None] = lambda movement: None,
    precision: Precision = Precision.FULL,
) -> dict[str, Value]:
    """The changed activations among `wanted`; those that are missing are as in the base run.

    Args:
        chosen: the operations to carry out, from `steps`.
        changes: the edits by hook name.
        tolerance: positions that attention moves by a smaller share of their stream's norm are
            left as in the base run; 0 is exact.
        neglect: told the squared movement that was left out, by batch row.
        precision: of the large products.
    """
    last_use = {name: i for i, op in enumerate(chosen) for name in op.inputs}
    changed: dict[str, Value] = {}
    for i, op in enumerate(chosen):
        value = None
        if any(name in changed for name in op.inputs):
            value = compute(op, base, changed, precision)
            if tolerance and isinstance(op, Attend) and op.skip:
                value = _moved_rows(op, base, changed, value, tolerance, neglect)
        if op.output in changes:
            value = changes[op.output](value)
        if value is not None:
            changed[op.output] = value
        for name in op.inputs:
            if last_use[name] == i and name not in wanted:
                changed.pop(name, None)
    return {name: value for name, value in changed.items() if name in wanted}


def compute(
    op: Op,
    base: SceneRun,
    changed: Mapping[str, Value],
    precision: Precision = Precision.FULL,
) -> Value:
    """One operation on changed inputs, in rows where that is exact and in whole otherwise."""
    assert op.compute is not None
    given = [changed.get(name) for name in op.inputs]
    if isinstance(op, Attend):
        q, k, v = given
        return updated(q, k, v, base.attention(op.prefix))
    if precision is Precision.HALF and op.change is not None:
        return _changed_in_half(op, base, given)
    if op.positionwise and (places := _common_places(op, base, given)) is not None:
        parts = []
        for name, value in zip(op.inputs, given, strict=True):
            if isinstance(value, Rows) and value.shares_places(places):
                parts.append(value.values)
            elif isinstance(value, Rows):
                parts.append(value.dense(base[name])[places.batch, places.index][None])
            else:
                parts.append(places.of(base[name]))
        return places.holding(op.compute(*parts))
    return op.compute(
        *(
            base[name]
            if value is None
            else value.dense(base[name])
            if isinstance(value, Rows)
            else value
            for name, value in zip(op.inputs, given, strict=True)
        )
    )


def _changed_in_half(op: Op, base: SceneRun, given: Sequence[Value | None]) -> Value:
    """The base run's output plus the change that the inputs' differences from it make."""
    assert op.change is not None
    places = _common_places(op, base, given)
    at = (lambda own: own) if places is None else places.of
    changes: list[Tensor | None] = []
    for name, value in zip(op.inputs, given, strict=True):
        if value is None:
            changes.append(None)
        elif places is not None and isinstance(value, Rows) and value.shares_places(places):
            changes.append(value.values - at(base[name]))
        elif places is not None and isinstance(value, Rows):
            whole = value.dense(base[name])
            changes.append(whole[places.batch, places.index][None] - at(base[name]))
        else:
            whole = value.dense(base[name]) if isinstance(value, Rows) else value
            changes.append(whole - base[name])
    output = at(base[op.output]) + op.change(changes, lambda name: at(base.in_half(name)))
    return output if places is None else places.holding(output)


def _common_places(op: Op, base: SceneRun, given: Sequence[Value | None]) -> Rows | None:
    """The places at which some changed input differs from the base run, if all inputs are rows."""
    rows = [value for value in given if isinstance(value, Rows)]
    if not rows or any(isinstance(value, Tensor) for value in given):
        return None
    most = max(rows, key=lambda value: value.per_row)
    n_positions = base[op.inputs[0]].shape[1]
    others = (value for value in rows if not value.shares_places(most))
    return most if all(most.covers(value, n_positions) for value in others) else None


def _moved_rows(
    op: Attend,
    base: SceneRun,
    changed: Mapping[str, Value],
    z: Value,
    tolerance: float,
    neglect: Callable[[Tensor], None],
) -> Value:
    """Only the positions that attention moves more than the tolerance, or that differ already."""
    before = [changed[name] for name in (*op.inputs, op.skip) if name in changed]
    if not isinstance(z, Tensor) or any(isinstance(value, Tensor) for value in before):
        return z
    own = base[f"{op.prefix}.hook_z"]
    stream = base[op.resid].flatten(2).norm(dim=-1)
    movement = (z - own).flatten(2).norm(dim=-1) * (op.gain / stream)
    for value in before:
        assert isinstance(value, Rows)
        movement[value.batch, value.index] = torch.inf
    moved = movement > tolerance
    if moved.float().mean() > LARGEST_ACTIVE_SHARE:
        return z
    neglect(movement.masked_fill(moved, 0).square().sum(1))
    return Rows.where(moved, z)
