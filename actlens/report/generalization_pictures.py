"""A policy over the table, and what more demonstrations change, as pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

_HATCH = {"held-out cells": "////", "strip": "...."}
"""Regions that no demonstration touches."""
_COLOURS = ("#542788", "#b35806", "#1b7837", "#2166ac", "#b2182b", "#4d4d4d")


@dataclass(frozen=True)
class Tile:
    """A square of the table."""

    x: float
    """The smallest, in metres from the base; away from it."""
    y: float
    """The smallest, in metres; to the arm's left."""
    side: float
    """Metres."""
    region: str
    value: float | None
    """None where nothing was tried."""


@dataclass(frozen=True)
class TableMap:
    """One map: a value for every tile."""

    title: str
    tiles: Sequence[Tile]
    largest: float
    """The value of the darkest colour; the lightest is 0."""
    form: str = ".0f"
    """How a value is written into its cell."""
    good_is_large: bool = False


def save_table_maps(
    maps: Sequence[TableMap], demonstrated: Float[np.ndarray, "episode 2"], path: Path
) -> None:
    """One PNG, two maps beside one another: cells coloured, dots where a demonstration began.

    The arm stands below; y, to its left, runs to the left. Hatched: held-out cells; dotted: strip.

    Args:
        demonstrated: x and y in metres.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_rows = (len(maps) + 1) // 2
    figure = Figure(figsize=(10.4, 2.6 * n_rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(n_rows, 2, squeeze=False).flatten()
    for axis in axes[len(maps) :]:
        axis.set_axis_off()
    for axis, shown in zip(axes, maps, strict=False):
        _draw_map(axis, shown, demonstrated)
    figure.savefig(path, dpi=110)


def _draw_map(axis, shown: TableMap, demonstrated: np.ndarray) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    colours = colormaps["viridis" if shown.good_is_large else "viridis_r"]
    for tile in shown.tiles:
        corner, side = (100 * tile.y, 100 * tile.x), 100 * tile.side
        face = (1.0, 1.0, 1.0, 1.0)
        if tile.value is not None:
            face = colours(min(1.0, tile.value / shown.largest))
            dark = float(np.dot(face[:3], (0.3, 0.59, 0.11))) < 0.5
            middle = corner[0] + side / 2, corner[1] + side / 2
            text, colour = format(tile.value, shown.form), "white" if dark else "black"
            axis.text(*middle, text, ha="center", va="center", fontsize=7, color=colour)
        axis.add_patch(Rectangle(corner, side, side, facecolor=face))
        edge = {"fill": False, "edgecolor": "#bbbbbb", "linewidth": 0.5}
        axis.add_patch(Rectangle(corner, side, side, hatch=_HATCH.get(tile.region), **edge))
    if len(demonstrated):
        axis.scatter(
            100 * demonstrated[:, 1],
            100 * demonstrated[:, 0],
            s=7,
            color="#d7191c",
            edgecolors="white",
            linewidths=0.3,
            zorder=3,
        )
    axis.set_title(shown.title, fontsize=9)
    axis.set_xlabel("y, cm (the arm's left)", fontsize=8)
    axis.set_ylabel("x, cm", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.autoscale_view()
    axis.set_aspect("equal")
    axis.invert_xaxis()


@dataclass(frozen=True)
class DosePanel:
    """One statistic along a dose."""

    title: str
    curves: Mapping[str, pd.DataFrame]
    """By name: columns `mean`, `smallest`, `largest` over training seeds, and the dose."""
    limits: tuple[float, float] | None = None


def save_dose_curves(rows: Sequence[Mapping[str, DosePanel]], path: Path) -> None:
    """One PNG: a row of panels for each statistic, a column for each dose.

    Lines are means over training seeds, bars from the smallest to the largest seed.

    Args:
        rows: panels by the column of their tables that is the dose (`demonstrations`, …).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    doses = list(rows[0])
    figure = Figure(figsize=(4.6 * len(doses) + 1.6, 2.5 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(doses), squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for axis, dose in zip(line, doses, strict=True):
            _draw_panel(axis, row[dose], dose)
        handles, names = max(
            (axis.get_legend_handles_labels() for axis in line), key=lambda shown: len(shown[1])
        )
        if names:  # beside the row: within a panel it would cover some curve
            line[-1].legend(
                handles, names, fontsize=6.5, loc="center left", bbox_to_anchor=(1.01, 0.5)
            )
    figure.savefig(path, dpi=110)


def _draw_panel(axis, panel: DosePanel, dose: str) -> None:
    for colour, (name, curve) in zip(_COLOURS, panel.curves.items(), strict=False):
        shown = curve.sort_values(dose)
        x, mean = shown[dose].to_numpy(dtype=float), shown["mean"].to_numpy(dtype=float)
        ends = shown[["smallest", "largest"]].to_numpy(dtype=float).T
        spread = np.nan_to_num(np.abs(ends - mean))
        axis.errorbar(
            x, mean, spread, marker="o", ms=3, lw=1.2, capsize=2, color=colour, label=name
        )
    axis.set_title(panel.title, fontsize=9)
    if not panel.curves:
        axis.set_axis_off()
        return
    axis.set_xscale("log")
    ticks = sorted({float(v) for curve in panel.curves.values() for v in curve[dose]})
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    if panel.limits is not None:
        axis.set_ylim(*panel.limits)
    axis.set_xlabel(dose, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3, linewidth=0.5)
