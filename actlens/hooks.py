"""Named, axis-labelled places in a network where activations can be read or replaced.

The calls and their meaning are TransformerLens' (Nanda and Bloom 2022): `HookPoint`,
`HookedRootModule`, `run_with_hooks`, `run_with_cache`, `hooks()`, levels, permanent hooks. Four
things are mended: a name that matches nothing is an error, a hook that a run never reached is an
error, a cached activation is never overwritten by a later in-place edit, and every hook leaves a
receipt of what it changed. Nothing here knows ACT.
"""

import difflib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actlens.errors import HookNameError, HookNeverFired, HookReturnError

Direction = Literal["fwd", "bwd"]
HookFunction = Callable[..., Tensor | tuple[Tensor, ...] | None]
"""Called as `fn(activation, hook=hook_point)`; returns a replacement, or None to keep (an in-place
edit of `activation` counts as a replacement)."""
NamePredicate = Callable[[str], bool]
NamesFilter = None | str | Iterable[str] | NamePredicate
"""Everything, a name or glob, several of them, or a predicate on names."""

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


class _Reader:
    """A hook function that promises to neither edit nor return: it is handed the tensor itself.

    One reader may sit on many hook points, as one request: of these, at least one must be reached.
    """

    def __init__(self, read: Callable[[Tensor, "HookPoint"], None]):
        self.read = read

    def __call__(self, activation: Tensor, hook: "HookPoint") -> None:
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
        if isinstance(hook, _Reader):
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

        Raises:
            HookNameError: if the activation has no axis of that name, or if an index or span lies
                outside an activation of the given shape.
        """
        if foreign := sorted(where.keys() - set(self.axes)):
            raise HookNameError(
                f"{self.name} has axes ({', '.join(self.axes)}); it has no {', '.join(foreign)}."
            )
        for axis, size in zip(self.axes, () if shape is None else shape, strict=False):
            chosen = where.get(axis)
            outside = isinstance(chosen, int) and not -size <= chosen < size
            # torch would give an empty part, on which every intervention is a silent no-op.
            if outside or (isinstance(chosen, slice) and not range(size)[chosen]):
                shown = f"{chosen.start}:{chosen.stop}" if isinstance(chosen, slice) else chosen
                raise HookNameError(
                    f"{self.name}: axis {axis!r} has {size} entries; {shown} selects none."
                )
        return tuple(where.get(axis, slice(None)) for axis in self.axes)

    def __repr__(self) -> str:
        bits = [] if self.name is None else [f"name={self.name!r}"]
        if self.axes:
            bits.append(f"axes={' '.join(self.axes)!r}")
        for kind, handles in (("fwd", self.fwd_hooks), ("bwd", self.bwd_hooks)):
            if handles:
                bits.append(f"{len(handles)} {kind}")
        return f"HookPoint({', '.join(bits)})"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'a' or 'b'?` for the closest known names, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


@dataclass(frozen=True)
class _Attached:
    """One request of a run: the hooks that one name or predicate led to."""

    direction: Direction
    hook: HookFunction
    pairs: list[tuple[HookPoint, LensHandle]] = field(default_factory=list)


def _check_that_all_fired(attached: Iterable[_Attached]) -> None:
    """Raise if a forward request of a run was never reached; a reader's requests count as one."""
    requests: dict[int, list[tuple[HookPoint, LensHandle]]] = {}
    for number, entry in enumerate(attached):
        if entry.direction == "fwd":
            key = id(entry.hook) if isinstance(entry.hook, _Reader) else number
            requests.setdefault(key, []).extend(entry.pairs)
    for pairs in requests.values():
        if not any(handle.fired for _, handle in pairs):
            names = [point.name or "" for point, _ in pairs]
            raise HookNeverFired(
                f"The model ran but never reached {', '.join(names[:3])}"
                f"{' …' if len(names) > 3 else ''}; the hook there did nothing."
            )


