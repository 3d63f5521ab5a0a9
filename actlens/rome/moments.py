"""Second moments that stream by, every episode with the same weight, and a sample of what did."""

from collections.abc import Hashable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.rome.errors import EditError
from actlens.scene import Scene

Moment = Float[Tensor, "neuron neuron"]


class EpisodeMoments:
    """The mean over episodes of the mean of k k^T over an episode's keys, in float64.

    Episodes also fall into two halves, the first, third, … and the second, fourth, …, so that what
    was fitted on the one can be tried on the other.
    """

    def __init__(self, like: Float[Tensor, "d_model neuron"]):
        n = like.shape[1]
        make = lambda: torch.zeros(n, n, dtype=torch.float64, device=like.device)
        self._episode, self._halves = make(), (make(), make())
        self._name: Hashable = None
        self._finished: set[Hashable] = set()
        self._n_in_half = [0, 0]
        self._n_in_episode = 0
        self.n_keys = 0

    @property
    def n_episodes(self) -> int:
        """Episodes that had keys."""
        return sum(self._n_in_half)

    @property
    def half(self) -> int:
        """Which half the present episode belongs to, 0 or 1."""
        return self.n_episodes % 2

    def enter(self, name: Hashable) -> None:
        """The keys to come are those of this episode.

        Raises:
            EditError: if the episode had already ended.
        """
        if name == self._name:
            return
        self.leave()
        if name in self._finished:
            raise EditError(
                f"The scenes of episode {name} come in pieces: give scenes episode by episode, so "
                "that each episode can weigh the same."
            )
        self._name = name

    def add(self, keys: Float[Tensor, "key neuron"]) -> None:
        """Count keys of the present episode."""
        # In float64: small eigenvalues, which decide where an edit goes, drown in float32's sums.
        exact = keys.double()
        self._episode.addmm_(exact.T, exact)
        self._n_in_episode += len(keys)
        self.n_keys += len(keys)

    def leave(self) -> None:
        """The present episode has ended."""
        if self._n_in_episode:
            self._halves[self.half].add_(self._episode, alpha=1 / self._n_in_episode)
            self._n_in_half[self.half] += 1
        self._episode.zero_()
        self._n_in_episode = 0
        self._finished.add(self._name)
        self._name = None

    def mean(self) -> Moment:
        """Over all episodes that have ended."""
        return (self._halves[0] + self._halves[1]) / self.n_episodes

    def halves(self) -> tuple[Moment, Moment] | None:
        """Over each half of the episodes; None if one has none."""
        if not all(self._n_in_half):
            return None
        first, second = (total / n for total, n in zip(self._halves, self._n_in_half, strict=True))
        return first, second


class KeySample:
    """At most one key a scene, of scenes drawn evenly from a stream (reservoir sampling)."""

    def __init__(self, size: int, generator: torch.Generator):
        self._size, self._generator = size, generator
        self._kept: list[tuple[Tensor, tuple[int, int, int], int]] = []
        self._n_seen = 0

    def offer(
        self,
        keys: Float[Tensor, "position neuron"],
        counted: Int[Tensor, " counted"],
        scene: Scene,
        half: int,
    ) -> None:
        """Perhaps keep one of a scene's counted keys."""
        self._n_seen += 1
        slot = self._draw(self._n_seen)
        if len(self._kept) < self._size:
            slot = len(self._kept)
            self._kept.append((keys[0], (0, 0, 0), 0))
        if slot < self._size:
            position = int(counted[self._draw(len(counted))])
            # A copy, which does not hold on to the activations of the whole batch.
            key = keys[position].cpu().clone()
            self._kept[slot] = key, (scene.episode, scene.frame, position), half

    def _draw(self, n: int) -> int:
        return int(torch.randint(n, (), generator=self._generator))

    def keys(self) -> Float[Tensor, "sample neuron"]:
        """The sample."""
        return torch.stack([key for key, _, _ in self._kept])

    def addresses(self) -> Int[Tensor, "sample 3"]:
        """Episode, frame and position of each key of the sample."""
        return torch.tensor([address for _, address, _ in self._kept])

    def by_half(self) -> tuple[Float[Tensor, "first neuron"], Float[Tensor, "second neuron"]]:
        """The sample's keys from either half of the episodes."""
        of = torch.tensor([half for _, _, half in self._kept])
        keys = self.keys()
        return keys[of == 0], keys[of == 1]
