"""Path patching: only what travels from senders to receivers, along chosen components.

Three runs in one (Wang et al. 2022, section 3; Goldowsky-Dill et al. 2023): the senders are edited
while every other attention and MLP keeps writing what it writes in the base run, so that the edit
reaches the receivers by the residual streams alone; then what the receivers hold is put into a base
run in which everything after them reacts. Components that may carry the change in between are
named, whole or in parts (`encoder.1.attn.hook_z[head=3]`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.errors import InterventionError
from actlens.hooks import HookPoint
from actlens.interventions.effects import Effects, Tally
from actlens.interventions.evaluate import evaluate, steps
from actlens.interventions.intervention import (
    Edit,
    edit_from_json,
    edit_to_json,
    site_from_json,
    site_to_json,
    understood,
)
from actlens.interventions.memory import DEFAULT_BUDGET, rows_within
from actlens.interventions.network import ACTIONS, checked_point, network
from actlens.interventions.rows import Value, whole
from actlens.interventions.scene_run import SceneRun
from actlens.interventions.sources import Donors, Moment
from actlens.model.act import HookedACT
from actlens.sites import Site


@dataclass(frozen=True)
class Path:
    """From which parts of the network to which, and what may carry the change on the way.

    Attributes:
        senders: the edits whose change is followed. Sources see the base run's activations.
        receivers: where the change arrives; from here on everything reacts to it.
        through: components that may react in between: what an attention or MLP writes
            (`encoder.1.hook_mlp_out`), or parts of what it computes (heads of `hook_z`, neurons of
            `mlp.hook_post`). All others write what they write in the base run.
        freeze_norms: keep the LayerNorms' scales of the base run up to the receivers. Then a path
            is linear in what is sent, and paths add up; without it they do not.
    """

    senders: tuple[Edit, ...]
    receivers: tuple[Site, ...]
    through: tuple[Site, ...] = ()
    freeze_norms: bool = False

    def __post_init__(self) -> None:
        if not self.senders or not self.receivers:
            raise InterventionError("A path needs a sender and a receiver.")

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The senders: what is edited."""
        return self.senders

    def __str__(self) -> str:
        ends = " + ".join(map(str, self.receivers))
        via = f" through {' + '.join(map(str, self.through))}" if self.through else ""
        return f"{' + '.join(f'{e.site} := {e.source}' for e in self.senders)} -> {ends}{via}"

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, numbers and strings.

        Raises:
            InterventionError: if a source is a function.
        """
        return {
            "senders": [edit_to_json(edit) for edit in self.senders],
            "receivers": [site_to_json(site) for site in self.receivers],
            "through": [site_to_json(site) for site in self.through],
            "freeze_norms": self.freeze_norms,
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        """What `to_json` wrote.

        Raises:
            InterventionError: naming the entry that is missing or not understood.
        """
        with understood("path"):
            return cls(
                tuple(edit_from_json(entry) for entry in saved["senders"]),
                tuple(site_from_json(entry) for entry in saved["receivers"]),
                tuple(site_from_json(entry) for entry in saved["through"]),
                bool(saved["freeze_norms"]),
            )


@torch.no_grad()
def run_paths(
    model: HookedACT,
    base: SceneRun,
    paths: Sequence[Path],
    donors: Donors | None = None,
    *,
    memory_budget: int = DEFAULT_BUDGET,
    advance: Callable[[int], None] = lambda n: None,
) -> Effects:
    """The action chunk when each of the paths, by itself, carries its senders' change.

    Receipts count what changed at the receivers: nothing, where no path leads to them.

    Args:
        base: the scene to intervene on.
        donors: the runs that sources name, by role.
        memory_budget: bytes that the temporaries of one batch may take.
        advance: told how many paths were done, for progress bars.

    Raises:
        InterventionError: if a part does not fit the network or the donors, or one path alone needs
            more memory than the budget.
        HookNameError: if a hook point does not exist.
    """
    routes = [_route(model, path) for path in paths]
    groups: dict[tuple[tuple[str, ...], ...], list[int]] = {}
    for i, route in enumerate(routes):
        groups.setdefault(route.points, []).append(i)
    tally = Tally(len(paths))
    actions = base.actions.new_empty((len(paths), *base.actions.shape))
    for (sending, passing, frozen, receiving), members in groups.items():
        touched = {*sending, *passing, *frozen, *receiving}
        sent = steps(network(model, touched), sending, receiving, frozen)
        reacting = steps(network(model, receiving), receiving, (ACTIONS,))
        rows = rows_within(memory_budget, [*sent, *reacting], base)
        for start in range(0, len(members), rows):
            batch = members[start : start + rows]
            travelling = _Travelling([routes[i] for i in batch], batch, base, donors or {}, tally)
            points = {name: model.hook_point(name) for name in touched}
            leaving = {
                name: partial(travelling.leave, points[name]) for name in {*sending, *passing}
            }
            arrived = evaluate(sent, base, leaving, receiving)
            entering = {
                name: partial(travelling.enter, points[name], arrived.get(name))
                for name in receiving
            }
            found = evaluate(reacting, base, entering, (ACTIONS,))
            actions[batch] = whole(found.get(ACTIONS), base[ACTIONS])
            advance(len(batch))
    return tally.effects(actions, base)


@dataclass(frozen=True)
class _Route:
    """A path's parts by hook point, under the points' own names."""

    senders: Mapping[str, tuple[Edit, ...]]
    through: Mapping[str, tuple[Site, ...]]
    """Parts that react, of components all of whose other parts do not."""
    held: frozenset[str]
    """Points on the way that hold the base run's value but for edits and parts that react."""
    receivers: Mapping[str, tuple[Site, ...]]
    frozen: tuple[str, ...]

    @property
    def points(self) -> tuple[tuple[str, ...], ...]:
        """What paths that are run together have in common: senders, passages, frozen, receivers."""
        senders, through, receivers = (
            tuple(sorted(sites)) for sites in (self.senders, self.through, self.receivers)
        )
        return senders, through, self.frozen, receivers


