"""The console report of what a policy attends to; computes nothing but its selection of rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from actlens.attention import AttentionAnalysis
from actlens.attention.effects import OTHER, SAME
from actlens.attention.survey import ALL, EACH, MEAN
from actlens.report.claims import claims_table
from actlens.report.closing import closing
from actlens.report.layout import facts_header
from actlens.report.plain import plain

_CHOSEN_BY = {
    "attention": "attention",
    "norm": "norm",
    "effect": "effect",
    "random": "random",
    "own": "own",
    "own_random": "own random",
}


def render_attention(
    result: AttentionAnalysis,
    frames: Mapping[str, pd.DataFrame],
    *,
    policy: str,
    positions: Sequence[int],
    facts: Sequence[tuple[str, str]] = (),
    files: Sequence[Path] = (),
    next_steps: Sequence[str] = (),
) -> RenderableType:
    """The claims with their verdicts, and the tables behind them.

    Args:
        frames: `result.frames()`.
        policy: one line that identifies the policy.
        positions: of the chunk, that are shown beside the mean.
        facts: further lines of the header.
        files: what was written.
        next_steps: commands worth running now.
    """
    parts: list[RenderableType] = [
        _header(result, policy, facts),
        claims_table(result.claims()),
        Text(),
        _how_many(frames["concentration"]),
        Text(),
        Text(_how_many_note(frames["concentration_by_weight"])),
        Text(),
        _who(frames["shares"], positions),
        Text(),
        Text(plain(_who_note(frames["shares_by_moment"]))),
        Text(),
        _overlap(frames["overlap"]),
        Text(),
        _enough(frames["sufficiency"]),
        Text(),
        Text(_enough_note(frames)),
        Text(),
        _absorbed(frames["absorption"]),
        Text(),
        _carriers(frames["carriers"]),
        Text(),
        Text(
            "input, output: how far the action moves (root mean square, dataset units) if the "
            "tokens come from a scene of another episode, before or after the encoder. absorbed: "
            "1 - output / input; negative where the tokens have taken over what came from others. "
            "Shares of carriers need not sum to 1."
        ),
    ]
    return Group(*parts, *closing([], 0, min_effect=0, files=files, next_steps=next_steps))


def _header(
    result: AttentionAnalysis, policy: str, facts: Sequence[tuple[str, str]]
) -> RenderableType:
    survey, effects = result.survey, result.effects
    n_episodes = len(set(survey.episodes.tolist()))
    scenes = (
        f"{len(survey.scenes)} of {n_episodes} episodes; interventions on "
        f"{len(effects.scenes)} of them, swaps within {effects.scenes[-1].pair + 1} pairs"
    )
    lines = [("policy", policy), ("scenes", scenes), *facts]
    return Group(facts_header("attention", "which tokens, and do they matter?", lines), Text())


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=None, padding=(0, 1))
    table.add_column(first, overflow="fold", ratio=1)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _number(value: float, decimals: int | None = None) -> str:
    if np.isnan(value):
        return ""
    if decimals is None:
        decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{decimals}f}"


def _interval(value: float, low: float, high: float) -> str:
    if np.isnan(value):
        return "undefined"
    if np.isnan(low):
        return _number(value)
    decimals = 0 if high - low > 20 else 1 if high - low > 2 or abs(value) >= 10 else 2
    return " ".join(
        (_number(value, decimals), f"({_number(low, decimals)}…{_number(high, decimals)})")
    )


def _from(row: Mapping[Any, Any], name: str) -> str:
    return _interval(row[name], row[f"{name}_low"], row[f"{name}_high"])


def _how_many(table: pd.DataFrame) -> Table:
    shown = _table("On how many tokens", "", "mean, 95 %", "chance", "each", "chance", "equal")
    rows = table[table.position == ALL]
    n_layers = rows.layer.nunique()
    for (layer, measure), both in rows.groupby(["layer", "measure"], sort=False):
        by_head = {row["head"]: row for row in both.to_dict("records")}
        mean, each = by_head[MEAN], by_head[EACH]
        name = str(measure).replace("_", " ").replace("0.95", "95 %")
        name = name.replace("0.9", "90 %").replace("0.5", "50 %")
        shown.add_row(
            Text(f"decoder {layer}: {name}" if n_layers > 1 else name),
            _interval(mean["value"], mean["low"], mean["high"]),
            _number(mean["null"]),
            _number(each["value"]),
            _number(each["null"]),
            _number(mean["uniform"]),
        )
    return shown


def _how_many_note(table: pd.DataFrame) -> str:
    rows = table[table.position == ALL].set_index(["weight", "measure"]).value
    others = "; ".join(
        f"{weight}: perplexity {_number(rows[weight, 'perplexity'])}, 90 % on "
        f"{_number(rows[weight, 'tokens_for_0.9'])}"
        for weight in dict.fromkeys(table.weight)
    )
    return (
        "mean: of the heads' mean pattern; each: mean over single heads. chance: Gaussian logits "
        "with each head's own spread, heads independent of one another; by its spread alone a "
        "softmax is as concentrated as that. equal: all tokens alike. standing out: above 3 times "
        f"that. By other weights, {others}."
    )


def _who(table: pd.DataFrame, positions: Sequence[int]) -> Table:
    columns = [f"at {position}" for position in positions]
    shown = _table("Who is attended to", "", *columns, "all", "norm", "rollout", "equal", "rank")
    for group, rows in table.groupby("group", sort=False):
        at = {row["position"]: row for row in rows.to_dict("records")}
        whole = at[ALL]
        shown.add_row(
            Text(plain(str(group))),
            *(_percent(at[str(position)]["attention"]) for position in positions),
            *(_percent(whole[name]) for name in ("attention", "norm", "rollout", "uniform")),
            _number(whole.get("rank", np.nan)),
        )
    return shown


def _who_note(table: pd.DataFrame) -> str:
    single = table[table.tokens == 1]
    moments = "; ".join(
        f"{group} {' '.join(map(_percent, rows.sort_values('moment').attention))}"
        for group, rows in single.groupby("group", sort=False)
    )
    return (
        "Shares of attention (mean over heads), at chunk positions and over those that count; "
        "norm: by what a token brings (Kobayashi et al. 2020); rollout: to the encoder's input "
        "tokens (Abnar and Zuidema 2020). Intervals of all rows are in shares.csv. From moment to "
        f"moment of an episode: {moments}."
    )


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def _overlap(table: pd.DataFrame) -> Table:
    shown = _table(
        "On the same tokens in other scenes? (Jaccard overlap)", "", "overlap, 95 %", "chance"
    )
    for row in table.to_dict("records"):
        shown.add_row(
            f"top {row['k']} of {row['among']}, {row['scenes']}",
            _from(row, "jaccard"),
            _number(row["chance"]),
        )
    return shown


def _enough(table: pd.DataFrame) -> Table:
    shown = _table("Do a few suffice? (error, dataset units)", "tokens kept", *_CHOSEN_BY.values())
    for k, rows in table.groupby("k"):
        error = rows.set_index("chosen_by").error
        shown.add_row(str(k), *(f"{error[name]:.2f}" for name in _CHOSEN_BY))
    return shown


def _enough_note(frames: Mapping[str, pd.DataFrame]) -> str:
    ranks = frames["rank_correlation"]
    whole = ranks[ranks.position == ALL]
    rho = ", ".join(f"{row['weight']} {_from(row, 'spearman')}" for row in whole.to_dict("records"))
    scale = frames["sufficiency"].iloc[0]
    return (
        "Chosen by attention or norm (mean over heads and positions), by the exact effect of "
        "leaving each out, at random; own: every head and position keeps its own. Actions of two "
        f"episodes differ by {scale.same_moment:.2f} at one moment, by {scale.other_moment:.2f} "
        f"at different ones, which is the claims' scale. Rank correlation with the exact "
        f"effect of a token: {rho}."
    )


def _absorbed(table: pd.DataFrame) -> Table:
    columns = ("input", "output", "absorbed, 95 %")
    shown = _table("Swapped before and after the encoder", "", *columns)
    for moment in (SAME, OTHER):
        rows = table[table.moment == moment]
        differ = rows.scenes_differ.iloc[0]
        shown.add_row(Text(f"{moment}; the actions differ by {differ:.2f}", style="bold"))
        for row in rows.to_dict("records"):
            shown.add_row(
                Text(plain(f"· {row['group']}")),
                f"{row['at_input']:.2f}",
                f"{row['at_memory']:.2f}",
                _from(row, "absorption"),
            )
    return shown


def _carriers(table: pd.DataFrame) -> Table:
    carriers = list(dict.fromkeys(table.carrier))
    shown = _table(
        "Which outputs carry a swap of the inputs? (share, same moment)",
        "swapped",
        *map(plain, carriers),
    )
    for group, rows in table[table.moment == SAME].groupby("group", sort=False):
        share = rows.set_index("carrier").share
        cells = ("" if np.isnan(share[name]) else f"{share[name]:.2f}" for name in carriers)
        shown.add_row(Text(plain(str(group))), *cells)
    return shown
