"""What is trained, and how freely: each part with all of its numbers, and all with equally many."""

from dataclasses import dataclass, replace
from enum import StrEnum

from actlens.finetuning.parts import (
    Part,
    cross_attention,
    decoder_mlp,
    encoder,
    everything,
    head,
    size,
)
from actlens.finetuning.updates import Subspace, Update, Whole
from actlens.model.act import HookedACT


class Budget(StrEnum):
    """How many numbers of a part are free."""

    WHOLE = "whole"
    """All that it has."""
    EQUAL = "equal"
    """As many as the smallest part has: a random subspace of that dimension."""
    RANK_ONE = "rank one"
    """What a matrix writes at one key, that of the new places."""
    KNOWN_KEY = "rank one, known key"
    """What it writes at the key of the places that are known: the null."""


@dataclass(frozen=True)
class Way:
    """One way to adapt a policy."""

    part: Part
    update: Update
    budget: Budget

    @property
    def name(self) -> str:
        """Of the part and the budget."""
        return f"{self.part.name}, {self.budget}"

    def with_seed(self, seed: int) -> "Way":
        """The same with another random subspace, if it has one."""
        if isinstance(self.update, Subspace):
            return replace(self, update=replace(self.update, seed=seed))
        return self


def equal_budget(model: HookedACT) -> int:
    """The size of the head, the smallest of the parts."""
    return size(head(model).weights(model))


def standard_ways(model: HookedACT) -> tuple[Way, ...]:
    """The decoder's parts and the encoder's last block, each whole and with the head's budget."""
    last = encoder(model, model.config.n_encoder_layers - 1)
    parts, budget = [decoder_mlp(model), cross_attention(model), last], equal_budget(model)
    whole = [Way(part, Whole(), Budget.WHOLE) for part in parts]
    equal = [Way(part, Subspace(budget), Budget.EQUAL) for part in parts]
    return (*whole, *equal, Way(head(model), Whole(), Budget.EQUAL))


def large_ways(model: HookedACT, *, upper_bound: bool = False) -> tuple[Way, ...]:
    """The whole encoder: it takes about as long as all of `standard_ways`.

    Args:
        upper_bound: also everything behind the tokens at once.
    """
    parts = [encoder(model)] if model.config.n_encoder_layers > 1 else []
    parts += [everything(model)] if upper_bound else []
    return tuple(Way(part, Whole(), Budget.WHOLE) for part in parts)
