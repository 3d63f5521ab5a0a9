"""Patterns of an MLP's triggers, tested against permuted triggers, and their coverage."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from actlens.keyvalue.reading import Background, Reading
from actlens.keyvalue.rules import Crowds, discs_by_chance, in_the_plane, on_a_line, planes
from actlens.notebook import DrawnAsTable
from actlens.statistics import false_discovery

if TYPE_CHECKING:
    import pandas as pd

SIZES = (5, 8, 12, 18, 25)
"""How many triggers are looked at: the most of these that a neuron has."""
MAX_SHARE_OF_EPISODES = 0.25
"""The strongest triggers of too many episodes are no longer strong."""
_PLANE_ENTRIES = 1000


@dataclass(frozen=True)
class Patterns(DrawnAsTable):
    """Where the triggers of every neuron crowd, trait by trait, one trigger an episode."""

    traits: tuple[str, ...]
    """One-dimensional traits, then places."""
    n_triggers: Int[np.ndarray, " neuron"]
    """That were looked at; 0 where there are too few."""
    score: Float[np.ndarray, "neuron trait"]
    n: Int[np.ndarray, "neuron trait"]
    """Triggers in the crowd."""
    share: Float[np.ndarray, "neuron trait"]
    """Of all entries that lie in it."""
    region: Float[np.ndarray, "neuron trait 3"]
    """Low and high end of an interval, and NaN; centre and radius of a disc."""
    members: Bool[np.ndarray, "neuron trait top"]
    """Which triggers lie in it."""
    p: Float[np.ndarray, "neuron trait"]
    """Share of permuted triggers that crowd as much; NaN where too few triggers are known."""

    @cached_property
    def q(self) -> Float[np.ndarray, "neuron trait"]:
        """Benjamini-Hochberg over all neurons and traits."""
        return false_discovery(self.p)

    def significant(self, q: float = 0.05) -> Bool[np.ndarray, "neuron trait"]:
        """Which crowds are patterns."""
        return (self.q <= q) & (self.score > 0)

    def coverage(self, q: float = 0.05) -> Float[np.ndarray, " neuron"]:
        """Share of a neuron's triggers that lie in at least one pattern; NaN where it has none."""
        covered = (self.members & self.significant(q)[..., None]).any(1).sum(1)
        tested = self.n_triggers > 0
        return np.divide(covered, self.n_triggers, out=np.full(len(tested), np.nan), where=tested)

    def frame(self) -> "pd.DataFrame":
        """One row for every neuron and trait that has a crowd."""
        import pandas as pd

        neuron, trait = np.nonzero(self.score > 0)
        at = (neuron, trait)
        return pd.DataFrame(
            {
                "neuron": neuron,
                "trait": np.array(self.traits)[trait],
                "low_or_x": self.region[at][:, 0],
                "high_or_y": self.region[at][:, 1],
                "radius": self.region[at][:, 2],
                "triggers": self.n[at],
                "of": self.n_triggers[neuron],
                "share_of_entries": self.share[at],
                "lift": self.n[at] / self.n_triggers[neuron] / self.share[at],
                "score": self.score[at],
                "p": self.p[at],
                "q": self.q[at],
            }
        )


def find_patterns(
    reading: Reading, *, draws: int = 4999, seed: int = 0, sizes: tuple[int, ...] = SIZES
) -> Patterns:
    """The densest crowd of every neuron's triggers in every trait, and how rare it is by chance.

    Under the null a neuron's triggers are as many entries of as many episodes, drawn without
    looking at traits; episodes are the units, and entries within one are drawn evenly.

    Args:
        draws: of permuted triggers, for every trait and number of triggers.
        seed: of the draws.
        sizes: numbers of triggers that are looked at.
    """
    triggers, background = reading.by_episode, reading.background
    flat, plane = reading.trait_names, planes(reading.trait_names)
    available = np.isfinite(triggers.coefficient).sum(1)
    n_triggers = _looked_at(available, len(reading.episodes), sizes)
    n_neurons, top = triggers.coefficient.shape
    shape = (n_neurons, len(flat) + len(plane))
    score, share, p = np.zeros(shape), np.full(shape, np.nan), np.full(shape, np.nan)
    n, region = np.zeros(shape, np.int64), np.full((*shape, 3), np.nan)
    members = np.zeros((*shape, top), bool)
    rng = np.random.default_rng(seed)
    for size in sizes:
        at = np.flatnonzero(n_triggers == size)
        if not len(at):
            continue
        drawn = _permuted(background, size, draws, rng)
        for trait in range(shape[1]):
            if trait < len(flat):
                values, null = triggers.traits[at, :size, trait], background.traits[:, trait]
                found, ends = on_a_line(values, null)
                chance, _ = on_a_line(null[drawn], null, among=True)
                within = (values >= ends[:, :1]) & (values <= ends[:, 1:])
                ends = np.column_stack([ends, np.full(len(at), np.nan)])
            else:
                axes = list(plane.values())[trait - len(flat)]
                values = triggers.traits[at, :size][:, :, axes]
                few = _few(background, axes, rng)
                found, ends = in_the_plane(values, few.traits[:, axes])
                chance = discs_by_chance(_permuted(few, size, draws, rng), few.traits[:, axes])
                apart = np.linalg.norm(values - ends[:, None, :2], axis=-1)
                within = apart <= ends[:, 2:]
            score[at, trait], n[at, trait], share[at, trait] = found.score, found.n, found.share
            region[at, trait] = ends
            members[at, trait, :size] = within & (found.score > 0)[:, None]
            p[at, trait] = _p(found, chance)
    return Patterns((*flat, *plane), n_triggers, score, n, share, region, members, p)


def _looked_at(
    available: Int[np.ndarray, " neuron"], n_episodes: int, sizes: tuple[int, ...]
) -> Int[np.ndarray, " neuron"]:
    """The largest size that a neuron can fill, of few enough episodes."""
    most = max(MAX_SHARE_OF_EPISODES * n_episodes, min(sizes))
    fitting = np.array([0, *(size for size in sizes if size <= most)])
    return fitting[np.searchsorted(fitting, available, side="right") - 1]


def _permuted(
    background: Background, size: int, draws: int, rng: np.random.Generator
) -> Int[np.ndarray, "draw top"]:
    """Entries of the background, one each of different episodes."""
    order = np.argsort(background.episode, kind="stable")
    names, first, count = np.unique(
        background.episode[order], return_index=True, return_counts=True
    )
    size = min(size, len(names))
    episodes = rng.random((draws, len(names))).argpartition(size - 1, axis=1)[:, :size]
    within = (rng.random(episodes.shape) * count[episodes]).astype(np.int64)
    return order[first[episodes] + within]


def _few(background: Background, axes: tuple[int, int], rng: np.random.Generator) -> Background:
    """Entries at which a place is known, few enough for all their distances."""
    known = np.flatnonzero(np.isfinite(background.traits[:, axes]).all(1))
    if len(known) > _PLANE_ENTRIES:
        known = rng.choice(known, _PLANE_ENTRIES, replace=False)
    return Background(background.episode[known], background.traits[known])


def _p(found: Crowds, chance: Crowds) -> Float[np.ndarray, " unit"]:
    draws = np.sort(chance.score)
    reached = len(draws) - np.searchsorted(draws, found.score - 1e-9, side="left")
    return (1 + reached) / (1 + len(draws))
