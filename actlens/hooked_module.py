"""The root of a network with hook points: names, temporary hooks, caches, TransformerLens' way.

The calls and their meaning are TransformerLens' (Nanda and Bloom 2022): `run_with_hooks`,
`run_with_cache`, `hooks()`, levels, permanent hooks. Two things are mended: a name that matches
nothing is an error, and so is a hook that a run never reached. Nothing here knows ACT.
"""

import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from actlens.errors import HookNameError, HookNeverFired
from actlens.hooks import (
    GRAD_SUFFIX,
    Direction,
    HookFunction,
    HookPoint,
    LensHandle,
    Reader,
    Receipt,
)
from actlens.text import did_you_mean

NamePredicate = Callable[[str], bool]
NamesFilter = None | str | Iterable[str] | NamePredicate
"""Everything, a name or glob, several of them, or a predicate on names."""


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
            key = id(entry.hook) if isinstance(entry.hook, Reader) else number
            requests.setdefault(key, []).extend(entry.pairs)
    for pairs in requests.values():
        if not any(handle.fired for _, handle in pairs):
            names = [point.name or "" for point, _ in pairs]
            raise HookNeverFired(
                f"The model ran but never reached {', '.join(names[:3])}"
                f"{' …' if len(names) > 3 else ''}; the hook there did nothing."
            )


def copy_what_shares_memory(output: Tensor, store: dict[str, Tensor]) -> None:
    """Give the cache copies of its own of what it shares with the output.

    The caller may go on to edit the output in place.
    """
    memory = output.untyped_storage()._cdata  # unlike data_ptr, known of tensors without data too
    for name, kept in store.items():
        if kept.untyped_storage()._cdata == memory:
            store[name] = kept.clone()


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
            reader = Reader(partial(keep, ""))
            for point in self.resolve(request):
                readers.setdefault(point.name or "", reader)
        if not readers:
            raise HookNameError("An empty list of names selects no hook point.")
        backward = Reader(partial(keep, GRAD_SUFFIX))
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
            copy_what_shares_memory(output, store)
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
