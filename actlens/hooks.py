"""Named, axis-labelled places in a network where activations can be read or replaced.

`HookPoint` is TransformerLens' (Nanda and Bloom 2022), with two things mended: a hook edits a copy
of its own, so that nothing cached is ever overwritten, and it leaves a receipt of what it changed.
Nothing here knows ACT.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actlens.errors import HookNameError, HookReturnError

Direction = Literal["fwd", "bwd"]
HookFunction = Callable[..., Tensor | tuple[Tensor, ...] | None]
"""Called as `fn(activation, hook=hook_point)`; returns a replacement, or None to keep (an in-place
edit of `activation` counts as a replacement)."""

GRAD_SUFFIX = "_grad"


@dataclass(frozen=True)
class Receipt:
    """What one hook did at one hook point: proof that an intervention happened.

    `fired` counts calls; `changed` counts elements whose value differed afterwards, over all calls;
    `max_change` is the largest absolute change at the site, `max_output_change` the largest change
    of the model's output against a run without it (None where no such run was made).
    """

    name: str
    fired: int
    changed: int
    max_change: float
    max_output_change: float | None = None


@dataclass
class LensHandle:
    """One attached hook: torch's handle, TransformerLens' bookkeeping, and the receipt so far."""

    hook: RemovableHandle
    is_permanent: bool = False
    context_level: int | None = None
    user_hook: HookFunction | None = None
    name: str = ""
    fired: int = 0
    # Tensors once something was compared: reading them at every call would make a GPU wait.
    changed: int | Tensor = 0
    max_change: float | Tensor = 0.0

    @property
    def receipt(self) -> Receipt:
        """What this hook has done since it was attached."""
        return Receipt(self.name, self.fired, int(self.changed), float(self.max_change))

    def record(self, before: Tensor, after: Tensor) -> None:
        """Count what one call changed. Infinities and NaNs that stayed are no change."""
        if not before.numel():
            return
        with torch.no_grad():
            both_nan = (before != before) & (after != after)
            different = (after != before) & ~both_nan
            change = torch.where(different, (after - before).abs(), 0).max()
            self.changed = self.changed + different.sum()
            self.max_change = change.maximum(torch.as_tensor(self.max_change).to(change))

    def matches(self, *, including_permanent: bool, level: int | None) -> bool:
        """Whether a query or removal with this scope applies to the handle."""
        if self.is_permanent and not including_permanent:
            return False
        return level is None or self.context_level == level


class Reader:
    """A hook function that promises to neither edit nor return: it is handed the tensor itself.

    One reader may sit on many hook points, as one request: of these, at least one must be reached.
    """

    def __init__(self, read: Callable[[Tensor, "HookPoint"], None]):
        self.read = read

    def __call__(self, activation: Tensor, hook: "HookPoint") -> None:
        """Show the activation (or gradient) to `read`."""
        self.read(activation, hook)


class HookPoint(nn.Module):
    """The identity, with a name and named axes; the only place where hooks attach.

    Args:
        axes: the activation's axes, such as `"batch head query token"`: edits index by them,
            results are labelled by them, and the table in the docs is printed from them.
        on_demand: the activation is derived only when somebody looks (per-head writes, LayerNorm
            internals); "cache everything" leaves such points out.
    """

    def __init__(self, axes: str = "", *, on_demand: bool = False):
        super().__init__()
        self.axes = tuple(axes.split())
        self.on_demand = on_demand
        self.name: str | None = None
        self.ctx: dict[Any, Any] = {}
        self.clock: Any = None  # where a rollout stands, on models that act over time
        self.fwd_hooks: list[LensHandle] = []
        self.bwd_hooks: list[LensHandle] = []
        if len(set(self.axes)) < len(self.axes):
            raise HookNameError(f"Axis names must be distinct, got {axes!r}.")

    def __call__(self, x: Tensor) -> Tensor:
        """Return the activation, as the hooks (if any) leave it."""
        # nn.Module's own __call__ costs several times the 0.1 microseconds of this test.
        return super().__call__(x) if self.is_watched else x

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation unchanged; hooks act on the result."""
        return x

    @property
    def is_watched(self) -> bool:
        """Whether anything, ours or torch's or nnsight's, would see the activation."""
        state = self.__dict__
        return bool(
            state["_forward_hooks"]
            or state["_backward_hooks"]
            or state["_forward_pre_hooks"]
            or state["_backward_pre_hooks"]
            or "forward" in state  # nnsight replaces `forward` on the instance
        )

    def add_hook(
        self,
        hook: HookFunction,
        dir: Direction = "fwd",
        is_permanent: bool = False,  # noqa: FBT001, FBT002  TransformerLens' own signature
        level: int | None = None,
        prepend: bool = False,  # noqa: FBT001, FBT002
    ) -> LensHandle:
        """Attach `hook`; forward hooks see the activation, backward hooks its gradient.

        Hooks fire in the order of attachment, `prepend`ed ones first.

        Raises:
            ValueError: if `dir` is neither "fwd" nor "bwd".
        """
        if dir not in ("fwd", "bwd"):
            raise ValueError(f"Invalid direction {dir}: use 'fwd' or 'bwd'.")
        handle = LensHandle(
            RemovableHandle(OrderedDict()), is_permanent, level, hook, self.name or "hook point"
        )
        if dir == "fwd":
            run = partial(self._run_forward_hook, handle, hook)
            handle.hook = self.register_forward_hook(run, prepend=prepend)
        else:
            run = partial(self._run_backward_hook, handle, hook)
            handle.hook = self.register_full_backward_hook(run, prepend=prepend)
        handles = self.fwd_hooks if dir == "fwd" else self.bwd_hooks
        handles.insert(0, handle) if prepend else handles.append(handle)
        return handle

    def _run_forward_hook(
        self, handle: LensHandle, hook: HookFunction, _module: nn.Module, _args: Any, x: Tensor
    ) -> Tensor | None:
        return self._run_hook(handle, hook, x)

    def _run_backward_hook(
        self, handle: LensHandle, hook: HookFunction, _module: nn.Module, _grad_in: Any, grad: Any
    ) -> tuple[Tensor] | None:
        result = self._run_hook(handle, hook, grad[0])
        return None if result is None else (result,)

    def _run_hook(self, handle: LensHandle, hook: HookFunction, x: Tensor) -> Tensor | None:
        """What stands in for `x` (an activation or a gradient) after the hook; None keeps `x`."""
        handle.fired += 1
        if isinstance(hook, Reader):
            hook(x, self)
            return None
        # The hook gets a private copy: what others hold of `x` stays as it was.
        private = x.clone()
        # Inference tensors do not count their versions, so they are compared in any case.
        version = None if private.is_inference() else private._version
        result = hook(private, hook=self)
        if result is None:
            result = private
            if version is not None and private._version == version:
                return result  # read only; still in the graph, so that retain_grad() works
        elif isinstance(result, tuple) and len(result) == 1:
            (result,) = result  # what torch's own backward hooks return
        replacement = self._checked(result, x)
        handle.record(x, replacement)
        return replacement

    def _checked(self, result: Any, x: Tensor) -> Tensor:
        """Refuse what cannot stand in for `x`: torch would broadcast it, or fail further on."""
        if not isinstance(result, Tensor):
            raise HookReturnError(
                f"A hook on {self.name} returned {type(result).__name__}: return a tensor, or None "
                "to keep the activation."
            )
        for what in ("shape", "dtype", "device"):
            got, needed = getattr(result, what), getattr(x, what)
            if got != needed:
                shown = (tuple(got), tuple(needed)) if what == "shape" else (got, needed)
                axes = f" ({', '.join(self.axes)})" if self.axes and what == "shape" else ""
                raise HookReturnError(
                    f"A hook on {self.name} returned {what} {shown[0]}; the activation has "
                    f"{what} {shown[1]}{axes}."
                )
        return result

    def add_perma_hook(self, hook: HookFunction, dir: Direction = "fwd") -> LensHandle:
        """Attach a hook that only `including_permanent=True` removes."""
        return self.add_hook(hook, dir=dir, is_permanent=True)

    def _handles(self, dir: str) -> list[LensHandle]:
        try:
            return {
                "fwd": self.fwd_hooks,
                "bwd": self.bwd_hooks,
                "both": self.fwd_hooks + self.bwd_hooks,
            }[dir]
        except KeyError:
            raise ValueError(f"Invalid direction {dir}: use 'fwd', 'bwd' or 'both'.") from None

    def has_hooks(
        self,
        dir: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = True,  # noqa: FBT001, FBT002
        level: int | None = None,
    ) -> bool:
        """Whether a hook with this direction, permanence and context level is attached."""
        return any(
            h.matches(including_permanent=including_permanent, level=level)
            for h in self._handles(dir)
        )

    def remove_hooks(
        self,
        dir: Literal["fwd", "bwd", "both"] = "fwd",
        including_permanent: bool = False,  # noqa: FBT001, FBT002
        level: int | None = None,
    ) -> None:
        """Remove the hooks that match; note TransformerLens' default direction, forward only."""
        for handle in list(self._handles(dir)):
            if handle.matches(including_permanent=including_permanent, level=level):
                self.remove(handle)

    def remove(self, handle: LensHandle) -> None:
        """Remove exactly one attached hook; a handle that is already gone is no error."""
        handle.hook.remove()
        for handles in (self.fwd_hooks, self.bwd_hooks):
            for i, attached in enumerate(handles):
                if attached is handle:
                    del handles[i]
                    return

    def clear_context(self) -> None:
        """Forget what hooks stored in `ctx`."""
        self.ctx = {}

    def layer(self) -> int:
        """The layer number in names of the form `encoder.{layer}.…`."""
        if self.name is None:
            raise ValueError("Name cannot be None")
        return int(self.name.split(".")[1])

    def index(
        self, where: Mapping[str, Any], shape: Sequence[int] | None = None
    ) -> tuple[Any, ...]:
        """The positional index that `where`, keyed by axis name, stands for.

        Values are numbers, slices, or sequences of numbers; sequences on several axes select all
        their combinations.

        Raises:
            HookNameError: if the activation has no axis of that name, or if an index or span lies
                outside an activation of the given shape, selects nothing, or is named twice.
        """
        if foreign := sorted(where.keys() - set(self.axes)):
            raise HookNameError(
                f"{self.name} has axes ({', '.join(self.axes)}); it has no {', '.join(foreign)}."
            )
        for axis, size in zip(self.axes, () if shape is None else shape, strict=False):
            chosen = where.get(axis, slice(None))
            # torch would give an empty part, on which every intervention is a silent no-op.
            if isinstance(chosen, slice):
                outside, shown = not range(size)[chosen], f"{chosen.start}:{chosen.stop}"
            else:
                entries = (chosen,) if isinstance(chosen, int) else tuple(chosen)
                wrong = [i for i in entries if not -size <= i < size]
                outside = not entries or bool(wrong)
                shown = ", ".join(map(str, wrong)) or "an empty set"
                if len({i % size for i in entries}) < len(entries) and not outside:
                    raise HookNameError(
                        f"{self.name}: the set on axis {axis!r} names an entry twice: {entries}."
                    )
            if outside:
                raise HookNameError(
                    f"{self.name}: axis {axis!r} has {size} entries; {shown} selects none."
                )
        index = [where.get(axis, slice(None)) for axis in self.axes]
        sets = [i for i, chosen in enumerate(index) if not isinstance(chosen, int | slice)]
        if len(sets) > 1 and shape is not None:
            # Sets with a span in between would move to the front: make the span a set as well.
            for i in range(sets[0], sets[-1]):
                if isinstance(span := index[i], slice):
                    index[i] = range(shape[i])[span]
            sets = [i for i, chosen in enumerate(index) if not isinstance(chosen, int | slice)]
        for order, i in enumerate(sets):
            # Each set lies along an axis of its own, so that torch takes every combination.
            alone = [-1 if other == order else 1 for other in range(len(sets))]
            index[i] = torch.as_tensor(list(index[i])).reshape(alone)
        return tuple(index)

    def __repr__(self) -> str:
        bits = [] if self.name is None else [f"name={self.name!r}"]
        if self.axes:
            bits.append(f"axes={' '.join(self.axes)!r}")
        for kind, handles in (("fwd", self.fwd_hooks), ("bwd", self.bwd_hooks)):
            if handles:
                bits.append(f"{len(handles)} {kind}")
        return f"HookPoint({', '.join(bits)})"
