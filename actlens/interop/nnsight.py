"""nnsight's tracing over a HookedACT: interventions written as plain assignments.

    traced = ACTNNsight(model)
    with traced.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(clean):
            memory = traced.encoder.hook_out.output
            barrier()
        with tracer.invoke(corrupt):
            barrier()
            traced.encoder.hook_out.output = memory
            actions = nnsight.save(traced.hook_actions.output)

Every hook point is there as `.output`, to be read and assigned in the order in which they fire;
the results equal those of hooks bit for bit. Importing this module imports nnsight, which gives
every Python object a `.save`, patches `Tensor.backward` and takes seconds; `import actlens` never
does.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from nnsight import Envoy, NNsight, save
from nnsight.intervention.batching import Batcher
from nnsight.intervention.interleaver import Interleaver, OutOfOrderError
from nnsight.intervention.source import STATE as WRAPPED
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actlens.errors import HookNameError, HookNeverFired, SceneError
from actlens.hooks import HookPoint, LensHandle, Receipt
from actlens.model.act import HookedACT
from actlens.scene import Observation, Scene

_BATCHED_AXES = {"action": 3, "action_is_pad": 2}
"""Options that may come without a batch axis, as observations may, and their axes with one."""


def sharing_copy(module: nn.Module, copies: dict[int, nn.Module] | None = None) -> Any:
    """The same module tree in new module objects, over the same parameters, buffers and hooks.

    nnsight replaces `forward` on the modules it wraps and never puts it back: here it may. Weight
    edits, `load_state_dict`, `to()` and hooks on either tree act on both, since the dictionaries
    that hold them are shared; plain attributes are those of the moment of copying.

    Args:
        copies: filled with the copies by the `id` of what they copy.
    """
    copies = {} if copies is None else copies
    if id(module) not in copies:
        twin = copies[id(module)] = copy.copy(module)
        twin.__dict__ = dict(module.__dict__)
        if twin.__dict__.pop(WRAPPED, None) is not None:
            del twin.__dict__["forward"]  # nnsight's, over the original's children
        twin._modules = {
            name: None if child is None else sharing_copy(child, copies)
            for name, child in module._modules.items()
        }
    return copies[id(module)]


def _the_originals(name: str) -> Any:
    """An attribute that a copy reads and sets on the model it was copied from."""
    return property(
        lambda twin: getattr(twin.original[0], name),
        lambda twin, value: setattr(twin.original[0], name, value),
    )


class _OneWithItsOriginal:
    """Runs of the copy count as the model's own, for its hooks' checks and for its rollouts."""

    original: tuple[HookedACT]  # a tuple, so that torch does not take it for a submodule

    forward_count = _the_originals("forward_count")
    _queue = _the_originals("_queue")


class _TracedPoint(HookPoint):
    """A hook point under nnsight: what a trace writes is checked as what a hook returns is."""

    interleaver: Interleaver
    location: str

    def __call__(self, x: Tensor) -> Tensor:
        """Return the activation, as traces and then hooks leave it."""
        if self.axes[0] != "batch" and self.interleaver.batcher is not None:
            self.interleaver.batcher.whole.append(x)
        read = self.interleaver.interleaving and self.location in self.interleaver.parked
        y = super().__call__(x)
        if y is not x:
            return self._checked(y, x)
        # What is derived on demand counts as unused, and gets no gradient, while it stays the same.
        return x.view_as(x) if read and self.on_demand and x.requires_grad else x


class _RowBatcher(Batcher):
    """Which rows of an activation an invoke sees; nnsight knows a batch by its size alone."""

    def __init__(self, envoy: Envoy, kwargs: dict[str, Any] | None = None):
        super().__init__(envoy, kwargs)
        self.whole: list[Tensor] = []
        """Activations without a batch axis, whatever their size."""

    def _narrow_tensor(self, tensor: Tensor, group: list[int]) -> Tensor:
        if any(tensor is one for one in self.whole):
            return tensor
        rows = super()._narrow_tensor(tensor, group)
        base = rows._base
        if rows is not tensor and base is not None and base.grad_fn is not None:
            # nnsight finds the rows of a gradient where they lie in the activation's memory, but
            # autograd promises gradients no layout.
            layout = (base.shape, base.stride(), base.storage_offset())
            base.register_hook(partial(_laid_out, layout=layout))
        return rows

    def _widen_tensor(self, full: Tensor, group: list[int], edited: Tensor) -> Tensor:
        if any(full is one for one in self.whole):
            self.whole.append(edited)
            return edited
        return super()._widen_tensor(full, group, edited)


def _laid_out(
    grad: Tensor, *, layout: tuple[Sequence[int], Sequence[int], int]
) -> Float[Tensor, "..."]:
    """The gradient in memory of the given shape, strides and offset."""
    shape, strides, offset = layout
    if (grad.stride(), grad.storage_offset()) == (strides, offset):
        return grad
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return grad.new_empty(offset + last + 1).as_strided(shape, strides, offset).copy_(grad)


class ACTNNsight(NNsight):
    """A HookedACT under nnsight; the model that was passed in stays as it is.

    Several `invoke`s share one forward, each with an observation or a scene of its own (batched or
    not), and see their own rows of every activation (`embed.hook_pos` has none: what one invoke
    writes there, all get). A wrapped model always computes its on-demand points and explicit
    attention, because any of them might be read; it runs in the mode (`train`, `eval`) that the
    model is in, and its runs and rollouts (`fn="select_action"`) are the model's own. An edit
    through nnsight comes before the hooks on the same point. Editing in place (`….output[:] = 0`)
    also changes what other points, and values saved before, hold of the same tensor: assign
    instead.
    """

    _batcher_class = _RowBatcher

    def __init__(self, model: HookedACT):
        copies: dict[int, nn.Module] = {}
        twin = sharing_copy(model, copies)
        twin.__class__ = type(type(model).__name__, (_OneWithItsOriginal, type(model)), {})
        twin.original = (model,)
        twin.setup()
        super().__init__(twin)
        self._originals = [(copies[id(module)], module) for module in model.modules()]
        for point in twin.hook_points():
            point.__class__ = _TracedPoint
            point.interleaver = self.interleaver
            point.location = f"{self.interleaver.envoys[id(point)].path}.output"

    def point(self, address: str) -> Envoy:
        """The hook point called `address` (an alias is as good); its `.output` is the activation.

        Raises:
            HookNameError: if there is none; the message suggests the closest names.
        """
        # Not by its path: a camera may be called as one of nnsight's own attributes is.
        return self.interleaver.envoys[id(self._module.hook_point(address))]

    def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
        """Rows that one invoke contributes; nnsight calls this."""
        found, _ = _split(inputs, kwargs)
        return 0 if found is None else _count_rows(self._module.entries(found))

    def _batch(self, invokes: list[tuple], fn: Any) -> tuple:
        """All invokes' observations as one batch; nnsight calls this before every run."""
        for twin, module in self._originals:
            twin.training = module.training
        if not invokes:
            return (), {}
        given = [_split(inputs, kwargs) for inputs, kwargs in invokes]
        observations = [self._module.entries(found) for found, _ in given]
        if len(given) == 1:
            return (observations[0],), given[0][1]
        weight = self._module.action_head.weight
        images = {camera.key for camera in self._module.config.cameras}
        batch = {
            key: _stacked([o[key] for o in observations], weight if key in images else None)
            for key in observations[0]
        }
        return (batch,), _joined([options for _, options in given], map(_count_rows, observations))


