"""What is counted, how often chance is asked, and how many tokens the claim speaks of."""

from dataclasses import dataclass

from actlens.errors import SceneError
from actlens.metrics import Positions

CLAIMED_TOKENS = (5, 20)
"""'Only 5-20 of the 602 tokens'."""
CLAIMED_OF = 602
"""Latent, state and two cameras of 480x640 pixels."""


def claimed_share(n_tokens: int) -> int:
    """The upper end of the claim as a share of the tokens (3.3 %), at least one token."""
    return max(1, round(CLAIMED_TOKENS[1] / CLAIMED_OF * n_tokens))


@dataclass(frozen=True)
class AttentionOptions:
    """How attention is measured.

    Attributes:
        positions: of the action chunk that count.
        tops: numbers of tokens that are kept to see whether they suffice; those at or above the
            number of tokens are left out.
        random: draws of as many random tokens.
        null_draws: random patterns of every head at every position of every scene.
        seed: of random tokens, nulls and bootstraps.

    Raises:
        SceneError: on construction, where nothing would be measured.
    """

    positions: Positions = Positions.WHOLE
    tops: tuple[int, ...] = (1, 5, 10, 20, 50)
    random: int = 5
    null_draws: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.tops or min(self.tops) < 1:
            raise SceneError(f"Keep at least one token and name a number, got {self.tops}.")
        if self.random < 1 or self.null_draws < 1:
            raise SceneError(
                "A null needs at least one draw, got "
                f"{self.random} of tokens and {self.null_draws} of patterns."
            )
