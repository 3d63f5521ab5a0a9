"""Curves of retrained decoders: errors by steps of training."""

from pathlib import Path

import numpy as np

from actlens.retraining import LateGeneralisation, MemorisationStudy
from actlens.retraining.curves import TRAINED

_COLOURS = ("#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#a6761d")


def save_curves(study: MemorisationStudy, late: LateGeneralisation | None, path: Path) -> None:
    """One PNG: errors with and without an episode, then a panel for each kind of long training."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = (
        [] if late is None else list(dict.fromkeys((c.start, c.n_episodes) for c in late.curves))
    )
    columns = max(1, min(3, len(kinds)))
    n_rows = 1 + -(-len(kinds) // columns)
    figure = Figure(figsize=(4.2 * max(2, columns), 3.1 * n_rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(n_rows, max(2, columns))
    for column, (name, runs) in enumerate(
        (("demonstrations", study.own), ("shuffled demonstrations", study.shuffled))
    ):
        axis = figure.add_subplot(grid[0, column])
        steps = list(runs)
        for label, colour, values in (
            ("episodes not learnt", _COLOURS[1], [one.error_out for one in runs.values()]),
            ("episodes learnt", _COLOURS[0], [one.error_in for one in runs.values()]),
        ):
            low, high = ([float(bound) for bound in ends] for ends in zip(
                *((v.low, v.high) for v in values), strict=True
            ))  # fmt: skip
            axis.plot(steps, [float(v.estimate) for v in values], "o-", color=colour, label=label)
            axis.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.axhline(float(study.policy[""].estimate), color="0.5", linestyle=":", label="policy")
        axis.set_title(f"memorisation: {name}", fontsize=9)
        _finish(axis, log_y=False)
    for i, (start, n) in enumerate(kinds):
        assert late is not None
        axis = figure.add_subplot(grid[1 + i // columns, i % columns])
        own = [c for c in late.curves if (c.start, c.n_episodes) == (start, n)]
        decays = sorted({curve.weight_decay for curve in own})
        for colour, scenes in zip(_COLOURS, own[0].errors, strict=False):
            for decay, style in zip(decays, ("-", "--", ":", "-."), strict=False):
                some = [c for c in own if c.weight_decay == decay]
                mean = np.mean([curve.mean(scenes) for curve in some], axis=0)
                label = scenes if decay == decays[0] else None
                # A logarithmic axis has no place for 0: the first evaluation is drawn at 1.
                steps = np.maximum(some[0].steps, 1)
                width = 2.0 if scenes == TRAINED else 1.2
                axis.plot(steps, mean, style, color=colour, label=label, linewidth=width)
        words = ", ".join(f"{decay:g}" for decay in decays)
        axis.set_title(f"{n} shown, {start.value} weights; decay {words} (dashed)", fontsize=8)
        _finish(axis, log_y=True)
    figure.savefig(path, dpi=110)


def _finish(axis, *, log_y: bool) -> None:
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    if log_y:
        axis.set_yscale("log")
    for side in (axis.xaxis, axis.yaxis) if log_y else (axis.xaxis,):
        side.set_major_locator(LogLocator(subs=(1, 2, 5)))
        side.set_major_formatter(FormatStrFormatter("%g"))
        side.set_minor_formatter(NullFormatter())
    axis.set_xlabel("steps of training", fontsize=8)
    axis.set_ylabel("error, dataset units", fontsize=8)
    axis.tick_params(labelsize=6)
    axis.legend(fontsize=7)
