"""How far off decoded motions are, by depth: one panel for every set of scenes."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from actlens.lens import Part, Variant
from actlens.report.lens import first_moment, places_by_depth

_LINES = {
    Variant.RAW: ("#d95f02", "o-"),
    Variant.RENORM: ("#e6ab02", "s:"),
    Variant.TUNED: ("#1b9e77", "o-"),
    Variant.SHUFFLED: ("#7570b3", "x--"),
}


def save_depths(errors: pd.DataFrame, path: Path) -> None:
    """One PNG: errors against the policy at the first moment, with intervals by episode.

    Args:
        errors: `LensStudy.frame()`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = first_moment(errors)
    rows = rows[rows.against == "policy"]
    sets = list(dict.fromkeys(rows.set))
    figure = Figure(figsize=(1.2 + 2.9 * len(sets), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(sets), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, sets, strict=True):
        _panel(axis, rows[rows.set == name])
        axis.set_title(name, fontsize=9)
    axes[0].set_ylabel("off the policy's own, dataset units", fontsize=8)
    axes[0].set_ylim(bottom=0)
    lines, names = axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside upper center", ncols=len(names), fontsize=8)
    figure.savefig(path, dpi=110)


def _panel(axis, rows: pd.DataFrame) -> None:
    by_depth = rows[rows.part.isin([str(Part.ENCODER), str(Part.DECODER)])]
    places = places_by_depth(by_depth)
    at = {place: i for i, place in enumerate(places)}
    n_encoder = by_depth[by_depth.part == str(Part.ENCODER)].place.nunique()
    for variant, (colour, style) in _LINES.items():
        own = by_depth[by_depth.variant == str(variant)]
        for part in (Part.ENCODER, Part.DECODER):
            some = own[own.part == str(part)]
            label = str(variant) if part is Part.ENCODER else None
            _line(axis, [at[place] for place in some.place], some, colour, style, label)
    mean = rows[rows.part == str(Part.BASELINE)].rms.iloc[0]
    axis.axhline(mean, color="0.5", linestyle=":", linewidth=1, label="mean action")
    axis.axvline(n_encoder - 0.5, color="0.85", linewidth=1)
    axis.set_xticks(range(len(places)), places, rotation=60, ha="right", fontsize=7)
    axis.tick_params(axis="y", labelsize=7)


def _line(
    axis, x: Sequence[int], rows: pd.DataFrame, colour: str, style: str, label: str | None
) -> None:
    axis.plot(x, rows.rms, style, color=colour, label=label, markersize=4)
    axis.fill_between(x, rows.rms_low, rows.rms_high, color=colour, alpha=0.15, linewidth=0)