def _split(inputs: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """An invoke's observation (or None) and its options."""
    options = {name: value for name, value in kwargs.items() if value is not None}
    found = [*inputs, *([options.pop("observation")] if "observation" in options else [])]
    if len(found) > 1 or (found and isinstance(found[0], list | tuple)):
        raise SceneError("One observation or scene at a time: open a tracer.invoke(…) for each.")
    return (found[0] if found else None), options


def _count_rows(entries: Mapping[str, Tensor]) -> int:
    return len(next(iter(entries.values())))


def _stacked(values: Sequence[Tensor], image_like: Tensor | None) -> Tensor:
    """The invokes' rows below each other; images as bytes and as floats 0..1 may meet."""
    if image_like is not None and len({value.dtype for value in values}) > 1:
        values = [v.to(image_like) / 255 if v.dtype == torch.uint8 else v for v in values]
    return torch.cat(list(values))


def _joined(options: Sequence[Mapping[str, Any]], rows: Iterable[int]) -> dict[str, Any]:
    """The invokes' keyword arguments (latent, action, action_is_pad), row by row."""
    parts: dict[str, list[Tensor]] = {name: [] for option in options for name in option}
    for option, n in zip(options, rows, strict=True):
        for name, part in parts.items():
            if name not in option:
                raise SceneError(f"{name} must be given in every invoke of a forward, or in none.")
            value = torch.as_tensor(option[name])
            if value.ndim == _BATCHED_AXES.get(name, 0) - 1:
                value = value[None]
            if value.shape[:1] != (n,):
                raise SceneError(
                    f"{name} has shape {tuple(value.shape)}; its invoke's observation has {n} rows."
                )
            part.append(value)
    return {name: torch.cat(part) for name, part in parts.items()}


def firing_order(model: HookedACT) -> list[str]:
    """Every hook point's name, in the order in which a run with an action chunk reaches them."""

    def part(name: str) -> int:
        if name == "vae.hook_tokens":  # defined after the layers that it enters
            return 0
        return 1 if name.startswith("vae.") else 2

    return sorted(model.hook_dict, key=part)


@dataclass(frozen=True)
class PatchedScenes:
    """What one forward over two scenes gave: the donor's own actions, and the patched ones."""

    donor: Float[Tensor, "batch chunk joint"]
    patched: Float[Tensor, "batch chunk joint"]
    receipts: tuple[Receipt, ...]
    """One per address: how many elements the patch changed, and by how much at most."""


def patch_between_scenes(
    traced: ACTNNsight,
    donor: Observation | Scene,
    base: Observation | Scene,
    addresses: Sequence[str],
) -> PatchedScenes:
    """Run both scenes in one forward and put the donor's activations into the base's rows.

    Args:
        addresses: hook points or parts of them, such as `encoder.hook_out` or
            `encoder.1.hook_resid_pre[top]`.

    Raises:
        HookNameError: if an address names nothing, or there is none.
        HookNeverFired: if an inference never reaches a hook point.
        SceneError: if the scenes do not fit the policy or each other's batch size.
    """
    model = traced._module
    if not addresses:
        raise HookNameError("An empty list of addresses patches nothing.")
    if traced._batch_size(donor) != traced._batch_size(base):
        raise SceneError("The donor and the base must have the same number of rows.")
    firing = firing_order(model)
    sites = [model.site(address) for address in addresses]
    # nnsight reads in the order of firing.
    order = sorted(range(len(sites)), key=lambda number: firing.index(sites[number].name))
    taken: list[Tensor] = []
    handles = [LensHandle(RemovableHandle(OrderedDict()), name=address) for address in addresses]
    try:
        with torch.no_grad(), traced.trace() as tracer:
            barriers = [tracer.barrier(2) for _ in order]
            with tracer.invoke(donor):
                for number, barrier in zip(order, barriers, strict=True):
                    taken.append(traced.point(sites[number].name).output)
                    barrier()
                donor_actions = save(traced.hook_actions.output)
            with tracer.invoke(base):
                for step, number in enumerate(order):
                    barriers[step]()
                    point = traced.point(sites[number].name)
                    before = point.output
                    after = before.clone()
                    index = point._module.index(sites[number].where, before.shape)
                    after[index] = taken[step][index]
                    handles[number].fired += 1
                    handles[number].record(before, after)
                    point.output = after
                patched = save(traced.hook_actions.output)
    except OutOfOrderError as error:
        missed = addresses[order[len(taken)]]
        raise HookNeverFired(f"The model ran but never reached {missed}.") from error
    return PatchedScenes(donor_actions, patched, tuple(handle.receipt for handle in handles))
