"""The scope of a request: which scenes of the data should change with it, and which must not.

ROME keeps to all of the data alike, so that it also resists the change where the change is meant to
carry over, in the scenes around (its C holds them), and spends no more on the scenes that an edit
spills into, those of the same phase, than on all others. The scope (Mitchell et al. 2022: in-scope
and out-of-scope examples) says three things instead:

* k* is the mean over scenes of the data that are near in place and phase;
* scenes that are alike do not count in C;
* scenes of the same phase elsewhere count several times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.model.mlp_site import MLPSite
from actlens.rome.errors import EditError
from actlens.rome.prepared import Prepared
from actlens.rome.situations import Places, Situation
from actlens.rome.statistics import MAX_POSITIONS, KeyStatistics
from actlens.scene import Scene


@dataclass(frozen=True)
class Scope:
    """How far a request is meant to carry."""

    phase: float = 0.05
    """Scenes within this phase and the near distance share in k*."""
    alike_phase: float = 0.15
    """Within this phase scenes are alike (within that distance) or elsewhere (beyond it)."""
    elsewhere: float = 6.0
    """How many times scenes of the same phase elsewhere count."""


@dataclass(frozen=True)
class KeyBank:
    """Keys of the data by scene: what statistics add up, before it is added up."""

    site: MLPSite
    places: Places
    keys: Float[Tensor, "scene position neuron"]
    """On the CPU."""
    positions: tuple[int, ...]
    """Of the scene, in the order of `keys`: those that are executed; all in an encoder block."""
    episodes: tuple[int, ...]
    phases: tuple[float, ...]

    @cached_property
    def total(self) -> Float[Tensor, "neuron neuron"]:
        """The moment of all scenes."""
        return self.moment(np.arange(len(self.keys)))

    def moment(self, chosen: Int[np.ndarray, " chosen"]) -> Float[Tensor, "neuron neuron"]:
        """The sum over some scenes of the mean of k k^T over positions, in float64."""
        n = self.keys.shape[1]
        every = range(0, n, -(-n // MAX_POSITIONS))  # neighbouring tokens say nearly the same
        total = torch.zeros(*2 * self.keys.shape[2:], dtype=torch.float64)
        for start in range(0, len(chosen), _BLOCK):
            some = torch.as_tensor(chosen[start : start + _BLOCK])
            keys = self.keys[some][:, list(every)].flatten(0, 1).double()
            total.addmm_(keys.T, keys, alpha=1 / len(every))
        return total


_BLOCK = 64


class KeyWatch:
    """Takes in what `key_statistics` tells as it streams, to make a bank of."""

    def __init__(self, site: MLPSite, places: Places, positions: Sequence[int]):
        self._site, self._places, self._positions = site, places, tuple(positions)
        self._keys: list[Tensor] = []
        self._scenes: list[tuple[int, float]] = []

    def __call__(self, scenes: Sequence[Scene], keys: Mapping[str, Tensor]) -> None:
        """One batch of scenes, and their keys by block."""
        self._keys.append(keys[self._site.block][:, list(self._positions)].cpu())
        self._scenes += [(s.episode, self._places.of(s).phase) for s in scenes]

    def bank(self) -> KeyBank:
        """Of all that streamed by."""
        episodes, phases = zip(*self._scenes, strict=True)
        return KeyBank(
            self._site, self._places, torch.cat(self._keys), self._positions, episodes, phases
        )


@dataclass(frozen=True)
class Scoped:
    """Requests with their scope: what `solve_edit` makes the edit from."""

    prepared: Prepared
    """With k* over scenes near by."""
    statistics: KeyStatistics
    """With the moment for these requests; a `KeyMetric` of it takes any ridge."""
    n_near: int
    """Scenes of the data that share in k*, over all requests."""
    n_alike: int
    """Scenes of the data that do not count."""


def scoped(
    prepared: Prepared,
    statistics: KeyStatistics,
    bank: KeyBank,
    situations: Sequence[Situation],
    scope: Scope | None = None,
) -> Scoped:
    """The keys and the moment of some requests, each with the scope that its situation gives it.

    Args:
        situations: of every request's scene.

    Raises:
        EditError: if the bank is of another MLP, does not hold the requests' positions, or all of
            the data are alike.
    """
    scope = scope or Scope()
    if not bank.site == statistics.site == prepared.runs.site:
        raise EditError(f"The bank holds keys of {bank.site.block}, not of the MLP to edit.")
    phases = np.array(bank.phases)
    counts, keys, n_near = np.ones(len(phases)), [], 0
    places, alike = bank.places, np.zeros(len(phases), bool)
    for own, one, situation in zip(prepared.keys, prepared.resolved, situations, strict=True):
        apart = places.distances(situation.place, bank.episodes)
        later = np.abs(phases - situation.phase)
        near = np.flatnonzero((apart <= places.rings[1]) & (later <= scope.phase))
        at = _found(bank, one.positions if prepared.runs.rest.positionwise else bank.positions)
        keys.append(torch.cat([own[None], bank.keys[near][:, at].to(own)]).mean(0))
        n_near += len(near)
        now = later <= scope.alike_phase
        alike |= now & (apart <= places.alike)
        counts[now & (apart > places.alike)] = scope.elsewhere
    counts[alike] = 0.0
    if not counts.any():
        raise EditError("All of the data are alike the requests: there is nothing to keep to.")
    moment = bank.total.clone()
    for count in np.unique(counts[counts != 1]):
        moment.add_(bank.moment(np.flatnonzero(counts == count)), alpha=float(count) - 1)
    found = replace(statistics, moment=moment / len(counts))
    return Scoped(replace(prepared, keys=tuple(keys)), found, n_near, int(alike.sum()))


def _found(bank: KeyBank, positions: Sequence[int]) -> list[int]:
    """Where the bank holds some positions."""
    missing = sorted(set(positions) - set(bank.positions))
    if missing:
        raise EditError(
            f"The bank holds keys of the positions {bank.positions[0]} to {bank.positions[-1]}; "
            f"the request is for {missing[0]} as well."
        )
    return [bank.positions.index(k) for k in positions]
