"""The console report of edits; computes nothing but its selection of rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from actlens.report.closing import closing
from actlens.report.layout import facts_header
from actlens.rome.cases import Kind
from actlens.rome.evaluation_result import ANCHORS, RomeEvaluation
from actlens.rome.study import SCOPED, Study

GOALS = {"efficacy": 0.99, "near": 0.7, "far": 0.05}


def render_rome(
    main: RomeEvaluation,
    tables: Mapping[str, pd.DataFrame],
    *,
    policy: str,
    asked: str,
    study: Study,
    facts: Sequence[tuple[str, str]] = (),
    files: Sequence[Path] = (),
    next_steps: Sequence[str] = (),
) -> RenderableType:
    """What was asked, what came of it near and far, what rivals do, what many edits do.

    Args:
        tables: `groups`, `scores`, `many`, and perhaps `sites` and `explained`.
        policy: one line that identifies the policy.
        asked: one line that says what every edit asks for.
        facts: further lines of the header.
        files: what was written.
        next_steps: commands worth running now.
    """
    scores = tables["scores"]
    parts: list[RenderableType] = [
        _header(main, study, policy, asked, facts),
        Text(),
        _by_distance(main, tables["groups"]),
        Text(),
        Text(_found(main, scores)),
        Text(),
        _ways(scores[scores.asked == Kind.ONE_JOINT]),
        *(Text(f"  {line}", style="dim") for line in _anchors()),
        Text(),
        _frontier(scores[scores.asked == "frontier"]),
        Text(),
        _kinds(scores[scores.way == SCOPED]),
        Text(),
        _many(tables["many"]),
    ]
    if "sites" in tables:
        parts += [Text(), _sites(tables["sites"]), Text(_storage(tables["explained"]))]
    parts += closing([], 0, min_effect=0, files=files, next_steps=next_steps)
    return Group(*parts)


def _header(
    main: RomeEvaluation, study: Study, policy: str, asked: str, facts: Sequence[tuple[str, str]]
) -> Table:
    statistics, n = study.statistics, len(main.cases)
    near = (
        "by where the cube stood"
        if study.places.labels
        else "by how alike the demonstrations are, in standard deviations: nothing says where "
        "episodes take place"
    )
    lines = [
        ("policy", policy),
        ("asked", f"{asked}, in {n} scenes of as many episodes, each by an edit of its own"),
        (
            "edited",
            f"output weights of {statistics.site.block}.mlp; keys of {statistics.n_frames} scenes "
            f"of {statistics.n_episodes} other episodes are kept to",
        ),
        ("near and far", near),
        *facts,
    ]
    return facts_header("edits (ROME)", "there, and nowhere else?", lines)


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(
        title=Text(title), title_justify="left", box=None, pad_edge=False, collapse_padding=True
    )
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _by_distance(main: RomeEvaluation, groups: pd.DataFrame) -> Table:
    """The edit with its scope, and ROME without, in every group of scenes."""
    table = _table(
        "How much of the change comes about, by distance (1: all of it; any: whichever way)",
        "scenes", "carried, 95 %", "any", "granted", "without scope", "any",
    )  # fmt: skip
    mine = groups[(groups.asked == main.asked) & (groups.way == SCOPED)].drop_duplicates("group")
    plain_way = main.evaluated[1].name
    rome = groups[(groups.asked == main.asked) & (groups.way == plain_way)]
    rome = rome.drop_duplicates("group").set_index("group")
    for _, row in mine.iterrows():
        if not row.cases:
            continue
        other = rome.loc[row.group]
        table.add_row(
            Text(row.group),
            _interval(row, "carried"),
            _number(row.drift),
            _number(row.granted),
            _number(other.carried),
            _number(other.drift),
            style={"far": "bold", "between": "dim"}.get(row.role, ""),
        )
    return table


def _found(main: RomeEvaluation, scores: pd.DataFrame) -> str:
    """The goals in words, and what a reader should know of side effects."""
    one = scores[(scores.asked == main.asked) & (scores.way == SCOPED)].iloc[0]
    null = main.null
    own = main.by_group()
    own = own[(own.way == SCOPED) & (own.role == "own")].iloc[0]
    return (
        f"granted in {_number(one.efficacy)} of the scenes (goal {GOALS['efficacy']:g}); near, "
        f"frames around and places around alike, {_interval(one, 'near')} of it carries over (goal "
        f"{GOALS['near']:g}); far {_interval(one, 'far', 3)} of it drifts (goal {GOALS['far']:g}), "
        f"in other phases {_interval(one, 'other', 3)}. Sensor noise alone moves the unedited "
        f"policy by {float(null.estimate):.3f}. In the scene itself the other joints move by "
        f"{own.other_joints:.3f}, the positions that are not asked for by {own.not_asked:.2f} of "
        f"it; second differences along the chunk grow {own.roughness:.1f} times, and "
        f"{100 * own.beyond:+.1f} % of the actions leave the demonstrated limits. Nothing that is "
        "measured was kept to: statistics and targets are of different episodes."
    )


def _ways(scores: pd.DataFrame) -> Table:
    table = _table(
        "Edits and rivals (S: harmonic mean of granted, near, 1 - far)",
        "", "granted", "near, 95 %", "far, 95 %", "phases", "S", "|dW|", "n",
    )  # fmt: skip
    for _, row in scores.iterrows():
        table.add_row(
            Text(row.way),
            _number(row.efficacy),
            _interval(row, "near"),
            _interval(row, "far"),
            _number(row.other),
            _number(row.total),
            _number(row.relative_norm),
            str(row.cases),
        )
    return table


def _anchors() -> list[str]:
    lines = [
        "facts in language models (Meng et al. 2022): efficacy, generalisation, specificity, S"
    ]
    return lines + [
        f"{one.name}: {one.efficacy:.1f} {one.generalisation:.1f} {one.specificity:.1f}, "
        f"{one.score:.1f}"
        for one in ANCHORS
    ]


def _frontier(scores: pd.DataFrame) -> Table:
    n = int(scores.cases.iloc[0])
    table = _table(
        f"What the ridge trades ({n} scenes)", "ridge", "near", "far", "S", "|dW|",
        "without scope: near", "far", "S", "|dW|",
    )  # fmt: skip
    split = scores.way.str.split(", ", expand=True)
    for ridge in split[1].unique():
        cells = []
        for kind in ("with scope", "without"):
            row = scores[(split[0] == kind) & (split[1] == ridge)].iloc[0]
            cells += [_number(row[x]) for x in ("near", "far", "total", "relative_norm")]
        table.add_row(ridge, *cells)
    return table


def _kinds(scores: pd.DataFrame) -> Table:
    table = _table(
        "Other requests, by edits with their scopes",
        "asked", "granted", "near, 95 %", "far, 95 %", "phases", "S", "n",
    )  # fmt: skip
    for _, row in scores.iterrows():
        table.add_row(
            Text(row.asked),
            _number(row.efficacy),
            _interval(row, "near"),
            _interval(row, "far"),
            _number(row.other),
            _number(row.total),
            str(row.cases),
        )
    return table


def _many(many: pd.DataFrame) -> Table:
    table = _table(
        "Many requests in one matrix (drift: dataset units, in scenes unlike all of them)",
        "", "n", "granted, 95 %", "near", "drift, 95 %",
    )  # fmt: skip
    for (contradictory, n), rows in many.groupby(["contradictory", "requests"], sort=False):
        for _, row in rows.iterrows():
            table.add_row(
                Text(row.rule + (", contradictory" if contradictory else "")),
                str(n),
                "none" if row.failure else _interval(row, "efficacy"),
                _number(row.near),
                _interval(row, "drift", 1),
            )
    return table


def _sites(sites: pd.DataFrame) -> Table:
    columns = {
        "tracing": "traced", "granted": "granted", "reached": "reached", "far": "far",
        "S": "score", "some neurons": "neurons_score", "random keys": "keys_score",
    }  # fmt: skip
    title = "The same at every block, at the scene's own key, beside causal tracing"
    table = _table(title, "block", *columns)
    for _, row in sites.iterrows():
        table.add_row(Text(row.block), *(_number(row[name]) for name in columns.values()))
    return table


def _storage(explained: pd.DataFrame) -> str:
    row = explained[explained.outcome == "score"].iloc[0]
    return (
        "! That an edit works at a block is no evidence that the behaviour is stored there (Hase "
        f"et al. 2023). Of the score's variance the block alone explains {_number(row.site)}, "
        f"tracing alone {_number(row.score)}, and of what the block leaves tracing explains "
        f"{_number(row.partial)} (there: R2 0.947 for the layer, 0.948 with tracing)."
    )


def _number(value: float, digits: int = 2) -> str:
    return "-" if not np.isfinite(value) else f"{value:.{digits}f}".replace("-0.00", "0.00")


def _interval(row: pd.Series, name: str, digits: int = 2) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if not np.isfinite(low):
        return _number(value, digits)
    return f"{_number(value, digits)} ({_number(low, digits)}…{_number(high, digits)})"
