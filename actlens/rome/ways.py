"""Ways to grant a request: the edit with its scope, and ROME without."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from actlens.interventions.mlp_runs import MLPRuns
from actlens.rome.cases import Case
from actlens.rome.editing import EditOptions, solve_edit
from actlens.rome.evaluation import Make
from actlens.rome.metric import KeyMetric
from actlens.rome.prepared import Prepared
from actlens.rome.rivals import Change
from actlens.rome.scope import KeyBank, Scope, Scoped, scoped
from actlens.rome.situations import Situation
from actlens.rome.statistics import KeyStatistics
from actlens.rome.weight_edit import WeightEdit, edited_actions

SCOPED_RIDGE = 1e-2
"""In mean eigenvalues of the scoped moment: the frontier of an evaluation shows what it trades."""


@dataclass(frozen=True)
class Edited:
    """A policy with one weight edit, as a change."""

    edit: WeightEdit

    @property
    def relative_norm(self) -> float:
        """|W' - W| / |W|."""
        return self.edit.relative_norm

    def __call__(self, runs: MLPRuns) -> Float[Tensor, "scene chunk joint"]:
        """Normalised actions of the scenes under the edit.

        Raises:
            EditError: if the runs were kept at another MLP.
        """
        return edited_actions(runs, self.edit)


@dataclass(frozen=True)
class ScopedEdits:
    """Makes edits with the scope of their requests."""

    statistics: KeyStatistics
    bank: KeyBank
    scope: Scope
    ridge: float = SCOPED_RIDGE
    options: EditOptions | None = None

    def edit(self, prepared: Prepared, situations: Sequence[Situation]) -> WeightEdit:
        """The edit of some requests, whose record says with which scope.

        Raises:
            EditError: as `scoped` and `solve_edit`.
        """
        found = self.fitted(prepared, situations)
        metric = KeyMetric.of(found.statistics, self.ridge)
        edit = solve_edit(found.prepared, metric, options=self.options)
        places = self.bank.places
        said = {
            "scope": f"scenes within {places.alike:.3g} {places.unit} and {self.scope.alike_phase} "
            f"of the episode not counted, others of that phase {self.scope.elsewhere:g} times",
            "k* over": 1 + found.n_near,
        }
        return replace(edit, record=replace(edit.record, options={**edit.record.options, **said}))

    def fitted(self, prepared: Prepared, situations: Sequence[Situation]) -> Scoped:
        """Keys and moment of some requests, good for any ridge."""
        return scoped(prepared, self.statistics, self.bank, situations, self.scope)

    def __call__(self, case: Case) -> Change:
        """The change of a case."""
        return Edited(self.edit(case.prepared, [case.target.situation]))


def plain_edits(metric: KeyMetric, options: EditOptions | None = None) -> Make:
    """ROME without a scope: k* is the scene's own key, and C counts all of the data alike."""
    return lambda case: Edited(solve_edit(case.prepared, metric, options=options))
