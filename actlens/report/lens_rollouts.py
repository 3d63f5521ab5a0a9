"""The closed-loop part of the lens report: how often an unfinished network lifts the cube."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.text import Text

from actlens.report.cells import p_value
from actlens.report.closing import closing
from actlens.report.layout import facts_header, words_and_numbers
from actlens.report.plain import plain

_REGIONS = {"train": "new places", "held_out": "held-out", "strip": "strip", "all": "all, 95 %"}


def render_lens_rollouts(
    summary: pd.DataFrame, *, policy: str, steps: int, files: Sequence[Path] = ()
) -> RenderableType:
    """Successes of every lens in the policy's place, by region.

    Args:
        summary: `SubstitutedRollouts.summary()`.
        policy: one line that identifies the policy.
        steps: control steps of a rollout.
        files: what was written.
    """
    regions = summary.region.unique().tolist()
    n = int(summary.rollouts.min())
    line = f"{n} starts a region, {steps} control steps, the same starts for all"
    facts = [("policy", policy), ("rollouts", line)]
    header = facts_header("lens, closed loop", "what can an unfinished network do?", facts)
    names = [_REGIONS.get(region, plain(region)) for region in regions]
    title = "Cubes lifted, where the arm does what is shown by"
    table = words_and_numbers(title, "", *names, "mm", "q", dense=True)
    for condition, mine in summary.groupby("condition", sort=False):
        by_region = mine.set_index("region")
        last = by_region.loc[regions[-1]]
        cells = [f"{by_region.successes[r]}/{by_region.rollouts[r]}" for r in regions]
        cells[-1] += f" ({last.success_low:.0%}…{last.success_high:.0%})"
        plainly = np.isnan(last.p)
        name = "the policy" if plainly else plain(str(condition))
        off = f"{last.tip_error_mm:.0f}"
        table.add_row(Text(name), *cells, off, p_value(last.q), style="dim" if plainly else None)
    note = (
        "Maps were fitted at every frame at which the policy infers. Intervals: Wilson. mm: "
        "gripper to cube where it closed, median. q: exact McNemar against the policy on the same "
        "starts, Benjamini-Hochberg over lenses."
    )
    parts = [header, Text(), table, Text(), Text(note)]
    return Group(*parts, *closing([], 0, min_effect=0, files=files))
