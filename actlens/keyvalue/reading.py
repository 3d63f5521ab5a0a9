"""One pass over a dataset: the triggers of every neuron, and what to hold them against."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from actlens.errors import SceneError
from actlens.keyvalue.activity import Activity, ActivitySums
from actlens.keyvalue.entries import Entries, EpisodeName
from actlens.keyvalue.keys import Keys
from actlens.keyvalue.triggers import TopEntries, Triggers
from actlens.model.mlp_site import MLPSite


@dataclass(frozen=True)
class Background:
    """Entries drawn evenly from all: what a neuron's triggers are compared with."""

    episode: Int[np.ndarray, " entry"]
    traits: Float[np.ndarray, "entry trait"]


@dataclass(frozen=True)
class Reading:
    """What was found of an MLP's keys over a dataset."""

    site: MLPSite
    trait_names: tuple[str, ...]
    episodes: tuple[EpisodeName, ...]
    positions: Int[np.ndarray, " position"]
    n_frames: int
    by_episode: Triggers
    """At most one trigger an episode: neighbouring frames are nearly the same, and count once."""
    by_frame: Triggers
    """At most one trigger a frame, however many in an episode."""
    activity: Activity
    background: Background


def read_memories(
    keys: Sequence[Keys],
    entries: Iterable[Entries],
    *,
    top: int = 25,
    n_background: int = 4096,
    seed: int = 0,
) -> tuple[Reading, ...]:
    """Stream over entries once, and keep what every set of keys makes of them.

    Memory does not grow with the number of frames: of neurons it holds the strongest entries, of
    entries a sample. Several sets of keys share the pass: the policy's own, and shuffled ones.

    Args:
        top: triggers to keep of every neuron.
        n_background: entries to keep in the sample.
        seed: of the sample, and of the order of entries that trigger a neuron equally.

    Raises:
        SceneError: if there is no entry, or an episode comes in pieces.
    """
    passes: list[_Pass] = []
    sample: _Sample | None = None
    episodes: dict[EpisodeName, int] = {}
    first: Entries | None = None
    last: EpisodeName | None = None
    n_frames = 0
    for some in entries:
        if first is None or sample is None:
            first, sample = some, _Sample(n_background, seed)
            passes = [_Pass(one, some, top, seed) for one in keys]
        if some.episode != last:
            if some.episode in episodes:
                raise SceneError(
                    f"The scenes of episode {some.episode} come in pieces: give scenes episode by "
                    "episode, so that each can count once."
                )
            episodes[some.episode] = len(episodes)
            for one in passes:
                one.leave()
            last = some.episode
        for one in passes:
            one.add(some, episodes[some.episode])
        sample.add(some, episodes[some.episode])
        n_frames += len(some.frames)
    if first is None or sample is None:
        raise SceneError("There is no scene to read the memory's triggers from.")
    background = sample.background()
    readings = []
    for one in passes:
        one.leave()
        readings.append(
            Reading(
                one.keys.site,
                first.trait_names,
                tuple(episodes),
                first.positions,
                n_frames,
                one.by_episode.triggers(first.positions),
                one.by_frame.triggers(first.positions),
                one.sums.activity(),
                background,
            )
        )
    return tuple(readings)


class _Pass:
    """What one set of keys has made of the entries so far.

    Entries at which a neuron fires equally are taken in random order: in the order of the stream, a
    neuron that is the same everywhere would seem to look for first frames and first positions.
    """

    def __init__(self, keys: Keys, first: Entries, top: int, seed: int):
        n, n_traits = len(keys.weight), len(first.trait_names)
        self.keys = keys
        self.by_frame, self.by_episode = TopEntries(n, top, n_traits), TopEntries(n, top, n_traits)
        self.sums = ActivitySums(n, first.positions, timed=keys.site.in_decoder)
        self._generator = torch.Generator().manual_seed(seed)
        self._strongest = torch.full((n,), -torch.inf)
        self._lot = torch.zeros(n)
        self._described = torch.full((n, 3 + n_traits), torch.nan, dtype=torch.float64)

    @torch.no_grad()
    def add(self, some: Entries, episode: int) -> None:
        """Take in some frames of the present episode."""
        flat = self.keys.coefficients(some.inputs.flatten(0, 1).to(self.keys.weight))
        found = flat.unflatten(1, some.inputs.shape[:2]).float().cpu()
        found = found.masked_fill_(~some.counted, -torch.inf)
        traits, frames = torch.from_numpy(some.traits), torch.from_numpy(some.frames)
        self.sums.add(found, some.counted, frames)
        rows, places = (self._order(n) for n in some.inputs.shape[:2])
        of_frame, place = found[:, rows[:, None], places].max(2)
        position, frames, traits = places[place], frames[rows], traits[rows]

        def describe(neuron: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
            at = position[neuron, row]
            address = torch.stack([torch.full_like(at, episode), frames[row], at], -1)
            return torch.cat([address, traits[row, at]], -1).double()

        self.by_frame.offer(of_frame, describe)
        strongest, row = of_frame.max(1)
        lot = torch.rand(len(strongest), generator=self._generator)
        tied = (strongest == self._strongest) & (lot > self._lot)
        more = ((strongest > self._strongest) | tied).nonzero()
        self._strongest[more], self._lot[more] = strongest[more], lot[more]
        self._described[more] = describe(more, row[more])

    def _order(self, n: int) -> torch.Tensor:
        return torch.randperm(n, generator=self._generator)

    def leave(self) -> None:
        """The present episode has ended."""
        self.by_episode.offer(self._strongest[:, None], lambda neuron, _: self._described[neuron])
        self._strongest.fill_(-torch.inf)
        self._lot.zero_()
        self.sums.leave()


class _Sample:
    """Entries that drew the highest numbers: an even sample of a stream of unknown length."""

    def __init__(self, size: int, seed: int):
        self._size, self._rng = size, np.random.default_rng(seed)
        self._drawn = np.empty(0)
        self._episode: np.ndarray = np.empty(0, np.int64)
        self._traits: np.ndarray | None = None

    def add(self, some: Entries, episode: int) -> None:
        counted = some.counted.numpy()
        traits = some.traits[counted]
        drawn = self._rng.random(len(traits))
        if len(self._drawn) == self._size:
            kept = drawn > self._drawn.min()
            traits, drawn = traits[kept], drawn[kept]
        drawn = np.concatenate([self._drawn, drawn])
        of = np.concatenate([self._episode, np.full(len(traits), episode)])
        traits = traits if self._traits is None else np.concatenate([self._traits, traits])
        best = np.argsort(-drawn, kind="stable")[: self._size]
        self._drawn, self._episode, self._traits = drawn[best], of[best], traits[best]

    def background(self) -> Background:
        assert self._traits is not None
        return Background(self._episode, self._traits)
