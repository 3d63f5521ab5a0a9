"""The two axes as a plane, and errors against the distance to the nearest demonstration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from actlens.mechanism import JUMP
from actlens.retrieval import ALL_JOINTS, TIP
from actlens.verdict import GENERALISES, TABLE_LIKE

_COLOURS = ("#1b7837", "#2166ac", "#b2182b", "#762a83", "#e08214")
_QUARTERS = {
    (0.25, 0.75): "smooth, generalises:\ninterpolator, general rule",
    (0.75, 0.75): "table-like, generalises:\na table that tiles the space",
    (0.25, 0.25): "smooth, no better than\nretrieval: memoriser",
    (0.75, 0.25): "table-like, no better than\nretrieval: lookup table",
}


def save_picture(tables: Mapping[str, pd.DataFrame], path: Path) -> None:
    """One PNG: the plane of the two axes, and the errors of every unseen scene by its distance.

    Args:
        tables: `mechanism`, `generalisation` and `scenes`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _plane(left, tables["mechanism"], tables["generalisation"])
    _errors(right, tables["scenes"])
    figure.savefig(path, dpi=120)


def _plane(axis: Any, mechanism: pd.DataFrame, generalisation: pd.DataFrame) -> None:
    (jump,) = mechanism[mechanism.statistic == JUMP].to_dict("records")
    rows = generalisation[(generalisation.measure == ALL_JOINTS) & generalisation["index"].notna()]
    start = rows.scenes.str.endswith(", frame 0")
    # Points of one policy have one place on the mechanism axis: they are drawn side by side.
    axis.axvline(TABLE_LIKE, color="0.6", lw=0.8)
    axis.axhline(GENERALISES, color="0.6", lw=0.8)
    for (x, y), text in _QUARTERS.items():
        axis.text(x, y, text, ha="center", va="center", fontsize=8, color="0.55")
    above = {"transform": axis.get_xaxis_transform(), "va": "bottom"}
    for name in ("rule", "table", "memoriser"):
        if not np.isnan(jump[name]):
            axis.axvline(jump[name], color="0.4", ls=":", lw=1)
            axis.text(jump[name], 1.02, name, ha="center", fontsize=8, color="0.3", **above)
    names = list(dict.fromkeys(rows.scenes.str.removesuffix(", frame 0")))
    for row, at_start in zip(rows.to_dict("records"), start, strict=True):
        i = names.index(row["scenes"].removesuffix(", frame 0"))
        colour = _COLOURS[i % len(_COLOURS)]
        axis.errorbar(
            jump["value"] + 0.02 * (i - (len(names) - 1) / 2),
            row["index"],
            yerr=_reach(row["index"], row["low"], row["high"]),
            fmt="o",
            color=colour,
            markerfacecolor="white" if at_start else colour,
            capsize=3,
            label=None if at_start else row["scenes"],
        )
    axis.set_xlim(-0.1, 1.1)
    axis.set_ylim(
        min([-0.25, *(rows.low.dropna() - 0.05)]), max([1.25, *(rows.high.dropna() + 0.05)])
    )
    axis.set_xlabel("mechanism: jump between neighbours (0 smooth, 1 table)")
    axis.set_ylabel("function: generalisation index, all joints")
    axis.set_title("filled: all frames; hollow: frame 0 alone", fontsize=10, pad=18)
    if len(rows):
        axis.legend(fontsize=8, loc="lower right")


def _reach(value: float, low: float, high: float) -> np.ndarray | None:
    if np.isnan(low):
        return None
    return np.maximum([[value - low], [high - value]], 0.0)


def _errors(axis: Any, scenes: pd.DataFrame) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    measure = TIP if f"policy, {TIP}" in scenes else ALL_JOINTS
    columns = [f"policy, {measure}", f"nearest, {measure}"]
    by_episode = scenes.groupby(["scenes", "episode"], sort=False)[["distance", *columns]].mean()
    for i, (name, rows) in enumerate(by_episode.groupby("scenes", sort=False)):
        shown = rows[rows.distance > 0]
        colour = _COLOURS[i % len(_COLOURS)]
        axis.scatter(1000 * shown.distance, shown[columns[0]], s=22, color=colour, label=str(name))
        axis.scatter(
            1000 * shown.distance, shown[columns[1]], s=22, facecolors="none", edgecolors=colour
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ticks.set_minor_formatter(NullFormatter())
        ticks.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axis.set_xlabel("distance from the nearest demonstrated start, mm (labels in m)")
    axis.set_ylabel("mean error of an unseen episode" + (", mm" if measure == TIP else ", spreads"))
    axis.set_title("filled: the policy; hollow: its nearest demonstration", fontsize=10)
    if len(by_episode):
        axis.legend(fontsize=8)
