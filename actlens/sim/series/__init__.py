"""Policies that were shown more and less: how far beyond their demonstrations do they reach?

    runs = all_runs(seeds=3)
    records = run_series(Path("runs/series"), runs, size=Size(), options=EvaluationOptions())
    success_along(records)                       # closed loop, by dose and region
    index_along(bundled_series(), DEGREES, FIRST)   # what is shipped: nothing is trained

Two dose curves of small policies, trained from scratch for equally many steps: on 5 to 100
demonstrations, and on fifty at 1, 5 and 9 places or all over the table. Everything is measured at
the same scenes and from the same starts; the training seed is the unit over which doses are
compared.
"""

from actlens.sim.series.arms import ARMS, Arm, Run, all_runs
from actlens.sim.series.closed_loop import (
    SHOWN,
    starts_by_region,
    success_by_region,
    success_summary,
)
from actlens.sim.series.evaluation import EvaluationOptions, evaluate_policy, record_of
from actlens.sim.series.offline import (
    ALL,
    BETWEEN,
    DEGREES,
    FIRST,
    REGIONS,
    Offline,
    offline,
    reference_of,
)
from actlens.sim.series.records import (
    along_demonstrations,
    along_positions,
    bundled_series,
    error_along,
    index_along,
    mechanism_along,
    over_seeds,
    pack,
    success_along,
    success_by_distance,
    table,
    verdicts_along,
)
from actlens.sim.series.running import finished, run_series
from actlens.sim.series.training import Size

__all__ = [
    "ALL",
    "ARMS",
    "BETWEEN",
    "DEGREES",
    "FIRST",
    "REGIONS",
    "SHOWN",
    "Arm",
    "EvaluationOptions",
    "Offline",
    "Run",
    "Size",
    "all_runs",
    "along_demonstrations",
    "along_positions",
    "bundled_series",
    "error_along",
    "evaluate_policy",
    "finished",
    "index_along",
    "mechanism_along",
    "offline",
    "over_seeds",
    "pack",
    "record_of",
    "reference_of",
    "run_series",
    "starts_by_region",
    "success_along",
    "success_by_distance",
    "success_by_region",
    "success_summary",
    "table",
    "verdicts_along",
]
