"""Decoders retrained on random episodes, until their counterfactual memorisation is known."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int

from actlens.errors import SceneError
from actlens.retraining.entries import Entries
from actlens.retraining.learners import Learner
from actlens.retraining.memorisation import Memorisation


@dataclass(frozen=True)
class MemorisationOptions:
    """How many decoders are trained, and on what."""

    left_out: float = 0.3
    """Share of the episodes that a decoder does not learn."""
    standard_error: float = 0.01
    """Decoders are added until the share of the error is known this well, as far as it depends on
    which decoders were trained."""
    at_once: int = 10
    """Decoders that are trained side by side, and the fewest there are."""
    most: int = 20
    """Decoders at most."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.left_out < 1 or self.at_once < 4 or self.most < self.at_once:
            raise SceneError(
                "Memorisation needs a share of episodes to leave out between 0 and 1, and at least "
                f"4 decoders at once: got {self.left_out}, {self.at_once} of at most {self.most}."
            )


def memorisation(
    entries: Entries,
    learner: Learner,
    options: MemorisationOptions | None = None,
    *,
    elsewhere: Mapping[str, Entries] | None = None,
    progress: Callable[[int], None] = lambda n_decoders: None,
) -> dict[int, Memorisation]:
    """Retrain decoders on random episodes, until the estimate is good enough.

    Args:
        entries: of the demonstrations.
        learner: what is trained; `Decoders(Shape.of(model.config))` for the policy's own kind.
        elsewhere: scenes that nobody was trained on, by name.
        progress: told how many decoders were trained, round by round.

    Returns:
        By steps of training, in rising order.

    Raises:
        SceneError: if there are too few episodes to leave some out.
    """
    options, elsewhere = options or MemorisationOptions(), elsewhere or {}
    n = entries.n_episodes
    n_out = round(options.left_out * n)
    if not 1 <= n_out <= n - 1:
        raise SceneError(
            f"{options.left_out:.0%} of {n} episodes cannot be left out: take more episodes."
        )
    queries = torch.cat([entries.x, *(one.x for one in elsewhere.values())])
    sizes = [len(entries), *map(len, elsewhere.values())]
    rng = np.random.default_rng(options.seed)
    deck = _Deck(n, rng)
    found: dict[int, Memorisation] = {}
    n_decoders = 0
    while True:
        learnt = np.ones((options.at_once, n), dtype=bool)
        for row in learnt:
            row[deck.deal(n_out)] = False
        answers = learner(entries, learnt, queries, int(rng.integers(2**31)))
        for step, given in answers.items():
            own, *rest = given.split(sizes, 1)
            others = {
                name: one.errors(part)
                for (name, one), part in zip(elsewhere.items(), rest, strict=True)
            }
            more = Memorisation(entries.errors(own), learnt, entries.indices, others)
            found[step] = found[step].joined(more) if step in found else more
        progress(options.at_once)
        n_decoders += options.at_once
        if n_decoders + options.at_once > options.most:
            return found
        if all(one.is_known_to(options.standard_error) for one in found.values()):
            return found


class _Deck:
    """Deals episodes to leave out so that none comes up more than once more than another."""

    def __init__(self, n: int, rng: np.random.Generator):
        self._n, self._rng = n, rng
        self._dealt = np.zeros(n, dtype=np.int64)

    def deal(self, n: int) -> Int[np.ndarray, " dealt"]:
        """Those that were dealt least often, in random order among equals."""
        order = np.lexsort((self._rng.random(self._n), self._dealt))[:n]
        self._dealt[order] += 1
        return order
