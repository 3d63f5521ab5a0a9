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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from nnsight import Envoy, NNsight, save
from torch import Tensor, nn

from actlens.errors import HookNameError, SceneError
from actlens.hooks import Receipt
from actlens.model.act import HookedACT
from actlens.scene import Observation, Scene
from actlens.sites import parse_where, split_address


def sharing_copy(module: nn.Module, copies: dict[int, nn.Module] | None = None) -> Any:
    """The same module tree in new module objects, over the same parameters, buffers and hooks.

    nnsight replaces `forward` on the modules it wraps and never puts it back: here it may. Weight
    edits, `load_state_dict`, `to()` and hooks on either tree act on both, since the dictionaries
    that hold them are shared; `train()`, `eval()` and `fused_attention` act on one.
    """
    copies = {} if copies is None else copies
    if id(module) not in copies:
        twin = copies[id(module)] = copy.copy(module)
        twin.__dict__ = dict(module.__dict__)
        twin._modules = {
            name: None if child is None else sharing_copy(child, copies)
            for name, child in module._modules.items()
        }
    return copies[id(module)]


class ACTNNsight(NNsight):
    """A HookedACT under nnsight; the model that was passed in stays as it is.

    Several `invoke`s share one forward, each with an observation or a scene of its own (batched or
    not), and see their own rows of every activation. A wrapped model always computes its on-demand
    points and explicit attention, because any of them might be read. An edit through nnsight comes
    before the hooks on the same point. Editing in place (`….output[:] = 0`) also changes what other
    points hold of the same tensor: assign instead.
    """

    def __init__(self, model: HookedACT):
        twin = sharing_copy(model)
        twin.setup()
        super().__init__(twin)

    def point(self, address: str) -> Envoy:
        """The hook point called `address` (an alias is as good); its `.output` is the activation.

        Raises:
            HookNameError: if there is none; the message suggests the closest names.
        """
        name = self._module.hook_point(address).name
        return self.get(name)

    def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
        """Rows that one invoke contributes; nnsight calls this."""
        found = inputs[0] if inputs else kwargs.get("observation")
        if found is None:
            return 0
        return len(next(iter(self._module.entries(found).values())))

    def _batch(self, invokes: list[tuple], fn: Any) -> tuple:
        """All invokes' observations as one batch; nnsight calls this."""
        if not invokes:
            return (), {}
        observations, options = [], []
        for inputs, kwargs in invokes:
            given = dict(kwargs)
            found = inputs[0] if inputs else given.pop("observation")
            observations.append(self._module.entries(found))
            options.append(given)
        batch = {key: _stacked([o[key] for o in observations]) for key in observations[0]}
        rows = len(next(iter(batch.values())))
        if len(invokes) > 1 and rows == self._module.config.n_tokens:
            raise SceneError(
                f"{rows} rows cannot be told from {rows} tokens: nnsight knows a batch by its size "
                "alone. Add or leave out a row."
            )
        return (batch,), _joined(options)


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """The invokes' rows below each other; images as bytes and as floats 0..1 may meet."""
    if len({value.dtype for value in values}) > 1:
        values = [value / 255 if value.dtype == torch.uint8 else value for value in values]
    return torch.cat(list(values))


def _joined(options: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The invokes' keyword arguments (latent, action, action_is_pad), row by row."""
    joined: dict[str, Any] = {}
    for name in dict.fromkeys(name for option in options for name in option):
        given = [option.get(name) for option in options]
        if len(given) > 1 and any(value is None for value in given):
            raise SceneError(f"{name} must be given in every invoke of a forward, or in none.")
        joined[name] = (
            given[0] if len(given) == 1 else torch.cat([v for v in given if v is not None])
        )
    return joined


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
        SceneError: if the scenes do not fit the policy or each other's batch size.
    """
    model = traced._module
    if not addresses:
        raise HookNameError("An empty list of addresses patches nothing.")
    if traced._batch_size(donor) != traced._batch_size(base):
        raise SceneError("The donor and the base must have the same number of rows.")
    wanted = []
    for address in addresses:
        name, selectors = split_address(address)
        point = model.hook_point(name)
        wanted.append((address, point, parse_where(selectors, point, model.tokens)))
    order = {point: number for number, point in enumerate(model.hook_points())}
    wanted.sort(key=lambda entry: order[entry[1]])  # nnsight reads in the order of firing
    taken: list[Tensor] = []
    receipts: dict[str, Receipt] = {}
    with torch.no_grad(), traced.trace() as tracer:
        barriers = [tracer.barrier(2) for _ in wanted]
        with tracer.invoke(donor):
            for (_, point, _), barrier in zip(wanted, barriers, strict=True):
                taken.append(traced.get(point.name).output)
                barrier()
            donor_actions = save(traced.hook_actions.output)
        with tracer.invoke(base):
            for number, (address, point, where) in enumerate(wanted):
                barriers[number]()
                before = traced.get(point.name).output
                after = before.clone()
                index = point.index(where, before.shape)
                after[index] = taken[number][index]
                change = (after - before).abs()
                changed, most = int((change != 0).sum()), float(change.max())
                receipts[address] = Receipt(address, 1, changed, most)
                traced.get(point.name).output = after
            patched = save(traced.hook_actions.output)
    return PatchedScenes(donor_actions, patched, tuple(receipts[a] for a in addresses))
