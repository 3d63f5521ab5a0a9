"""The same interventions as plain hooks: in rollouts, in training, wherever the model runs."""

from functools import partial

from torch import Tensor

from actlens.hooks import HookFunction, HookPoint
from actlens.interventions.intervention import Edit, Intervention, Schedule
from actlens.interventions.sources import Donors
from actlens.model.act import HookedACT


def as_hooks(
    model: HookedACT, intervention: Intervention, donors: Donors | None = None
) -> list[tuple[str, HookFunction]]:
    """One hook for every edit, for `model.hooks(fwd_hooks=…)`; `model.receipts` tells afterwards.

    Inside a rollout (`select_action`) they act at the control steps of the schedule.

    Raises:
        HookNameError: if a site does not exist.
    """
    hooks: list[tuple[str, HookFunction]] = []
    for edit in intervention.edits:
        point = model.hook_point(edit.site.name)
        point.index(edit.site.where)
        hook = partial(_edited, edit=edit, schedule=intervention.schedule, donors=donors or {})
        hooks.append((point.name or "", hook))
    return hooks


def _edited(
    activation: Tensor, hook: HookPoint, *, edit: Edit, schedule: Schedule, donors: Donors
) -> Tensor | None:
    control_step = -1 if hook.clock is None else hook.clock.control_step
    if not schedule.acts_at(control_step):
        return None
    inference_step = 0 if hook.clock is None else max(hook.clock.inference_step, 0)
    return edit.apply(activation, hook, donors, inference_step)
