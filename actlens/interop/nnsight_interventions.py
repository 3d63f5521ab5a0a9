"""Interventions through nnsight: one by one, or in traces and rollouts of the user's own.

effects = run_traced(traced, corrupt, [intervention], {"clean": run_scene(model, clean)})

with traced.trace(observation, fn="select_action") as tracer:
    receipts = save(edit_in_trace(tracer, intervention, donors))
    action = save(tracer.result)
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from nnsight import save
from nnsight.intervention.interleaver import OutOfOrderError
from nnsight.intervention.tracer import InterleavingTracer
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from actlens.errors import HookNeverFired, InterventionError
from actlens.hooks import LensHandle, Receipt
from actlens.interop.nnsight import ACTNNsight, firing_order
from actlens.interventions import Effects, Intervention, SceneRun
from actlens.interventions.network import checked_point, network
from actlens.model.act import HookedACT
from actlens.model.action_queue import Clock
from actlens.scene import Observation, Scene

_NO_ROLLOUT = Clock()


def run_traced(
    traced: ACTNNsight,
    observation: Observation | Scene,
    interventions: Sequence[Intervention],
    donors: Mapping[str, SceneRun] | None = None,
    *,
    advance: Callable[[int], None] = lambda n: None,
) -> Effects:
    """The action chunk under each of the interventions, each in a trace of its own.

    The results are those of `actlens.interventions.run`, which recomputes only what changes and is
    much faster; here they come from whole forwards, with the very bits of plain hooks. Nothing is
    rolled out, so that schedules do not matter.

    Args:
        observation: the one scene to intervene on.
        donors: the runs that sources name, by role.
        advance: told how many interventions were done, for progress bars.

    Raises:
        InterventionError: if an intervention does not fit the network or the donors, or the
            observation is a batch of several.
        HookNameError: if a site does not exist.
    """
    if traced._batch_size(observation) != 1:
        raise InterventionError("Interventions start from one scene at a time, not from a batch.")
    for intervention in interventions:
        _check(traced._module, intervention)
    base, _ = _run(traced, observation, None, {})
    actions = base.new_empty((len(interventions), *base.shape))
    receipts = []
    for number, intervention in enumerate(interventions):
        actions[number], made = _run(traced, observation, intervention, donors or {})
        receipts.append(made)
        advance(1)
    difference = (actions - base).abs().flatten(1).amax(1)
    return Effects(
        actions,
        np.array([sum(one.changed for one in made) for made in receipts], dtype=np.int64),
        np.array([max(one.max_change for one in made) for made in receipts]),
        difference.numpy(force=True),
        np.zeros(len(receipts)),
    )


def edit_in_trace(
    tracer: InterleavingTracer,
    intervention: Intervention,
    donors: Mapping[str, SceneRun] | None = None,
) -> tuple[Receipt, ...]:
    """Make an intervention in a running trace (or invoke) of an `ACTNNsight`.

    The edits are made in the order in which their hook points fire, and what the trace reads
    afterwards must fire after the last of them. In a rollout (`fn="select_action"`) they act at the
    control steps of the schedule; where the action comes from the queue nothing fires.

    Returns:
        One receipt per edit, as `model.receipts` holds them after `as_hooks`.

    Raises:
        InterventionError: if a source does not fit its site or the donors.
        HookNameError: if a site does not exist.
        HookNeverFired: if the run does not reach a site, or is past it already.
    """
    traced = tracer.envoy
    model = traced._module
    handles = _handles(intervention)
    is_control_step = tracer.fn in ("select_action", model.select_action)
    if not is_control_step or model._queue.needs_chunk:
        _edit(traced, intervention, donors or {}, handles, model.clock)
    return tuple(handle.receipt for handle in handles)


def _check(model: HookedACT, intervention: Intervention) -> None:
    """Refuse what the engine refuses."""
    names = set()
    for edit in intervention.edits:
        names.add(name := checked_point(model, edit.site))
        model.hook_point(name).index(edit.site.where)
    network(model, names)  # raises where inference does not pass


def _handles(intervention: Intervention) -> list[LensHandle]:
    """What counts the receipts of its edits; nothing is attached to anything."""
    return [
        LensHandle(RemovableHandle(OrderedDict()), name=edit.site.name)
        for edit in intervention.edits
    ]


@torch.no_grad()
def _run(
    traced: ACTNNsight,
    observation: Observation | Scene,
    intervention: Intervention | None,
    donors: Mapping[str, SceneRun],
) -> tuple[Tensor, tuple[Receipt, ...]]:
    """The normalised action chunk of one trace, and what its edits did."""
    handles = [] if intervention is None else _handles(intervention)
    with traced.trace(observation):
        if intervention is not None:
            _edit(traced, intervention, donors, handles, _NO_ROLLOUT)
        actions = save(traced.hook_actions_normalized.output)
    return actions[0], tuple(handle.receipt for handle in handles)


def _edit(
    traced: ACTNNsight,
    intervention: Intervention,
    donors: Mapping[str, SceneRun],
    handles: Sequence[LensHandle],
    clock: Clock,
) -> None:
    """Make the edits inside the running trace, in the order in which their points fire."""
    points = [traced.point(edit.site.name) for edit in intervention.edits]
    order = firing_order(traced._module)
    for number in sorted(range(len(points)), key=lambda n: order.index(points[n]._module.name)):
        edit, point, handle = intervention.edits[number], points[number], handles[number]
        try:
            before = point.output
        except OutOfOrderError as error:
            raise HookNeverFired(
                f"The run never reached {point._module.name}, or was past it when this trace asked."
            ) from error
        handle.fired += 1
        # The clock is read here: a rollout's moves when the run begins.
        if intervention.schedule.acts_at(clock.control_step):
            step = max(clock.inference_step, 0)
            after = edit.apply(before, point._module, donors, step)
            handle.record(before, after)
            point.output = after