def _route(model: HookedACT, path: Path) -> _Route:
    senders: dict[str, tuple[Edit, ...]] = {}
    for edit in path.senders:
        name = checked_point(model, edit.site)
        senders[name] = (*senders.get(name, ()), edit)
    through, receivers = (_by_point(model, sites) for sites in (path.through, path.receivers))
    # A component that is open as a whole needs no hook.
    partly = {name: sites for name, sites in through.items() if all(s.where for s in sites)}
    frozen, held = [], set(partly)
    for component in _components(model):
        if any(map(component.holds, through)):
            continue
        if sending := [name for name in senders if component.holds(name)]:
            held.update(sending)
            frozen += [name for name in component.reads if name not in senders]
        else:
            frozen.append(component.write)
    for name in through:
        if not any(component.holds(name) for component in _components(model)):
            raise InterventionError(
                f"{name} is no part of an attention or MLP: a change passes the residual streams "
                "in any case."
            )
    if path.freeze_norms:
        frozen += [name for name in model.hook_dict if name.endswith(".hook_scale")]
        frozen = [name for name in frozen if not name.startswith("vae.")]
    return _Route(senders, partly, frozenset(held), receivers, tuple(frozen))


def _by_point(model: HookedACT, sites: Sequence[Site]) -> dict[str, tuple[Site, ...]]:
    found: dict[str, tuple[Site, ...]] = {}
    for site in sites:
        name = checked_point(model, site)
        found[name] = (*found.get(name, ()), site)
    return found


@dataclass(frozen=True)
class _Component:
    """An attention or MLP: a block's sublayer."""

    write: str
    """What it adds to the stream."""
    prefix: str
    reads: tuple[str, ...]
    """The first points inside it, from which everything else in it follows."""

    def holds(self, name: str) -> bool:
        """Whether a hook point lies in it."""
        return name == self.write or name.startswith(self.prefix)


def _components(model: HookedACT) -> list[_Component]:
    config, found = model.config, []
    blocks = [f"encoder.{i}" for i in range(config.n_encoder_layers)]
    blocks += [f"decoder.{i}" for i in range(config.n_decoder_layers)]
    for block in blocks:
        attentions = {"attn": "hook_attn_out"}
        if block.startswith("decoder"):
            attentions["cross_attn"] = "hook_cross_attn_out"
        for name, write in attentions.items():
            prefix = f"{block}.{name}."
            reads = tuple(f"{prefix}hook_{x}" for x in "qkv")
            found.append(_Component(f"{block}.{write}", prefix, reads))
        prefix = f"{block}.mlp."
        found.append(_Component(f"{block}.hook_mlp_out", prefix, (f"{prefix}hook_pre",)))
    return found


@dataclass(frozen=True)
class _Travelling:
    """A batch of paths on one scene, one row each."""

    routes: Sequence[_Route]
    numbers: Sequence[int]
    base: SceneRun
    donors: Donors
    tally: Tally

    def leave(self, point: HookPoint, value: Value | None) -> Value:
        """What a hook point on the way holds: what reaches it, where that may pass, and edits."""
        name = point.name or ""
        own = self.base[name]
        incoming = self._rows_of(whole(value, own), own)
        held = self._rows_of(own, own) if name in self.routes[0].held else incoming
        for row, route in enumerate(self.routes):
            one = slice(row, row + 1)
            for site in route.through.get(name, ()):
                index = point.index(site.where, own.shape)
                held[one][index] = incoming[one][index]
            for edit in route.senders.get(name, ()):
                index = point.index(edit.site.where, own.shape)
                part = own[index].clone()
                held[one][index] = edit.source.value(part, Moment(point, index, self.donors))
        return held

    def enter(self, point: HookPoint, arrived: Value | None, value: Value | None) -> Value:
        """What a receiver holds in the second run: the change that arrived, and what reacts."""
        own = self.base[point.name or ""]
        received, held = whole(arrived, own), self._rows_of(whole(value, own), own)
        received = received.expand(held.shape)
        for row, route in enumerate(self.routes):
            one = slice(row, row + 1)
            for site in route.receivers[point.name or ""]:
                index = point.index(site.where, own.shape)
                after = received[one][index]
                self.tally.record([self.numbers[row]], own[index][None], after[None])
                held[one][index] = after
        return held

    def _rows_of(self, value: Tensor, own: Float[Tensor, "1 ..."]) -> Float[Tensor, "row ..."]:
        rows = value.expand(len(self.routes), *own.shape[1:])
        return rows.clone(memory_format=torch.contiguous_format)
