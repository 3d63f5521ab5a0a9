"""The console report of linear probes; computes nothing but its selection of rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from actlens.probing import Used
from actlens.report.cells import number
from actlens.report.closing import closing
from actlens.report.layout import facts_header, words_and_numbers
from actlens.report.plain import plain


def render_probing(
    probes: pd.DataFrame,
    held_out: pd.DataFrame,
    used: pd.DataFrame,
    *,
    policy: str,
    main_target: str,
    facts: Sequence[tuple[str, str]] = (),
    files: Sequence[Path] = (),
    next_steps: Sequence[str] = (),
) -> RenderableType:
    """What can be read where, at places that nobody was shown, and whether it is used.

    Args:
        probes: `ProbeTable.frame()`, with a column `frames` that says which frames were read.
        held_out: `held_out_frame`; empty if there were no other scenes.
        used: `used_frame`; empty if nothing was followed up.
        policy: one line that identifies the policy.
        main_target: the target whose sites are listed one by one.
        facts: further lines of the header.
        files: what was written.
        next_steps: commands worth running now.
    """
    question = "what can be read off each site?"
    header = facts_header("probing", question, [("policy", policy), *facts])
    parts: list[RenderableType] = [header, Text()]
    for frames, rows in probes[probes.target == main_target].groupby("frames", sort=False):
        parts += [_sites(f"{plain(main_target)}, {plain(frames)}", rows), Text()]
    parts += [_targets(probes), Text(), Text(_note(probes)), Text()]
    if len(held_out):
        parts += [_held_out(held_out, main_target), Text(), Text(_HELD_OUT), Text()]
    if len(used):
        parts += [_used(used), Text(), Text(_USED)]
    return Group(*parts, *closing([], 0, min_effect=0, files=files, next_steps=next_steps))


_HELD_OUT = (
    "Fitted on all demonstrations at frame 0. R2 against their mean, so that places far out get a "
    "high one by pointing the right way: mind the error."
)
_USED = (
    "The action vector, at all chunk positions, moved as it moves when the target grows by one "
    "spread; followed: the share of the actions' own change that came about (1: all). across: mean "
    "size for moves as large in which action vectors vary, but not with the target; p: share of "
    "these that did as much."
)


def _sites(title: str, rows: pd.DataFrame) -> Table:
    unit = plain(rows.unit.iloc[0])
    table = words_and_numbers(
        title, "read off", "R2, 95 %", f"off by, {unit}", "control", "selectivity", "q"
    )
    for _, row in rows.iterrows():
        table.add_row(
            Text(plain(row.site)),
            f"{row.r2:.3f} ({row.low:.2f}…{row.high:.2f})",
            f"{row.error:.1f}",
            f"{row.control:.2f}",
            number(row.selectivity, ".2f"),
            f"{row.q:.2f}",
            style="dim" if row.is_baseline else None,
        )
    return table


def _targets(probes: pd.DataFrame) -> Table:
    """R2 of every target at some sites."""
    table = probes.pivot_table(
        index=["frames", "target"], columns="site", values="r2", sort=False, observed=True
    )
    chosen = [s for s in ("pixels", "state", "encoder's output", "action vector") if s in table]
    chosen += [s for s in ("MLP coefficients", "predicted chunk") if s in table]
    shown = words_and_numbers("R2 of every target", "target", *(_SHORT.get(s, s) for s in chosen))
    for of, values in zip(table.index.to_list(), table[chosen].to_numpy(), strict=True):
        frames, target = of
        shown.add_row(Text(plain(f"{target}, {frames}")), *(f"{r2:.2f}" for r2 in values))
    return shown


_SHORT = {
    "encoder's output": "encoder",
    "action vector": "vector",
    "MLP coefficients": "MLP",
    "predicted chunk": "chunk",
}


def _note(probes: pd.DataFrame) -> str:
    return (
        "Ridge, out of episode, penalty by inner folds; intervals: bootstrap over episodes. Dim: "
        "rivals, which are no activations of this policy. control: R2 if every episode has another "
        "one's values. selectivity: R2 minus that of control tasks where frames of one episode lie "
        "on both sides of the split. q: Benjamini-Hochberg over "
        f"{len(probes)} probes."
    )


def _held_out(held_out: pd.DataFrame, target: str) -> Table:
    rows = held_out[held_out.target == target]
    sets = list(dict.fromkeys(rows.scenes))
    unit = plain(rows.unit.iloc[0])
    title = f"{plain(target)} of scenes that were not fitted on: R2, off by {unit}"
    table = words_and_numbers(title, "read off", *map(plain, sets))
    for site, of_site in rows.groupby("site", sort=False):
        cells = [of_site[of_site.scenes == name].iloc[0] for name in sets]
        table.add_row(Text(plain(site)), *(f"{c.r2:.2f} {c.error:5.1f}" for c in cells))
    return table


def _used(used: pd.DataFrame) -> Table:
    table = words_and_numbers(
        "Is it used?", "target", "followed, 95 %", "cosine", "across", "cosine", "p"
    )
    for _, row in used.iterrows():
        interval = f" ({row.low:.2f}…{row.high:.2f})" if not np.isnan(row.low) else ""
        table.add_row(
            Text(plain(f"{row.target}, dimension {row.dim}, {row.scenes}")),
            f"{row.share:.2f}{interval}",
            f"{row.cosine:.2f}",
            f"{row.random_share:.2f}",
            f"{row.random_cosine:.2f}",
            f"{row.p:.2f}",
        )
    return table


def used_frame(found: Sequence[tuple[str, Used]]) -> pd.DataFrame:
    """One row for each dimension of each target, by the scenes that it was tried in."""
    rows = []
    for scenes, one in found:
        share = one.share
        rows.append(
            {
                "target": one.target,
                "dim": one.dim,
                "scenes": scenes,
                "step": one.step,
                "share": float(share.estimate),
                "low": float(share.low),
                "high": float(share.high),
                "cosine": one.cosine,
                "random_share": one.random_share,
                "random_cosine": one.random_cosine,
                "p": one.p,
            }
        )
    return pd.DataFrame(rows)
