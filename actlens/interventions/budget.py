"""Faster than exact, within an allowed error that is measured on every run.

After an edit most tokens hardly move. Leaving those at the base run's values that move by less than
a tolerance saves most of the work on trained policies (on random weights nothing). No bound on the
error follows from the tolerance, so each run is audited: the interventions of which the most was
left out, and as many random ones, are made again exactly, and the tolerance is lowered until they
agree.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from actlens.errors import InterventionError
from actlens.interventions.effects import Effects
from actlens.interventions.engine import run
from actlens.interventions.evaluate import Precision
from actlens.interventions.intervention import Intervention
from actlens.interventions.memory import DEFAULT_BUDGET
from actlens.interventions.scene_run import SceneRun
from actlens.model.act import HookedACT

LARGEST_TOLERANCE = 0.03
SMALLEST_TOLERANCE = 1e-4
"""Below this hardly a token is left out: the run is exact instead."""
_LOWERED_BY = 2.0


@dataclass(frozen=True)
class Audit:
    """What a run within an allowed error was held against.

    Errors are norms of the difference of two action chunks, as shares of the base run's norm.
    """

    tolerance: float
    """With which tokens were left out; 0 if the run was exact after all."""
    n_random: int
    """Interventions drawn at random and made again exactly."""
    largest_random: float
    """Their largest error."""
    n_suspect: int
    """Interventions of which the most was left out, made again exactly."""
    largest_suspect: float
    """Their largest error."""

    @property
    def largest(self) -> float:
        """The largest error of the audit."""
        return max(self.largest_random, self.largest_suspect)


@torch.no_grad()
def run_within(
    model: HookedACT,
    base: SceneRun,
    interventions: Sequence[Intervention],
    donors: Mapping[str, SceneRun] | None = None,
    *,
    max_error: float,
    n_audit: int = 32,
    tolerance: float = LARGEST_TOLERANCE,
    precision: Precision = Precision.FULL,
    seed: int = 0,
    memory_budget: int = DEFAULT_BUDGET,
    advance: Callable[[int], None] = lambda n: None,
) -> tuple[Effects, Audit]:
    """As `run`, with every audited error at most `max_error`; audited results are the exact ones.

    Args:
        max_error: of an action chunk, as a share of the base run's norm; 0.002 is 0.2 %.
        n_audit: interventions that are made again exactly, half of them at random, half those of
            which the most was left out.
        tolerance: to begin with; a run on a similar scene tells a good one.
        precision: of the large products; the audit is made in the model's own.
        seed: of the random half of the audit.

    Raises:
        InterventionError: if `max_error` or `n_audit` is not positive, and as `run` does.
    """
    if not max_error > 0 or n_audit < 2:
        raise InterventionError(
            f"max_error ({max_error:g}) must be positive and n_audit ({n_audit}) at least 2; "
            "without an allowed error use run()."
        )
    again = lambda chosen, **options: run(
        model, base, chosen, donors, memory_budget=memory_budget, **options
    )
    generator = np.random.default_rng(seed)
    n_suspect = min(n_audit // 2, len(interventions))
    n_random = min(n_audit - n_suspect, len(interventions) - n_suspect)
    drawn = generator.permutation(len(interventions))
    norm = float(base.actions.norm())
    while tolerance >= SMALLEST_TOLERANCE:
        effects = again(interventions, tolerance=tolerance, precision=precision)
        suspect = np.argsort(-effects.left_out, kind="stable")[:n_suspect]
        others = drawn[~np.isin(drawn, suspect)][:n_random]
        audited = np.concatenate([suspect, others])
        exact = again([interventions[i] for i in audited])
        error = (effects.actions[audited] - exact.actions).flatten(1).norm(dim=1) / norm
        largest = lambda part: float(part.max()) if len(part) else 0.0
        audit = Audit(
            tolerance, n_random, largest(error[n_suspect:]), n_suspect, largest(error[:n_suspect])
        )
        if audit.largest <= max_error:
            advance(len(interventions))
            return _with_exact(effects, exact, audited), audit
        tolerance /= _LOWERED_BY
    return again(interventions, advance=advance), Audit(0.0, 0, 0.0, 0, 0.0)


def _with_exact(effects: Effects, exact: Effects, audited: np.ndarray) -> Effects:
    """The effects with the audited ones replaced by their exact values."""
    actions, output_change = effects.actions.clone(), effects.output_change.copy()
    actions[audited] = exact.actions
    output_change[audited] = exact.output_change
    return replace(effects, actions=actions, output_change=output_change)
