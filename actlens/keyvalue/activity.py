"""How often and how strongly every neuron fires, and what its coefficient varies with."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Activity:
    """Sums over all entries, by neuron.

    The variance shares are main effects: the variance of the means over episodes (frames, chunk
    positions or tokens, times) as a share of all variance. They overlap where the design is not
    balanced, as times always do with frames and positions; what is left is interaction.
    """

    n_entries: int
    active: Float[np.ndarray, " neuron"]
    """Share of entries at which it fires."""
    mean: Float[np.ndarray, " neuron"]
    maximum: Float[np.ndarray, " neuron"]
    variance: Float[np.ndarray, " neuron"]
    by_position: Float[np.ndarray, "neuron position"]
    """Mean coefficient at each chunk position or token."""
    episode_share: Float[np.ndarray, " neuron"]
    frame_share: Float[np.ndarray, " neuron"]
    position_share: Float[np.ndarray, " neuron"]
    time_share: Float[np.ndarray, " neuron"]
    """Of the time at which a chunk position's action is due, frame + position; NaN for tokens."""
    active_per_entry: Float[np.ndarray, " episode"]
    """Share of neurons that fire at an entry, the mean of every episode."""

    @property
    def dead(self) -> Bool[np.ndarray, " neuron"]:
        """Which neurons never fire."""
        return self.active == 0


class ActivitySums:
    """`Activity` as entries stream by, in float64."""

    def __init__(self, n_neurons: int, positions: Int[np.ndarray, " position"], *, timed: bool):
        zeros = lambda *shape: torch.zeros(n_neurons, *shape, dtype=torch.float64)
        self._positions, self._timed = torch.tensor(positions), timed
        self._n, self._active, self._squares = 0, zeros(), zeros()
        self._maximum = torch.full((n_neurons,), -torch.inf)
        self._by_position = _Groups(n_neurons)
        self._by_frame, self._by_time = _Groups(n_neurons), _Groups(n_neurons)
        self._of_episode, self._n_of_episode, self._active_of_episode = zeros(), 0, 0.0
        self._between_episodes = zeros()
        self._active_per_entry: list[float] = []

    def add(
        self,
        coefficients: Float[Tensor, "neuron frame position"],
        counted: Bool[Tensor, "frame position"],
        frames: Int[Tensor, " frame"],
    ) -> None:
        """Take in some frames of the present episode. What is not counted must be -inf."""
        present = coefficients.masked_fill(~counted, 0.0)
        by_frame, n_of_frame = present.sum(2, dtype=torch.float64), counted.sum(1)
        fires = (coefficients > 0).sum((1, 2))
        self._active += fires
        self._squares += present.square().sum((1, 2), dtype=torch.float64)
        self._maximum = torch.maximum(self._maximum, coefficients.amax((1, 2)))
        places = torch.arange(len(self._positions))
        self._by_position.add(places, present.sum(1, dtype=torch.float64), counted.sum(0))
        self._by_frame.add(frames, by_frame, n_of_frame)
        if self._timed:
            self._add_times(present, counted, frames)
        self._n += int(n_of_frame.sum())
        self._of_episode += by_frame.sum(1)
        self._n_of_episode += int(n_of_frame.sum())
        self._active_of_episode += float(fires.sum()) / len(fires)

    def _add_times(
        self,
        present: Float[Tensor, "neuron frame position"],
        counted: Bool[Tensor, "frame position"],
        frames: Int[Tensor, " frame"],
    ) -> None:
        """Sums by frame + position, in as few steps as there are frames or positions."""
        if len(frames) < len(self._positions):
            for i, frame in enumerate(frames):
                self._by_time.add(frame + self._positions, present[:, i], counted[i])
        else:
            for i, position in enumerate(self._positions):
                self._by_time.add(frames + position, present[:, :, i], counted[:, i])

    def leave(self) -> None:
        """The present episode has ended."""
        if self._n_of_episode:
            self._between_episodes += self._of_episode.square() / self._n_of_episode
            self._active_per_entry.append(self._active_of_episode / self._n_of_episode)
        self._of_episode.zero_()
        self._n_of_episode, self._active_of_episode = 0, 0.0

    def activity(self) -> Activity:
        """Of all episodes that have ended."""
        n, total = self._n, self._by_position.sums.sum(1)
        within = (self._squares - total.square() / n).clamp_min(0)
        share = lambda between: torch.where(
            within > 0, (between - total.square() / n) / within, torch.nan
        ).numpy()
        n_positions = len(self._positions)
        return Activity(
            n,
            (self._active / n).numpy(),
            (total / n).numpy(),
            self._maximum.numpy(),
            (within / n).numpy(),
            self._by_position.means()[:, :n_positions].numpy(),
            share(self._between_episodes),
            share(self._by_frame.between()),
            share(self._by_position.between()),
            share(self._by_time.between() if self._timed else torch.nan * total),
            np.array(self._active_per_entry),
        )


class _Groups:
    """Sums and counts by a whole number, however large it becomes."""

    def __init__(self, n_neurons: int):
        self.sums = torch.zeros(n_neurons, 64, dtype=torch.float64)
        self._n = torch.zeros(64, dtype=torch.float64)

    def add(
        self, group: Int[Tensor, " g"], sums: Float[Tensor, "neuron g"], n: Int[Tensor, " g"]
    ) -> None:
        """Add to each group what came of it."""
        while int(group.max()) >= len(self._n):
            self.sums = torch.cat([self.sums, torch.zeros_like(self.sums)], 1)
            self._n = torch.cat([self._n, torch.zeros_like(self._n)])
        self.sums.index_add_(1, group, sums.double())
        self._n.index_add_(0, group, n.double())

    def means(self) -> Float[Tensor, "neuron group"]:
        """By group; NaN where there was nothing."""
        return self.sums / self._n

    def between(self) -> Float[Tensor, " neuron"]:
        """The sum over groups of n times the squared mean."""
        return (self.sums.square() / self._n.clamp_min(1)).sum(1)
