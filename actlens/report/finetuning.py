"""The report of fine-tuning one part at a time: what it gains at new places, what it forgets."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from actlens.claims import Claim
from actlens.finetuning import NEW, Locality
from actlens.report.cells import number, p_value
from actlens.report.claims import claims_table
from actlens.report.closing import closing
from actlens.report.layout import facts_header, words_and_numbers
from actlens.report.plain import plain


def render_finetuning(
    table: pd.DataFrame,
    claims: Sequence[Claim],
    locality: Locality | None,
    *,
    policy: str,
    facts: Sequence[tuple[str, str]] = (),
    files: Sequence[Path] = (),
    next_steps: Sequence[str] = (),
) -> RenderableType:
    """Errors at new and old places by part, then the claims.

    Args:
        table: `Finetuning.frame()`.
        claims: `claims_of`.
        policy: one line that identifies the policy.
        facts: further lines of the header.
        files: what was written.
        next_steps: commands worth running now.
    """
    question = "what must change for the policy to reach new places?"
    measure = table.measure.iloc[-1]
    rows = table[table.measure == measure]
    parts: list[RenderableType] = [
        facts_header("fine-tuning", question, [("policy", policy), *facts]),
        Text(),
        _new(rows, measure),
        Text(),
        _elsewhere(rows, measure),
        Text(),
    ]
    if locality is not None:
        parts += [_neurons(locality), Text()]
    parts += [claims_table(claims), Text(), Text(_NOTE)]
    return Group(*parts, *closing([], 0, min_effect=0, files=files, next_steps=next_steps))


_NOTE = (
    "Errors over the actions that are carried out, on episodes that were not trained on; "
    "intervals: bootstrap over episodes. moved: change over norm of the part's weights. Step sizes "
    "chosen on episodes put aside from the training ones; equal steps; no dropout. equal: a random "
    "subspace of as many dimensions as the head has numbers. rank one: ROME's edit at the mean key "
    "of the new places. vs MLP: more error than the decoder MLP trained as a whole; p: signs "
    "flipped by episode, q: Benjamini-Hochberg over the whole table."
)


def _new(rows: pd.DataFrame, measure: str) -> Table:
    mine = rows[rows.places == NEW]
    before = mine.iloc[0]
    title = (
        f"New places: {plain(measure)} ({before.before:.1f} before, "
        f"{before.before_low:.1f}…{before.before_high:.1f}, {before.episodes} episodes)"
    )
    table = words_and_numbers(title, "trained", "free", "moved", "left, 95 %", "vs MLP", "p", "q")
    for _, row in mine.iterrows():
        against = "" if pd.isna(row.p) else f"{row.against_mlp:+.1f}"
        table.add_row(
            _name(row),
            f"{row.n_free:,}",
            f"{row.relative_norm:.1%}",
            f"{row.after:.1f} ({row.after_low:.1f}…{row.after_high:.1f})",
            against,
            p_value(row.p),
            p_value(row.q),
        )
    return table


def _elsewhere(rows: pd.DataFrame, measure: str) -> Table:
    others = [name for name in dict.fromkeys(rows.places) if name != NEW]
    short = {name: f"{chr(65 + i)}" for i, name in enumerate(others)}
    keys = "; ".join(f"{letter}: {name}" for name, letter in short.items())
    title = f"What it costs: {plain(measure)} afterwards. {plain(keys)}"
    table = words_and_numbers(title, "trained", *(f"{x}, 95 %" for x in short.values()))
    firsts = [rows[rows.places == name].iloc[0] for name in others]
    befores = (f"{x.before:.1f} ({x.before_low:.1f}…{x.before_high:.1f})" for x in firsts)
    table.add_row(Text("nothing"), *befores, style="dim")
    for _, group in rows.groupby(["part", "budget"], sort=False):
        by_place = {row.places: row for _, row in group.iterrows()}
        cells = (by_place[name] for name in others)
        table.add_row(
            _name(group.iloc[0]),
            *(f"{c.after:.1f} ({c.after_low:.1f}…{c.after_high:.1f})" for c in cells),
        )
    return table


def _neurons(locality: Locality) -> Table:
    table = words_and_numbers(
        "If only some neurons keep what training the whole MLP changed in them",
        "neurons", "of the gain, 95 %", "as many at random, 95 %",
    )  # fmt: skip
    for n, most, drawn in zip(
        locality.neurons, locality.by_effect, locality.at_random, strict=True
    ):
        cells = (
            f"{number(float(x.estimate), '.2f')} ({float(x.low):.2f}…{float(x.high):.2f})"
            for x in (most, drawn)
        )
        table.add_row(Text(f"{n}"), *cells)
    return table


def _name(row: pd.Series) -> Text:
    return Text(plain(f"{row.part}, {row.budget}"))


def render_finetuned_rollouts(summary: pd.DataFrame, *, steps: int) -> RenderableType:
    """Success by place and by what was trained.

    Args:
        summary: `FinetunedRollouts.summary()`.
        steps: control steps of a rollout.
    """
    parts: list[RenderableType] = []
    for name, rows in summary.groupby("places", sort=False):
        title = f"Closed loop, {plain(name)}: cubes lifted ({steps} control steps)"
        table = words_and_numbers(
            title, "trained", "lifted", "95 %", "won", "lost", "change, 95 %", "p", "tip, mm"
        )
        for _, row in rows.iterrows():
            plainly = pd.isna(row.success_change)
            low, high = 100 * row.success_change_low, 100 * row.success_change_high
            table.add_row(
                Text("nothing" if plainly else plain(row.condition)),
                f"{row.successes:.0f}/{row.rollouts:.0f}",
                f"{row.success_low:.0%}…{row.success_high:.0%}",
                number(row.gained, ".0f"),
                number(row.lost, ".0f"),
                "" if plainly else f"{low:+.0f}…{high:+.0f} %",
                p_value(row.p),
                f"{row.tip_error_mm:.0f}",
            )
        parts += [table, Text()]
    note = (
        "Fresh starts, the same for all; half of them with the weights trained on either half of "
        "the demonstrations. Wilson's and Tango's intervals, McNemar's exact p. tip: median "
        "distance from the cube where the gripper closed."
    )
    return Group(*parts, Text(note))
