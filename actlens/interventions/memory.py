"""How many interventions share a batch, within a budget of memory."""

from collections.abc import Sequence
from math import prod

from actlens.errors import InterventionError
from actlens.interventions.network import ACTIONS, Attend, Op
from actlens.interventions.scene_run import SceneRun

DEFAULT_BUDGET = 96 * 2**20
"""Larger batches are slower on CPUs: their activations leave the caches."""


def rows_within(budget: int, ops: Sequence[Op], base: SceneRun) -> int:
    """How many interventions fit a batch: the largest operation's inputs, output and scratch.

    Raises:
        InterventionError: if not even one does.
    """
    largest = max((_bytes_per_row(op, base) for op in ops), default=1)
    if largest > budget:
        raise InterventionError(
            f"One intervention alone needs {largest / 2**20:.0f} MiB of temporaries; the memory "
            f"budget is {budget / 2**20:.0f} MiB. Raise memory_budget."
        )
    return budget // largest


def neurons_within(budget: int, base: SceneRun) -> int:
    """How many neurons the closed form may take at a time."""
    chunk, joints = base.actions.shape
    return max(1, budget // (8 * chunk * (12 + 2 * joints)))


def _bytes_per_row(op: Op, base: SceneRun) -> int:
    size = lambda name: prod(base[name].shape[1:])
    scratch = op.scratch
    if isinstance(op, Attend):  # scores and pattern: two numbers for every query, head and key
        keys, d_head = base[op.inputs[1]].shape[1], base[op.inputs[1]].shape[3]
        scratch = 2 * keys / d_head
    elements = sum(map(size, op.inputs)) + (1 + scratch) * size(op.output)
    return int(elements * base[ACTIONS].element_size())
