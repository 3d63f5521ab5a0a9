"""The console report of retrained decoders; computes nothing but its selection of rows."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from actlens.report.cells import estimate, number
from actlens.report.closing import closing
from actlens.report.layout import facts_header, words_and_numbers
from actlens.report.plain import plain
from actlens.retraining import Isolation, LateGeneralisation, MemorisationStudy, Settled
from actlens.retraining.curves import LATE, WATCHED

_SHOWN = 6


def render_memorisation(
    study: MemorisationStudy,
    lonely: Isolation | None,
    late: LateGeneralisation | None,
    *,
    policy: str,
    facts: Sequence[tuple[str, str]] = (),
    files: Sequence[Path] = (),
    next_steps: Sequence[str] = (),
) -> RenderableType:
    """What the decoder needs to have seen, and whether generalisation arrives late.

    Args:
        lonely: whether it is the lonely demonstrations that are learnt by heart.
        late: None if nothing was trained for long.
        policy: one line that identifies the policy.
        facts: further lines of the header.
        files: what was written.
        next_steps: commands worth running now.
    """
    question = "what has the decoder learnt by heart?"
    header = facts_header("retraining", question, [("policy", policy), *facts])
    table = study.by_step()
    parts: list[RenderableType] = [header, Text(), _by_step(table), Text(), _sentence(study)]
    parts += [Text(), Text(_MEMORISATION), Text(), _elsewhere(study, table)]
    parts += [Text(), _episodes(study, lonely)]
    if late is not None:
        parts += [Text(), _late(late), Text(), Text(_LATE)]
    return Group(*parts, *closing([], 0, min_effect=0, files=files, next_steps=next_steps))


_MEMORISATION = (
    "Error: mean over joints and chunk positions, dataset units. mem: error of decoders that did "
    "not learn an episode minus that of those that did (Feldman and Zhang 2020); share: of the "
    "former. 95 % by episode; ±: standard error over decoders. What the frozen encoder knows by "
    "heart does not show here."
)
_READINGS = {Settled.WAY: "95 % down", Settled.LAST: "last 10 %"}
_SHORT = {"supported": "yes", "refuted": "no", "undecided": "?"}
_LATE = (
    "fall: 1 - error at the end / error once the trained error had come 95 % of its way down, or "
    f"to within 10 % of its last value; below 0 it has risen. Late (yes) if surely over {LATE:.0%} "
    "and more than the trained error fell after that; no only if watched for "
    f"{WATCHED} times as long as settling took. saved: how far the last error lies over the least, "
    "which stopping early would save. From new weights the whole end is trained, from the policy's "
    "the MLP alone."
)


def _by_step(table: pd.DataFrame) -> Table:
    shown = words_and_numbers(
        "Memorisation", "decoders, steps", "learnt", "not learnt", "mem", "share, 95 %", "±"
    )
    for _, row in table.iterrows():
        steps = f", {row.steps}" if row.steps else ""
        shown.add_row(
            Text(plain(f"{row.decoders}{steps}")),
            f"{row.error_in:.2f}",
            f"{row.error_out:.2f}",
            f"{row.mem:.3f}",
            estimate(row, "share", ".0%"),
            f"{row.share_se:.1%}",
            style=None if row.decoders == "demonstrations" else "dim",
        )
    return shown


def _sentence(study: MemorisationStudy) -> Text:
    """The figure at the policy's own level."""
    one, level = study.own[study.matched], float(study.policy[""].estimate)
    mixed = study.shuffled[study.matched]
    reached = (
        f"After {study.matched} steps decoders know what they learnt as well as the policy does"
        if study.reaches_policy
        else f"Not even after {study.matched} steps do decoders know what they learnt as well as "
        "the policy does"
    )
    return Text(
        f"{reached} ({one.error_in.estimate:.2f} against {level:.2f}): then "
        f"{one.share.estimate:.0%} ({one.share.low:.0%}…{one.share.high:.0%}) of the error is "
        f"memory, {mixed.share.estimate:.0%} where nothing but memory helps."
    )


def _elsewhere(study: MemorisationStudy, table: pd.DataFrame) -> RenderableType:
    names = [name for name in study.policy if name]
    if not names:
        return Text("There are no unseen scenes to compare with: give --unseen.root=…")
    shown = words_and_numbers(
        "Unseen scenes: error, and how much better episodes are that the encoder has seen",
        "decoders, steps",
        *names,
    )
    levels = (f"{float(study.policy[name].estimate):.2f}" for name in names)
    shown.add_row("the policy itself", *levels)
    for _, row in table[table.decoders != "shuffled"].iterrows():
        steps = f", {row.steps}" if row.steps else ""
        cells = (f"{row[f'error, {n}']:.2f} {row[f'encoder_gap, {n}']:4.0%}" for n in names)
        shown.add_row(Text(plain(f"{row.decoders}{steps}")), *cells)
    return shown


def _episodes(study: MemorisationStudy, lonely: Isolation | None) -> RenderableType:
    steps, table = max(study.own), study.by_episode()
    one = study.own[steps]
    title = f"Learnt by heart most ({steps} steps)"
    shown = words_and_numbers(title, "episode", "mem, 95 %", "learnt", "not learnt", "q")
    for _, row in table.head(_SHOWN).iterrows():
        shown.add_row(
            str(int(row.episode)),
            f"{row.mem:.2f} ({row.low:.2f}…{row.high:.2f})",
            f"{row.error_in:.2f}",
            f"{row.error_out:.2f}",
            f"{row.q:.2f}",
        )
    note = (
        f"{(table.q < 0.05).sum()} of {len(table)} episodes with q < .05. Reliability of the "
        f"ranking over decoders: {number(one.reliability, '.2f')}."
    )
    if lonely is not None:
        rho = lonely.rank_correlation
        note += (
            f" Rank correlation with the distance to the nearest other demonstration: "
            f"{rho.estimate:.2f} ({rho.low:.2f}…{rho.high:.2f})."
        )
    return Group(shown, Text(), Text(note))


def _late(late: LateGeneralisation) -> Table:
    shown = words_and_numbers(
        "Does generalisation arrive late? Fall since the trained error settled, by two readings",
        "weights, demos, decay; scenes",
        *_READINGS.values(),
        "saved",
        "late?",
        dense=True,
    )
    table = late.falls_frame()
    kinds = ["start", "n_episodes", "weight_decay", "scenes"]
    for of, both in table.groupby(kinds, sort=False):
        start, n, decay, scenes = of
        by_reading = {row.settled_if: row for _, row in both.iterrows()}
        ordered = [by_reading[reading.value] for reading in _READINGS]
        shown.add_row(
            Text(plain(f"{start}, {n}, {decay:g}; {scenes}")),
            *(estimate(row, "fall", ".0%") for row in ordered),
            f"{ordered[0].risen:.0%}",
            "/".join(_SHORT[row.late] for row in ordered),
        )
    return shown
