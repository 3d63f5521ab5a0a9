"""How attributions are made and audited."""

from dataclasses import dataclass
from enum import StrEnum

from actlens.errors import InterventionError
from actlens.interventions.memory import DEFAULT_BUDGET
from actlens.metrics import Positions


class Gradient(StrEnum):
    """Where the gradient is taken that a difference of activations is multiplied with."""

    BASE = "base"
    """At the run that is patched: one forward and one backward."""
    SYMMETRISED = "symmetrised"
    """The mean of the estimates with the gradients of both runs: two forwards and backwards."""
    INTEGRATED = "integrated"
    """The mean over runs from tokens on the straight way from one scene's to the other's: the
    integrated gradients (Sundararajan et al. 2017) of the tokens, and the same runs' gradients at
    all other sites (Hanna et al. 2024). Mind that differences of activations stay those of the two
    scenes: only at the tokens do the estimates of a cut add up to all that patching it does."""


@dataclass(frozen=True)
class AttributionOptions:
    """How attributions are made and audited.

    Raises:
        InterventionError: on construction, if a number makes no sense.
    """

    gradient: Gradient = Gradient.BASE
    points: int = 8
    """Runs on the way, for integrated gradients."""
    qk_fix: bool = True
    """Queries, keys and scores through the softmax exactly; if not, linearised as all else."""
    n_audit: int = 8
    """Sites of every cut that are patched exactly because their estimates are the largest, and as
    many others at random."""
    top_k: int = 5
    """Of how many of the strongest sites the audit tells whether they were found."""
    threshold: float = 0.05
    """A restored share that should not be overlooked."""
    min_effect: float = 1.0
    """Pairs whose actions differ by less (root mean square, dataset units) are left out."""
    positions: Positions = Positions.WHOLE
    """Which positions of the action chunk count."""
    memory_budget: int = DEFAULT_BUDGET
    """Bytes that the temporaries of exact patches that share a batch may take."""

    @property
    def gradients(self) -> int:
        """How many are taken of a pair: at both of its scenes, and on the way between them."""
        return 2 + (self.points if self.gradient is Gradient.INTEGRATED else 0)

    def __post_init__(self) -> None:
        for name, least in (("points", 1), ("n_audit", 1), ("top_k", 1)):
            if getattr(self, name) < least:
                raise InterventionError(
                    f"{name} must be at least {least}, got {getattr(self, name)}: an estimate "
                    "comes with its audit."
                )
        if not self.threshold > 0:
            raise InterventionError(f"threshold must be positive, got {self.threshold:g}.")
