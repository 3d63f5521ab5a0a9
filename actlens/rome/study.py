"""All that evaluations of edits of one MLP share: statistics, a bank of keys, targets, units."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from actlens.metrics import executed_positions
from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite
from actlens.rome.cases import Case
from actlens.rome.editing import EditOptions, solve_edit
from actlens.rome.errors import EditError
from actlens.rome.evaluation import Make
from actlens.rome.fine_tuning import FineTuning, fine_tune
from actlens.rome.metric import KeyMetric
from actlens.rome.overlay import overlay, same_phase_radius
from actlens.rome.request import JointLimits
from actlens.rome.rivals import at_random_keys, head_shift, without_statistics
from actlens.rome.scope import KeyBank, KeyWatch, Scope
from actlens.rome.situations import Places, places_of
from actlens.rome.statistics import KeyStatistics, key_statistics_of
from actlens.rome.targets import scenes_at
from actlens.rome.update import NullSpace
from actlens.rome.ways import Edited, ScopedEdits, plain_edits
from actlens.scenes.dataset import Dataset

SCOPED = "edit with its scope"
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
_POSITIONS = 32
"""Of a scene, drawn for its statistics: half of what `key_statistics` takes, of many scenes."""
_PHASES = tuple(tenth / 10 for tenth in range(10))


@dataclass(frozen=True)
class Study:
    """A policy's MLP with its key statistics from one half of the episodes."""

    model: HookedACT
    statistics: KeyStatistics
    elsewhere: tuple[KeyStatistics, ...]
    """Of other blocks, from the same forwards."""
    bank: KeyBank
    places: Places
    limits: JointLimits | None
    scope: Scope = field(default_factory=Scope)

    @classmethod
    def of(
        cls,
        model: HookedACT,
        dataset: Dataset,
        block: str,
        episodes: Sequence[int],
        *,
        blocks: Sequence[str] = (),
        places: Places | None = None,
        phases: Sequence[float] = _PHASES,
        scope: Scope | None = None,
        progress: Callable[[int], None] = lambda n_scenes: None,
    ) -> "Study":
        """Run the scenes of some episodes at some phases.

        Args:
            blocks: further blocks of which statistics are taken.
            places: of all episodes of the dataset; by its labels, if not given.
            progress: told how many scenes were run, batch by batch.

        Raises:
            EditError: as `key_statistics`, and if the dataset has fewer than four episodes.
        """
        site = MLPSite.of(model, block)
        places = places or places_of(dataset)
        last = f"decoder.{model.config.n_decoder_layers - 1}"
        config = model.config
        n = config.chunk if site.in_decoder else config.n_tokens
        watch = KeyWatch(site, places, executed_positions(config) if block == last else range(n))
        found = key_statistics_of(
            model,
            scenes_at(dataset, episodes, phases, chunk=config.chunk),
            [block, *(other for other in blocks if other != block)],
            max_positions=_POSITIONS,
            progress=progress,
            watch=watch,
        )
        limits = JointLimits.demonstrated(found[0])
        return cls(model, found[0], found[1:], watch.bank(), places, limits, scope or Scope())

    def scoped(self, ridge: float | None = None) -> ScopedEdits:
        """Edits with the scope of their requests; by default with its own ridge."""
        edits = ScopedEdits(self.statistics, self.bank, self.scope)
        return edits if ridge is None else replace(edits, ridge=ridge)

    def metric(self, ridge: float | None = None) -> KeyMetric:
        """Of all data alike, with the ridge that the statistics choose or another."""
        return KeyMetric.of(self.statistics, ridge)

    def ways(self) -> dict[str, Make]:
        """The edit with its scope, and what it must beat; fast ones."""
        metric = self.metric()
        found: dict[str, Make] = {
            SCOPED: self.scoped(),
            f"ROME, ridge {metric.ridge:.2g}": plain_edits(metric),
            "ROME without C": plain_edits(without_statistics(metric)),
            "AlphaEdit": plain_edits(metric, EditOptions(NullSpace.of(self.statistics))),
            "bias of the head": lambda case: head_shift(case.prepared),
            "random keys, same size": lambda case: at_random_keys(
                solve_edit(case.prepared, metric), metric, avoid=[case.target.scene.episode]
            ),
        }
        try:
            radius = same_phase_radius(self.statistics)
        except EditError:  # a small sample: there is no such rival
            return found
        return found | {"retrieval": lambda case: overlay(case.prepared, radius)}

    def slow_ways(self) -> dict[str, Make]:
        """Rivals that take a while."""
        return {
            "fine-tuning": lambda case: fine_tune(case.prepared),
            "fine-tuning, capped": lambda case: fine_tune(case.prepared, FineTuning(cap=0.3)),
        }

    def frontier(self, cases: Sequence[Case], ridges: Sequence[float] = RIDGES) -> dict[str, Make]:
        """What the ridge trades, with a scope and without, for these cases."""
        edits = self.scoped()
        fitted = {id(case): edits.fitted(case.prepared, [case.target.situation]) for case in cases}
        at_ridge = lambda ridge: (
            lambda case: Edited(
                solve_edit(
                    fitted[id(case)].prepared, KeyMetric.of(fitted[id(case)].statistics, ridge)
                )
            )
        )
        with_scope = {f"with scope, {ridge:g}": at_ridge(ridge) for ridge in ridges}
        return with_scope | {
            f"without, {ridge:g}": plain_edits(self.metric(ridge)) for ridge in ridges
        }
