"""Recompute what changes, and only as far as somebody wants to know it."""

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import Tensor

from actlens.interventions.network import Attend, Op
from actlens.interventions.rows import Rows, Value
from actlens.interventions.scene_run import SceneRun
from actlens.interventions.softmax_update import updated

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
) -> dict[str, Value]:
    """The changed activations among `wanted`; those that are missing are as in the base run.

    Args:
        chosen: the operations to carry out, from `steps`.
        changes: the edits by hook name.
    """
    last_use = {name: i for i, op in enumerate(chosen) for name in op.inputs}
    changed: dict[str, Value] = {}
    for i, op in enumerate(chosen):
        value = None
        if any(name in changed for name in op.inputs):
            value = compute(op, base, changed)
        if op.output in changes:
            value = changes[op.output](value)
        if value is not None:
            changed[op.output] = value
        for name in op.inputs:
            if last_use[name] == i and name not in wanted:
                changed.pop(name, None)
    return {name: value for name, value in changed.items() if name in wanted}


def compute(op: Op, base: SceneRun, changed: Mapping[str, Value]) -> Value:
    """One operation on changed inputs, in rows where that is exact and in whole otherwise."""
    assert op.compute is not None
    given = [changed.get(name) for name in op.inputs]
    if isinstance(op, Attend):
        q, k, v = given
        return updated(q, k, v, base, op.prefix, base.log_sum_exp)
    rows = [value.index for value in given if isinstance(value, Rows)]
    together = all(index is rows[0] for index in rows)
    if op.positionwise and rows and together and not any(isinstance(v, Tensor) for v in given):
        parts = [
            value.values if isinstance(value, Rows) else base[name][0][rows[0]]
            for name, value in zip(op.inputs, given, strict=True)
        ]
        return Rows(rows[0], op.compute(*parts))
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