class HookedRootModule(nn.Module):
    """The root of a network with hook points: TransformerLens' calls over kept handles.

    Subclasses build their modules, then call `setup()`.
    """

    name: str | None = None

    def __init__(self, *_args: Any):
        super().__init__()
        self.is_caching = False
        self.context_level = 0
        self.forward_count = 0
        """Runs that came to their end: only then do hooks that never fired mean something."""
        self.mod_dict: dict[str, nn.Module] = {}
        self.hook_dict: dict[str, HookPoint] = {}
        self.hook_aliases: dict[str, str] = {}
        self.receipts: tuple[Receipt, ...] = ()
        """What the hooks of the last `hooks()` block or `run_with_hooks` call did."""

    def setup(self) -> None:
        """Name every hook point by its attribute path, in the order of definition.

        A hook point reachable by a second path keeps the first as its name; the second becomes an
        alias that every call accepts.
        """
        self.mod_dict, self.hook_dict, self.hook_aliases = {}, {}, {}
        canonical: dict[int, str] = {}
        for name, module in self.named_modules(remove_duplicate=False):
            if not name:
                continue
            self.mod_dict[name] = module
            if not isinstance(module, HookPoint):
                continue
            if id(module) in canonical:
                self.hook_aliases[name] = canonical[id(module)]
                continue
            canonical[id(module)] = name
            module.name = name
            self.hook_dict[name] = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        before = self.forward_count
        try:
            output = super().__call__(*args, **kwargs)
        except BaseException:
            self.forward_count = before  # whatever part of it ran to its end
            raise
        self.forward_count = before + 1
        return output

    def hook_points(self) -> Iterable[HookPoint]:
        """All hook points, in the order of definition."""
        return self.hook_dict.values()

    # ── names ────────────────────────────────────────────────────────────────────────────────

    def hook_point(self, name: str) -> HookPoint:
        """The hook point called `name` (an alias is as good).

        Raises:
            HookNameError: if there is none; the message suggests the closest names.
        """
        point = self.hook_dict.get(self.hook_aliases.get(name, name))
        if point is None:
            hint = did_you_mean(name, [*self.hook_dict, *self.hook_aliases])
            raise HookNameError(f"{name!r} is not a hook point.{hint}")
        return point

    def resolve(self, names: NamesFilter) -> list[HookPoint]:
        """The hook points that `names` select, each once, in the order of definition.

        Args:
            names: None (all but on-demand points), an exact name, a glob such as
                `encoder.*.hook_resid_pre`, an iterable of those, or a predicate.

        Raises:
            HookNameError: if a name, a glob or the predicate matches nothing.
        """
        if names is None:
            return [point for point in self.hook_points() if not point.on_demand]
        everything = [*self.hook_dict, *self.hook_aliases]
        if callable(names):
            matched = [self.hook_point(name) for name in everything if names(name)]
            problem = "The predicate matches none of the hook points' names."
        elif not isinstance(names, str):
            matched = [point for name in names for point in self.resolve(name)]
            problem = "An empty list of names selects no hook point."
        elif set(names) & set("*?"):
            matched = [self.hook_point(name) for name in everything if fnmatchcase(name, names)]
            problem = f"{names!r} matches no hook point."
        else:
            return [self.hook_point(names)]
        if not matched:
            hint = did_you_mean(names, everything) if isinstance(names, str) else ""
            raise HookNameError(problem + hint)
        chosen = set(matched)
        return [point for point in self.hook_points() if point in chosen]

    # ── attaching, in TransformerLens' words ─────────────────────────────────────────────────

    def check_hooks_to_add(
        self,
        hook_point: HookPoint,
        hook_point_name: str,
        hook: HookFunction,
        dir: Direction = "fwd",
        is_permanent: bool = False,  # noqa: FBT001, FBT002
        prepend: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        """Override to refuse hooks; the default accepts every one."""

    def check_and_add_hook(
        self,
        hook_point: HookPoint,
        hook_point_name: str,
        hook: HookFunction,
        dir: Direction = "fwd",
        is_permanent: bool = False,  # noqa: FBT001, FBT002
        level: int | None = None,
        prepend: bool = False,  # noqa: FBT001, FBT002
    ) -> LensHandle:
        """Attach `hook` unless `check_hooks_to_add` refuses it."""
        self.check_hooks_to_add(hook_point, hook_point_name, hook, dir, is_permanent, prepend)
        return hook_point.add_hook(hook, dir, is_permanent, level, prepend)

    def add_hook(
        self,
        name: str | NamePredicate,
        hook: HookFunction,
        dir: Direction = "fwd",
        is_permanent: bool = False,  # noqa: FBT001, FBT002
        level: int | None = None,
        prepend: bool = False,  # noqa: FBT001, FBT002
    ) -> tuple[LensHandle, ...]:
        """Attach `hook` to every hook point that `name` selects, until it is removed.

        Raises:
            HookNameError: if `name` selects nothing.
        """
        return tuple(
            self.check_and_add_hook(p, p.name or "", hook, dir, is_permanent, level, prepend)
            for p in self.resolve(name)
        )

    def add_perma_hook(
        self, name: str | NamePredicate, hook: HookFunction, dir: Direction = "fwd"
    ) -> tuple[LensHandle, ...]:
        """Attach a hook that only `including_permanent=True` removes."""
        return self.add_hook(name, hook, dir=dir, is_permanent=True)

    def remove_all_hook_fns(
        self,
        direction: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = False,  # noqa: FBT001, FBT002
        level: int | None = None,
    ) -> None:
        """Remove hooks from every hook point."""
        for point in self.hook_points():
            point.remove_hooks(direction, including_permanent, level)

    def clear_contexts(self) -> None:
        """Forget what hooks stored in any `ctx`."""
        for point in self.hook_points():
            point.clear_context()

    def reset_hooks(
        self,
        clear_contexts: bool = True,  # noqa: FBT001, FBT002
        direction: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = False,  # noqa: FBT001, FBT002
        level: int | None = None,
    ) -> None:
        """Remove all hooks but permanent ones, and forget their contexts."""
        if clear_contexts:
            self.clear_contexts()
        self.remove_all_hook_fns(direction, including_permanent, level)
        self.is_caching = False

    def list_hooks(
        self,
        name_filter: NamesFilter = None,
        dir: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = True,  # noqa: FBT001, FBT002
    ) -> dict[str, list[LensHandle]]:
        """The attached hooks by hook-point name; points without any are left out."""
        points = self.hook_points() if name_filter is None else self.resolve(name_filter)
        found = {
            point.name or "": [
                h
                for h in point._handles(dir)
                if h.matches(including_permanent=including_permanent, level=None)
            ]
            for point in points
        }
        return {name: handles for name, handles in found.items() if handles}

    # ── runs ─────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Iterable[tuple[str | NamePredicate, HookFunction]] = (),
        bwd_hooks: Iterable[tuple[str | NamePredicate, HookFunction]] = (),
        reset_hooks_end: bool = True,  # noqa: FBT001, FBT002
        clear_contexts: bool = False,  # noqa: FBT001, FBT002
    ) -> Generator[Self]:
        """Attach hooks for the length of a `with` block; afterwards `receipts` tells what they did.

        On leaving, exactly the hooks of this block are removed, unless `reset_hooks_end` is False.
        After an exception they are removed in any case.

        Raises:
            HookNameError: if a name selects nothing; nothing stays attached.
            HookNeverFired: if the model ran inside the block and a forward hook was never reached.
        """
        self.context_level += 1
        attached: list[_Attached] = []
        runs = self.forward_count
        try:
            self._attach(fwd_hooks, "fwd", attached)
            self._attach(bwd_hooks, "bwd", attached)
            yield self
            if self.forward_count > runs:
                _check_that_all_fired(attached)
        except BaseException:
            reset_hooks_end = True
            raise
        finally:
            if reset_hooks_end:
                for entry in attached:
                    for point, handle in entry.pairs:
                        point.remove(handle)
                if clear_contexts:
                    self.clear_contexts()
                self.is_caching = False
            self.context_level -= 1
            self.receipts = tuple(h.receipt for entry in attached for _, h in entry.pairs)

    def _attach(
        self,
        requests: Iterable[tuple[str | NamePredicate, HookFunction]],
        direction: Direction,
        attached: list[_Attached],
    ) -> None:
        """Attach at the present level, noting every handle at once in case a later one fails."""
        for name, hook in requests:
            attached.append(entry := _Attached(direction, hook))
            for point in self.resolve(name):
                handle = self.check_and_add_hook(
                    point, point.name or "", hook, direction, level=self.context_level
                )
                entry.pairs.append((point, handle))

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: Iterable[tuple[str | NamePredicate, HookFunction]] = (),
        bwd_hooks: Iterable[tuple[str | NamePredicate, HookFunction]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Run the model once with the hooks attached; `receipts` tells what they did.

        Raises:
            HookNameError: if a name selects nothing.
            HookNeverFired: if the run never reached one of the hooks.
        """
        bwd_hooks = tuple(bwd_hooks)
        if bwd_hooks and reset_hooks_end:
            warnings.warn(
                "The backward hooks are removed before a backward pass can reach them: pass "
                "reset_hooks_end=False, or use the hooks() block.",
                stacklevel=2,
            )
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self(*model_args, **model_kwargs)

    def get_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,  # noqa: FBT001, FBT002
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,  # noqa: FBT001, FBT002
        cache: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], list[tuple[str, HookFunction]], list[tuple[str, HookFunction]]]:
        """Hooks that store detached activations (and gradients, under `name + "_grad"`).

        Activations are stored by reference: later edits work on copies of their own. Of each name,
        glob or predicate in `names_filter`, a run must reach at least one point, so that
        "everything" may include parts that the run does not use.

        Returns:
            The dictionary they fill, the forward hooks, and the backward hooks.
        """
        store: dict[str, Tensor] = {} if cache is None else cache

        def keep(suffix: str, activation: Tensor, hook: HookPoint) -> None:
            kept = activation.detach().to(device)
            if suffix:
                kept = kept.clone()  # autograd may go on to sum into a gradient's memory
            batched = hook.axes[:1] in ((), ("batch",))
            if remove_batch_dim and batched and kept.ndim and kept.shape[0] == 1:
                kept = kept[0]
            store[f"{hook.name}{suffix}"] = kept

        one = names_filter is None or callable(names_filter) or isinstance(names_filter, str)
        readers: dict[str, HookFunction] = {}
        for request in (names_filter,) if one else tuple(names_filter):
            reader = _Reader(partial(keep, ""))
            for point in self.resolve(request):
                readers.setdefault(point.name or "", reader)
        if not readers:
            raise HookNameError("An empty list of names selects no hook point.")
        backward = _Reader(partial(keep, GRAD_SUFFIX))
        self.is_caching = True
        return (
            store,
            list(readers.items()),
            [(name, backward) for name in readers] if incl_bwd else [],
        )

    def add_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,  # noqa: FBT001, FBT002
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,  # noqa: FBT001, FBT002
        cache: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Attach caching hooks that stay until `reset_hooks`; the dictionary they fill."""
        store, forward, backward = self.get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim, cache
        )
        for direction, requests in (("fwd", forward), ("bwd", backward)):
            for name, hook in requests:
                self.hook_point(name).add_hook(hook, direction)
        return store

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> tuple[Any, Mapping[str, Tensor]]:
        """Run the model once and keep the activations that `names_filter` selects.

        Args:
            names_filter: None keeps every point but the on-demand ones.
            device: where to keep them; None leaves them where they are.
            remove_batch_dim: drop a batch axis of length one from what is kept.
            incl_bwd: also call `backward()` on the (scalar) output and keep gradients.

        Raises:
            HookNameError: if `names_filter` selects nothing.
            HookNeverFired: if a name that was asked for exactly was never reached.
        """
        store, forward, backward = self.get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim
        )
        with self.hooks(forward, backward, reset_hooks_end, clear_contexts):
            output = self(*model_args, **model_kwargs)
            if incl_bwd:
                output.backward()
        self.is_caching = not reset_hooks_end
        if isinstance(output, Tensor):
            # The caller may go on to edit the output in place; the cache keeps a copy of its own.
            memory = output.untyped_storage().data_ptr()
            for name, kept in store.items():
                if kept.untyped_storage().data_ptr() == memory:
                    store[name] = kept.clone()
        return output, store

    def cache_all(
        self,
        cache: dict[str, Tensor] | None,
        incl_bwd: bool = False,  # noqa: FBT001, FBT002
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        """TransformerLens' old name for `add_caching_hooks` of everything but on-demand points."""
        self.add_caching_hooks(None, incl_bwd, device, remove_batch_dim, cache)

    def cache_some(
        self,
        cache: dict[str, Tensor] | None,
        names: NamePredicate,
        incl_bwd: bool = False,  # noqa: FBT001, FBT002
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        """TransformerLens' old name for `add_caching_hooks` with a predicate."""
        self.add_caching_hooks(names, incl_bwd, device, remove_batch_dim, cache)
