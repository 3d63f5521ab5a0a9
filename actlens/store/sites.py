"""Which parts of which activations a store holds, and what lies where in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from actlens.hooks import HookPoint
from actlens.model.act import HookedACT
from actlens.model.dry_run import dry_run
from actlens.sites import Selection, Site, Where, parse_where, split_address
from actlens.store.errors import StoreError

_WHOLE = slice(None)


@dataclass(frozen=True)
class StoredSite:
    """A part of an activation, of which every scene has a value of the same shape."""

    name: str
    """Of the hook point."""
    axes: tuple[str, ...]
    """Of the whole activation; the first is `batch`."""
    sizes: tuple[int, ...]
    """Of the axes after the batch."""
    where: Where

    @cached_property
    def address(self) -> str:
        """The canonical address, under which shards hold the site."""
        return str(Site(self.name, self.where))

    @cached_property
    def point(self) -> HookPoint:
        """A hook point of these axes, for indexing."""
        point = HookPoint(" ".join(self.axes))
        point.name = self.name
        return point

    @cached_property
    def stored(self) -> Mapping[str, int]:
        """The axes of one scene's value -> their lengths; a single index leaves no axis."""
        chosen = {axis: self.where.get(axis, _WHOLE) for axis in self.axes[1:]}
        return {
            axis: len(_indices(part, size))
            for (axis, part), size in zip(chosen.items(), self.sizes, strict=True)
            if not isinstance(part, int)
        }

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one scene's value."""
        return tuple(self.stored.values())

    def index(self, n_scenes: int) -> tuple[Any, ...]:
        """The index of the part in the activation of a batch.

        Raises:
            HookNameError: if the part lies outside of the activation.
        """
        return self.point.index(self.where, (n_scenes, *self.sizes))

    def within(self, where: Where) -> dict[str, Selection] | None:
        """Where, in the stored value, another part of the same activation lies, by kept axis.

        None if not all of that part is stored.
        """
        found: dict[str, Selection] = {}
        for axis, size in zip(self.axes[1:], self.sizes, strict=True):
            stored, wanted = (chosen.get(axis, _WHOLE) for chosen in (self.where, where))
            if isinstance(stored, int):
                if not isinstance(wanted, int) or wanted % size != stored % size:
                    return None
                continue
            places = {entry: place for place, entry in enumerate(_indices(stored, size))}
            entries = _indices(wanted, size)
            if not places.keys() >= set(entries):
                return None
            at = [places[entry] for entry in entries]
            if isinstance(wanted, int):
                found[axis] = at[0]
            elif at == list(range(at[0], at[0] + len(at))):
                found[axis] = slice(at[0], at[0] + len(at))
            else:
                found[axis] = tuple(at)
        return found


def _indices(chosen: Selection, size: int) -> Sequence[int]:
    """The entries that a selection means, in order."""
    if isinstance(chosen, slice):
        return range(size)[chosen]
    return [i % size for i in ((chosen,) if isinstance(chosen, int) else chosen)]


def stored_sites(model: HookedACT, addresses: str | Sequence[str]) -> tuple[StoredSite, ...]:
    """The sites that addresses name, in their order; nothing is computed.

    A name may be a glob: `encoder.*.hook_resid_pre[state]` is that token of every layer.

    Raises:
        HookNameError: if a hook point, axis, token or index does not exist.
        HookNeverFired: if inference does not pass a hook point.
        StoreError: if no address is given, a site is named twice, or one is the same for all
            scenes.
    """
    given = (addresses,) if isinstance(addresses, str) else addresses
    sites = with_sizes(model, [site for address in given for site in named_sites(model, address)])
    for i, site in enumerate(sites):
        if site.address in {other.address for other in sites[:i]}:
            raise StoreError(f"{site.address} is named twice.")
    return sites


def named_sites(model: HookedACT, address: str) -> list[Site]:
    """The sites that one address names: several if its name is a glob.

    Raises:
        HookNameError: if a hook point, axis or token does not exist.
        StoreError: if a site is the same for all scenes.
    """
    name, selectors = split_address(address)
    sites = []
    for point in model.resolve(name):
        where = parse_where(selectors, point, model.tokens)
        if point.axes[:1] != ("batch",):
            raise StoreError(
                f"{point.name} has no batch axis: it is the same in every scene and is read from "
                "the model (run_with_cache)."
            )
        if "batch" in where:
            raise StoreError(f"{address} selects on the batch axis; every scene is stored.")
        sites.append(Site(point.name or "", where))
    return sites


def with_sizes(model: HookedACT, sites: Sequence[Site]) -> tuple[StoredSite, ...]:
    """The sites with the sizes that their activations have in this model.

    Raises:
        HookNameError: if a site lies outside of its activation.
        HookNeverFired: if inference does not pass a hook point.
        StoreError: if there is no site.
    """
    if not sites:
        raise StoreError("There is no site to store: name at least one hook point.")
    activations = dry_run(model, list(dict.fromkeys(site.name for site in sites)))
    found = []
    for site in sites:
        sizes = tuple(activations[site.name].shape[1:])
        found.append(StoredSite(site.name, model.hook_dict[site.name].axes, sizes, site.where))
        found[-1].index(1)
    return tuple(found)


def aliases_of(model: HookedACT, sites: Sequence[StoredSite]) -> Mapping[str, str]:
    """Other names of the sites' hook points -> the names."""
    names = {site.name for site in sites}
    return {alias: name for alias, name in model.hook_aliases.items() if name in names}
