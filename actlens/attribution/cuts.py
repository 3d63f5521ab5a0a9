"""What is attributed: hook points, each cut into sites along some of its axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Self

import numpy as np

from actlens.config import ACTConfig
from actlens.errors import HookNameError, InterventionError
from actlens.hooked_module import NamesFilter
from actlens.hooks import HookPoint
from actlens.interventions.network import network
from actlens.model.act import HookedACT
from actlens.sites import Site

START = "embed.hook_tokens"
"""Gradients reach back to here: what lies before (the ResNet) is neither run again nor attributed.
"""
_APART = ("token", "query", "chunk", "head", "neuron")


@dataclass(frozen=True)
class Cut:
    """One hook point's activation cut into sites, one for every combination of entries on `axes`.

    Without axes the whole activation is one site.
    """

    hook: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    """Entries on each of the axes."""
    depth: int
    """The encoder block it lies in; the number of encoder layers for the decoder's."""

    @classmethod
    def of(cls, model: HookedACT, hook: str, axes: Sequence[str] = ()) -> Self:
        """The cut of a hook point along some of its axes.

        Raises:
            HookNameError: if there is no such hook point, or it has no such axis.
            InterventionError: if its sites cannot be attributed.
        """
        point = model.hook_point(hook)
        _require_attributable(model, [point])
        if foreign := set(axes) - set(_inner_axes(point)):
            raise HookNameError(
                f"{point.name} is cut along ({', '.join(_inner_axes(point))}); "
                f"it has no {', '.join(sorted(foreign))}."
            )
        return cls._of(model, point, tuple(axes))

    @classmethod
    def _of(cls, model: HookedACT, point: HookPoint, axes: tuple[str, ...]) -> Self:
        shape = tuple(_axis_size(model.config, axis) for axis in axes)
        return cls(point.name or "", axes, shape, _depth(model.config, point.name or ""))

    def __len__(self) -> int:
        return prod(self.shape)

    @property
    def unit(self) -> str:
        """What one site is: `token`, `head`, `token head`, …, or `whole`."""
        return " ".join(self.axes) or "whole"

    def entries(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Where sites of these numbers lie, by axis."""
        if not self.axes:
            return {}
        return dict(zip(self.axes, np.unravel_index(numbers, self.shape), strict=True))

    def site(self, number: int) -> Site:
        """The address of one site, for the intervention engine."""
        entries = self.entries(np.asarray(number))
        return Site(self.hook, {axis: int(entry) for axis, entry in entries.items()})


def attributable(model: HookedACT) -> tuple[str, ...]:
    """The hook points from the tokens to the normalised actions, in the order in which they run."""
    names = [name for name in model.hook_dict if not name.startswith("vae.")]
    outputs = [op.output for op in network(model, names)]
    return tuple(name for name in outputs[outputs.index(START) :] if name != "hook_actions")


def cuts_of(model: HookedACT, names: NamesFilter = None) -> tuple[Cut, ...]:
    """Hook points cut by token, query, head and neuron, whichever they have, and as wholes.

    Patterns and scores are cut by head alone. Other cuts: `Cut.of(model, hook, ("token", "head"))`.

    Args:
        names: all that can be attributed but on-demand points, if not given; else names, globs or a
            predicate, as for `run_with_cache`. Globs select among what can be attributed.

    Raises:
        HookNameError: if a name or glob matches nothing.
        InterventionError: if a hook point that is named, or all that a glob matches, cannot be
            attributed.
    """
    named: set[str] = set()
    if names is not None and not callable(names):
        names = [names] if isinstance(names, str) else list(names)
        named = {model.hook_aliases.get(name, name) for name in names}
    points = model.resolve(names)
    possible = set(attributable(model))
    chosen = [point for point in points if point.name in possible]
    _require_attributable(model, [point for point in points if point.name in named or not chosen])
    return tuple(
        Cut._of(model, point, axes) for point in chosen for axes in (*_divisions(point), ())
    )


def _divisions(point: HookPoint) -> list[tuple[str, ...]]:
    axes = _inner_axes(point)
    if axes[0] == "head":  # patterns and scores: their other axes are cut by Cut.of
        return [("head",)]
    return [(axis,) for axis in axes if axis in _APART]


def _inner_axes(point: HookPoint) -> tuple[str, ...]:
    return tuple(axis for axis in point.axes if axis != "batch")


def _require_attributable(model: HookedACT, points: Sequence[HookPoint]) -> None:
    possible = set(attributable(model))
    for point in points:
        name = point.name or ""
        if name in possible:
            continue
        if name == "hook_actions":
            why = "it lies after the normalised actions: take hook_actions_normalized"
        elif name.startswith("vae."):
            why = "inference does not pass it"
        else:
            why = f"it lies before {START}; patch it exactly (actlens.interventions.run)"
        raise InterventionError(f"{name} cannot be attributed: {why}.")


def _axis_size(config: ACTConfig, axis: str) -> int:
    if axis.removesuffix("_q").removesuffix("_k") == "token":
        return config.n_tokens
    if axis.removesuffix("_q").removesuffix("_k") == "query":
        return config.chunk
    return {
        "chunk": config.chunk,
        "head": config.n_heads,
        "neuron": config.d_mlp,
        "joint": config.action_dim,
        "d_model": config.d_model,
        "d_head": config.d_head,
        "one": 1,
    }[axis]


def _depth(config: ACTConfig, hook: str) -> int:
    part, *rest = hook.split(".")
    if part == "embed":
        return 0
    return int(rest[0]) if part == "encoder" and rest[0].isdigit() else config.n_encoder_layers
