"""The console report of attribution patching; computes nothing but its selection of rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from actlens.attribution import AttributionResult, Gradient
from actlens.metrics import Positions
from actlens.report.closing import closing
from actlens.report.styles import WARNING
from actlens.text import clean_text

_TAKEN = {
    Gradient.BASE: "at the run that is patched",
    Gradient.SYMMETRISED: "mean of the gradients at both scenes",
    Gradient.INTEGRATED: "mean of {points} runs on the way from one scene's tokens to the other's",
}
_MEASURED = {Positions.WHOLE: "whole chunk", Positions.EXECUTED: "the executed positions"}
_STREAMS = ("hook_resid_pre", "hook_out")
_RANKED = {
    "token": ("Single tokens, the strongest three at each depth", _STREAMS, 3),
    "head": ("Heads by what they read and write, the strongest", ("hook_z", "hook_q", "hook_k"), 2),
    "neuron": ("Neurons, the strongest of every layer", ("hook_post",), 2),
}
"""By unit: title, last words of the hook points that are shown, how many sites of each."""


def render_attribution(
    result: AttributionResult,
    frame: pd.DataFrame,
    agreement: pd.DataFrame,
    *,
    policy: str,
    facts: Sequence[tuple[str, str]] = (),
    files: Sequence[Path] = (),
    next_steps: Sequence[str] = (),
) -> RenderableType:
    """The report: what was asked, how far to trust it, what seems to matter, what was overlooked.

    Args:
        frame: `result.frame()`.
        agreement: `result.agreement()`.
        policy: one line that identifies the policy.
        facts: further lines of the header.
        files: what was written.
        next_steps: commands worth running now.
    """
    parts: list[RenderableType] = [
        _header(result, policy, facts),
        *_trust_by_depth(agreement, frame),
    ]
    parts += [Text(), _trust_by_kind(agreement), Text(), *_overlooked(result, frame)]
    for unit, (title, leaves, n) in _RANKED.items():
        rows = frame[(frame.unit == unit) & frame.hook.map(_leaf).isin(leaves)]
        strength = rows[["denoise", "noise"]].abs().max(axis=1)
        strength = strength[strength > 0]  # what two scenes share has no effect and no estimate
        rows = rows.loc[strength.sort_values(ascending=False, kind="stable").index]
        rows = rows.groupby("hook", sort=False).head(n).sort_index()
        if len(rows):
            parts += [Text(), _ranked_table(title, rows)]
    parts += [Text(), Text(_footnote(result, frame, agreement))]
    parts += closing(
        [effect for _, effect in result.left_out],
        len(result.pairs),
        min_effect=result.options.min_effect,
        files=files,
        next_steps=next_steps,
    )
    return Group(*parts)


def _leaf(hook: str) -> str:
    return hook.rsplit(".", 1)[-1]


def _number(value: float) -> str:
    return "-" if not np.isfinite(value) else f"{value:.2f}".replace("-0.00", "0.00")


def _effect(value: float) -> str:
    """A restored share; small ones, of neurons, with a digit more."""
    if np.isfinite(value) and abs(value) < 0.0995:
        return f"{value:.3f}".replace("-0.000", "0.000")
    return _number(value)


def _share(value: float) -> str:
    return "-" if not np.isfinite(value) else f"{100 * value:.0f} %"


def _header(result: AttributionResult, policy: str, facts: Sequence[tuple[str, str]]) -> Panel:
    options, first = result.options, result.pairs[0]
    way = _TAKEN[options.gradient].format(points=options.points)
    softmax = "exactly" if options.qk_fix else "to first order as well"
    n_audited = len(result.sample.sites)
    lines = [
        ("asked", f"which sites may carry {first.differs_in}?"),
        ("policy", policy),
        (
            "scenes",
            f"{len(result.pairs)} pair{'s' * (len(result.pairs) > 1)}, e.g. {first.clean.address} "
            f"(clean) and {first.corrupt.address} (corrupt) of "
            f"{first.clean.source or 'the dataset'}",
        ),
        (
            "metric",
            "share of the action difference that patching one site brings back (0 nothing, 1 all), "
            f"{_MEASURED[options.positions]}, joints weighed by their spread",
        ),
        (
            "estimate",
            f"to first order, gradient {way}; queries, keys and scores pass the softmax {softmax}. "
            f"{result.n_sites:,} sites for {result.cost:.2f} transformer forwards a gradient, "
            f"{options.gradients} gradients a pair",
        ),
        (
            "audit",
            f"{n_audited:,} sites patched exactly in every pair, both directions: of every cut the "
            f"{options.n_audit} with the largest estimates, {options.n_audit} others at random",
        ),
        *facts,
    ]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, text in lines:
        grid.add_row(name, Text(clean_text(text, limit=400)))
    return Panel(grid, title="actlens · attribution patching", title_align="left")


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=Text(title), title_justify="left", box=None, padding=(0, 1))
    table.add_column(columns[0], overflow="fold", ratio=1)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _trust_by_depth(agreement: pd.DataFrame, frame: pd.DataFrame) -> list[RenderableType]:
    """The streams' tokens, and what their estimates add up to; nothing if they have no cut."""
    rows = agreement[(agreement.unit == "token") & agreement.hook.map(_leaf).isin(_STREAMS)]
    if rows.empty:
        return []
    columns = ["tokens entering", "", "Pearson", "Spearman", "error", "found", "missed", "≤", "sum"]
    table = _table("How far to trust them: estimates against exact patches, by depth", columns)
    for hook, both in rows.groupby("hook", sort=False):
        tokens = frame[(frame.hook == hook) & (frame.unit == "token")]
        last = str(hook).endswith("hook_out")
        name = "the decoder" if last else f"block {both.depth.iloc[0]}"
        for _, row in both.iterrows():
            table.add_row(
                Text(name),
                str(row.direction),
                *(_number(row[column]) for column in ("pearson", "spearman", "relative_error")),
                f"{round(row.found * row.k)}/{row.k}" if np.isfinite(row.found) else "-",
                f"{row.missed}",
                _share(row.missed_bound),
                _number(tokens[row.direction].sum()),
            )
            name = ""
    return [Text(), table]


