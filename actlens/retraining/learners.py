"""What is retrained on some of the episodes, and asked about all of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from actlens.errors import SceneError
from actlens.retraining.entries import Entries
from actlens.tails import Shape, Tails, Training, draws, fit, whiten

Answers = Float[Tensor, "decoder query joint"]


class Learner(Protocol):
    """Decoders that each learn some episodes."""

    def __call__(
        self,
        entries: Entries,
        learnt: Bool[np.ndarray, "decoder episode"],
        queries: Float[Tensor, "query d_model"],
        seed: int,
    ) -> Mapping[int, Answers]:
        """Normalised answers of every decoder to vectors, by steps of training.

        Args:
            learnt: which episodes' entries each decoder sees.
            seed: of all that is drawn.
        """
        ...


@dataclass(frozen=True)
class Decoders:
    """Ends of the policy's decoder, trained from nothing: MLP, norms and head."""

    shape: Shape
    stops: tuple[int, ...] = (50, 100, 200, 400, 800)
    """Steps after which they are asked. What is learnt by heart grows with training."""
    batch_size: int = 128
    """Chunk positions."""
    lr: float = 1e-3
    """Constant, so that a stop is the end of a shorter training."""
    weight_decay: float = 1e-4
    whitened: float | None = None
    """Start from keys that see all directions alike (`tails.whiten`), down to this share of the
    largest variance; from torch's own if None. Learning by heart is quicker from there."""
    bf16: bool = True
    """Multiply the MLP's matrices in bfloat16, as ACT is trained here."""

    def __post_init__(self) -> None:
        if not self.stops or sorted(set(self.stops)) != list(self.stops) or self.stops[0] < 1:
            raise SceneError(f"Steps must rise from 1, got {', '.join(map(str, self.stops))}.")

    def __call__(
        self,
        entries: Entries,
        learnt: Bool[np.ndarray, "decoder episode"],
        queries: Float[Tensor, "query d_model"],
        seed: int,
    ) -> Mapping[int, Answers]:
        """See `Learner`."""
        tails = started(self.shape, entries, len(learnt), seed, whitened=self.whitened)
        generator = torch.Generator().manual_seed(seed)
        draw = draws(entries.members(learnt), self.batch_size, generator)
        training = Training(
            self.stops[-1], self.lr, self.weight_decay, one_cycle=False, bf16=self.bf16
        )
        answers: dict[int, Answers] = {}
        ask = lambda step: answers.update({step: tails.answers(queries)})
        fit(tails, entries.x, entries.actions, draw, training, stops=self.stops, watch=ask)
        return answers


def started(
    shape: Shape, entries: Entries, n: int, seed: int, *, whitened: float | None = None
) -> Tails:
    """New ends of decoders that answer about the mean action; the random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tails = Tails.drawn(shape, n).to(entries.x)
        if whitened is not None:
            whiten(tails, entries.x.double(), whitened)
    tails.weights["action_head.bias"][:] = entries.actions.mean(0)
    return tails


@dataclass(frozen=True)
class LinearReadout:
    """Ridge regression from the vectors to the actions: what no table can hide in."""

    penalty: float = 1e-4
    """Of the mean variance of a dimension."""

    def __call__(
        self,
        entries: Entries,
        learnt: Bool[np.ndarray, "decoder episode"],
        queries: Float[Tensor, "query d_model"],
        seed: int,
    ) -> Mapping[int, Answers]:
        """See `Learner`. Nothing is drawn, and there are no steps."""
        members = entries.members(learnt)
        return {0: torch.stack([self._one(entries, own, queries) for own in members])}

    def _one(self, entries: Entries, own: Tensor, queries: Tensor) -> Tensor:
        x, targets = entries.x[own].double(), entries.actions[own].double()
        mean, level = x.mean(0), targets.mean(0)
        centred = x - mean
        moment = centred.T @ centred / len(x)
        moment.diagonal().add_(self.penalty * float(moment.diagonal().mean()))
        slope = torch.linalg.solve(moment, centred.T @ (targets - level) / len(x))
        return ((queries.double() - mean) @ slope + level).to(queries.dtype)
