"""How scenes are reconstructed."""

from dataclasses import dataclass

from actlens.errors import ConfigError


@dataclass(frozen=True)
class ReconstructionOptions:
    """Raises ConfigError for numbers that cannot be."""

    query: int = 0
    """The chunk position whose action vector is read by itself; 0 is the next action."""
    size: tuple[int, int] = (60, 80)
    """Rows and columns that pictures are shrunk to."""
    folds: int = 4
    """Held-out demonstrations are predicted from the other folds'; so are unseen episodes, where
    the decoder is taught with others of them."""
    examples: int = 1
    """Scenes of every unseen set whose pictures are kept to be shown."""
    seed: int = 0
    """Of untrained weights, shuffles and bootstraps."""

    def __post_init__(self) -> None:
        if self.query < 0 or self.folds < 2 or min(self.size) < 1 or self.examples < 0:
            raise ConfigError(
                "A reconstruction reads a chunk position of 0 or more, in two folds or more, in "
                f"pictures of a pixel or more; got {self}."
            )