def _trust_by_kind(agreement: pd.DataFrame) -> Table:
    """Median and worst over layers and directions, hook points of one kind together."""
    columns = ["hook points", "unit", "Pearson", "worst", "error", "worst", "missed"]
    table = _table("The same by kind: median and worst over layers and directions", columns)
    rows = agreement[(agreement.unit != "whole") & agreement.relative_error.notna()]
    kinds = rows.hook.str.replace(r"^(encoder|decoder)\.\d+\.", r"\1 ", regex=True)
    kinds = kinds.str.replace("hook_", "")
    for (kind, unit), group in rows.groupby([kinds, "unit"], sort=False):
        pearson, error = group.pearson.dropna(), group.relative_error
        table.add_row(
            Text(str(kind)),
            Text(str(unit)),
            _number(pearson.median()),
            _number(pearson.min()),
            _number(error.median()),
            _number(error.max()),
            str(group.missed.sum()),
        )
    return table


def _overlooked(result: AttributionResult, frame: pd.DataFrame) -> list[RenderableType]:
    """What the estimates would have missed among the audited sites, the worst first."""
    missed = result.missed()
    single = missed[missed.unit != "whole"]
    limit = _share(result.options.threshold)
    if single.empty:
        return [Text(f"No audited site restores {limit} or more while its estimate says less.")]
    worst = single.loc[single.exact.abs().sort_values(ascending=False, kind="stable").index[:5]]
    n = int((frame.audited != "").sum())
    lines: list[RenderableType] = [
        Text(
            f"! {single.address.nunique()} of {n:,} audited sites restore {limit} or more while "
            "their estimates say less; the worst:",
            style=WARNING,
        )
    ]
    for _, row in worst.iterrows():
        lines.append(
            Text(
                f"  {clean_text(row.address)} {row.direction}: estimated {_effect(row.estimate)}, "
                f"exact {_effect(row.exact)}",
                style=WARNING,
            )
        )
    return lines


def _ranked_table(title: str, rows: pd.DataFrame) -> Table:
    table = _table(title, ["site", "denoise", "exact", "noise", "exact", "±"])
    for _, row in rows.iterrows():
        table.add_row(
            Text(clean_text(row.address)),
            *(
                _effect(row[column])
                for column in ("denoise", "exact_denoise", "noise", "exact_noise", "error_bar")
            ),
        )
    return table


def _footnote(result: AttributionResult, frame: pd.DataFrame, agreement: pd.DataFrame) -> str:
    n, n_clusters = len(result.pairs), len(set(result.clusters.tolist()))
    lines = [
        "An estimate is a hint where to patch, not a result; what it does not show may be there.",
        "error: |estimate - exact| / |exact| over the audited sites. found: of the strongest "
        "audited sites, how many have the largest estimates. missed: audited sites that restore "
        f"{_share(result.options.threshold)} or more while their estimates say less; ≤: with 95 % "
        "confidence at most this share of the sites that were not audited for their estimates is "
        "missed (Clopper-Pearson). sum: of all tokens' estimates; patching all of them restores 1.",
        "±: how far the estimates with the gradients of the two scenes are apart; of "
        f"{len(result.sample.sites):,} audited sites "
        f"{_share(np.average(agreement.covered, weights=agreement.n_top + agreement.n_random))} "
        "lie within it.",
    ]
    if np.isfinite(frame.denoise_low).any():
        lines.append(
            f"The files have 95 % intervals: bootstrap over {n_clusters} clusters of pairs."
        )
    else:
        lines.append(
            f"No intervals: {n} pair{'s' * (n > 1)} in {n_clusters} "
            f"cluster{'s' * (n_clusters > 1)} cannot give any (5 are needed)."
        )
    dead = frame[(frame.hook == "decoder.0.hook_attn_out") & (frame.unit == "whole")]
    if len(dead):
        values = dead[["denoise", "noise", "exact_denoise", "exact_noise"]].to_numpy(float)
        largest = np.abs(values).max()
        lines.append(
            f"control: decoder.0.hook_attn_out, a constant of the weights, {largest:.1e} (must "
            "be 0)."
        )
    return " ".join(lines)
