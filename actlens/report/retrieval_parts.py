"""Parts of the battery's report: retrieval at every site, surrogates, a table's size, a monitor."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from rich.console import RenderableType
from rich.text import Text

from actlens.report.cells import estimate, number
from actlens.report.layout import words_and_numbers
from actlens.report.plain import plain
from actlens.retrieval import ALL_JOINTS, TIP, Metric

_ESTIMATORS = ("1-NN", "k-NN", "kernel", "ridge")


def ladder(table: pd.DataFrame) -> list[RenderableType]:
    """Errors by site and rival, across episodes and at unseen scenes."""
    measure = TIP if TIP in set(table.measure) else ALL_JOINTS
    rows = table[(table.measure == measure) & (table.metric != Metric.COSINE)]
    sets = list(dict.fromkeys(rows.scenes))
    soft = next(name for name in rows.estimator if name.endswith("soft"))
    names = dict(zip(("1-NN", soft, "kernel", "ridge"), _ESTIMATORS, strict=True))
    unit = "mm of the tip" if measure == TIP else "spreads of the actions"
    title = f"Retrieval at every site: error, {unit}"
    own, new = list(_ESTIMATORS), [f"new {name}" for name in _ESTIMATORS]
    shown = words_and_numbers(title, "looked up by", *own, *new[: 4 * (len(sets) - 1)], dense=True)
    for site, of_site in rows.groupby("site", sort=False):
        cells = []
        for scenes in sets:
            errors = of_site[of_site.scenes == scenes].set_index("estimator").error
            if "" in errors.index:  # the policy itself
                cells += [
                    f"{errors['']:.1f}" if measure == TIP else f"{errors['']:.2f}",
                    "",
                    "",
                    "",
                ]
            else:
                cells += [_short(errors[name]) for name in names]
        shown.add_row(Text(plain(str(site))), *cells)
    return [shown, Text(), Text(_LADDER.format(soft=plain(soft))), Text()]


_LADDER = (
    "Left: every demonstration, found among those of other episodes; the policy's own error there "
    "is on what it was trained on, as are its sites. Right: all unseen scenes. k-NN: {soft}, as "
    "VINN does. Standardised distance; by cosine in ladder.csv. kernel and ridge smooth over the "
    "same keys: where they do better, a good nearest neighbour is no evidence of a table."
)


def _short(value: float) -> str:
    if np.isnan(value):
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 3 else f"{value:.2f}"


def substitution(table: pd.DataFrame) -> list[RenderableType]:
    """Errors with something else in the MLP's place, from the expert and from the policy."""
    sets = list(dict.fromkeys(table.scenes))
    heads = [name for scenes in sets for name in (_FOR.get(scenes, scenes), "from policy")]
    shown = words_and_numbers(
        "Something else in the MLP's place: error, dataset units",
        "",
        *map(plain, heads),
        dense=True,
    )
    for part, of_part in table.groupby("part", sort=False):
        if part:
            shown.add_row(Text(f"instead of {'the ' * (part == 'MLP')}{part}", style="bold"))
        for surrogate, rows in of_part.groupby("surrogate", sort=False):
            by_scenes = rows.set_index("scenes")
            cells = []
            for scenes in sets:
                row = by_scenes.loc[scenes]
                away = number(row.to_policy, ".2f") if part else ""
                cells += [number(row.to_expert, ".2f"), away]
            shown.add_row(Text(plain(f"{'· ' * bool(part)}{surrogate}")), *cells)
    return [shown, Text(), Text(_SUBSTITUTION), Text()]


_FOR = {"demonstrations": "known"}
_SUBSTITUTION = (
    "Left of each pair: from the expert; right: from the policy. Fitted on the demonstrations, "
    "known scenes across episodes; at the positions that are carried out. Known scenes cannot tell "
    "a table from a rule, for there both do the same; and a table that stands in well is no "
    "evidence of one: compare it with the linear map, at unseen scenes."
)


def capacity(table: pd.DataFrame) -> list[RenderableType]:
    """Cells that a table would need."""
    columns = ("within", "spreads", "cells", "at least", "neurons", "a neuron each?")
    shown = words_and_numbers("Could a table hold the demonstrations?", "actions", *columns)
    for row in table.to_dict("records"):
        shown.add_row(
            f"{row['actions']}",
            f"{row['tolerance']:g}",
            number(row["spreads"], ".3f"),
            f"{row['cells']}",
            f"{row['at_least']}",
            f"{row['neurons']}",
            str(row["fits"]),
        )
    return [shown, Text(), Text(_CAPACITY), Text()]


_CAPACITY = (
    "within: of every joint, dataset units; spreads: the same over the median joint's standard "
    "deviation. cells: that suffice; at least: that no table can do without. Arithmetic, not "
    "evidence: a table may be coarse, and its cells may share neurons."
)


def monitor(table: pd.DataFrame) -> list[RenderableType]:
    """When the distance to the nearest demonstration would warn."""
    sets = list(dict.fromkeys(table.scenes))
    shown = words_and_numbers(
        "A monitor: alarms by the distance to the nearest demonstration",
        "distance at",
        "threshold",
        *map(plain, sets),
        "AUC, 95 %",
    )
    for site, rows in table.groupby("site", sort=False):
        by_scenes = rows.set_index("scenes")
        first = rows.iloc[0]
        area = estimate(first, "auc", ".2f") or "undefined"
        counts = (f"{by_scenes.alarms[s]}/{by_scenes.episodes[s]}" for s in sets)
        shown.add_row(Text(plain(str(site))), f"{first.threshold:.3g}", *counts, area)
    return [shown, Text(), Text(_monitor_note(table, sets)), Text()]


def _monitor_note(table: pd.DataFrame, sets: Sequence[str]) -> str:
    n = int(table.drop_duplicates("scenes").episodes.sum())
    large = int(table.large_errors.iloc[0])
    return (
        "Episodes with an alarm at any of the frames. The threshold is calibrated on the "
        f"demonstrations. AUC: that the distance tells the {large} of {n} episodes whose error is "
        "larger than in 95 % of the demonstrated ones from the others (0.5: by chance). Sites are "
        "alternatives, not tests that add up."
    )
