"""Whether a neuron fires in one episode more than in any other: the mark of a table's cell."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from actlens.keyvalue.reading import Reading
from actlens.statistics import false_discovery


@dataclass(frozen=True)
class EpisodeIdentity:
    """How a neuron's strongest frames spread over episodes; one trigger a frame."""

    n_triggers: int
    """That were looked at of every neuron: as many as an episode has frames, so that a cell of a
    table can have them all in one."""
    tested: Bool[np.ndarray, " neuron"]
    """Which neurons fire in so many frames."""
    distinct: Int[np.ndarray, " neuron"]
    """Episodes among the triggers."""
    largest: Float[np.ndarray, " neuron"]
    """Share of the triggers in the episode that has most; NaN where not tested."""
    episode: Int[np.ndarray, " neuron"]
    """The number of that episode, in the order in which episodes came by; -1 where not tested."""
    distinct_by_chance: float
    largest_by_chance: float
    """Means over triggers whose episodes were drawn anew."""
    margin: Float[np.ndarray, " neuron"]
    """1 - the strongest coefficient of the second episode / that of the first: 1 where it fires in
    no other episode; NaN where it never fires."""
    p: Float[np.ndarray, " neuron"]
    """Share of draws whose fullest episode has as many triggers."""

    @cached_property
    def q(self) -> Float[np.ndarray, " neuron"]:
        """Benjamini-Hochberg over neurons."""
        return false_discovery(self.p)

    def concentrated(self, q: float = 0.05) -> Bool[np.ndarray, " neuron"]:
        """Which neurons have more than half of their triggers in one episode.

        What an episode keeps to its end, such as a place, does that as well: the neuron may follow
        a rule, and its strongest frames are those of the one most extreme episode.
        """
        return self.tested & (self.q <= q) & (np.nan_to_num(self.largest) > 0.5)

    def cells(self, q: float = 0.05) -> Bool[np.ndarray, " neuron"]:
        """Which of these fire in that episode at least twice as strongly as in any other.

        That is what a cell of a table does, and a rule does not.
        """
        return self.concentrated(q) & (np.nan_to_num(self.margin) >= 0.5)


def episode_identity(reading: Reading, *, draws: int = 9999, seed: int = 0) -> EpisodeIdentity:
    """Compare the episodes of each neuron's strongest frames with episodes drawn at random.

    Neighbouring frames are alike, so a neuron that follows anything slow crowds, too: hold the
    numbers against those of shuffled keys, which see the same frames.

    Args:
        draws: of permuted episodes.
        seed: of the draws.
    """
    triggers = reading.by_frame
    n_episodes, top = len(reading.episodes), triggers.coefficient.shape[1]
    size = min(top, max(2, round(reading.n_frames / n_episodes)))
    tested = np.asarray(np.isfinite(triggers.coefficient[:, :size]).all(axis=1))
    episodes = triggers.episode[:, :size]
    distinct, largest, fullest = _spread(episodes)
    drawn = np.random.default_rng(seed).integers(n_episodes, size=(draws, size))
    by_chance = _spread(drawn)
    reached = len(by_chance[1]) - np.searchsorted(np.sort(by_chance[1]), largest, side="left")
    p = (1 + reached) / (1 + draws)
    first, second = reading.by_episode.coefficient[:, :2].T
    return EpisodeIdentity(
        size,
        tested,
        np.where(tested, distinct, 0),
        np.where(tested, largest / size, np.nan),
        np.where(tested, fullest, -1),
        float(by_chance[0].mean()),
        float(by_chance[1].mean() / size),
        1 - np.nan_to_num(second) / first,
        np.where(tested, p, np.nan),
    )


def _spread(
    episodes: Int[np.ndarray, "unit top"],
) -> tuple[Int[np.ndarray, " unit"], Int[np.ndarray, " unit"], Int[np.ndarray, " unit"]]:
    """Distinct episodes, triggers in the fullest, and which it is."""
    same = (episodes[:, :, None] == episodes[:, None]).sum(2)  # triggers in each one's episode
    fullest = same.argmax(1)
    unit = np.arange(len(episodes))
    return (
        (1 / same).sum(1).round().astype(np.int64),
        same[unit, fullest],
        episodes[unit, fullest],
    )
