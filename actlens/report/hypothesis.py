"""The report of the whole plan: the verdict, every claim, and the table of knowing and doing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from actlens.claims import Claim, Support
from actlens.report.cells import estimate
from actlens.report.claims import COLOURS, claims_table
from actlens.report.closing import closing
from actlens.report.layout import facts_header, words_and_numbers
from actlens.report.plain import plain
from actlens.report.styles import WARNING
from actlens.report.verdict import verdict_lines
from actlens.verdict import Verdict


@dataclass(frozen=True)
class Tested:
    """One part of the plan."""

    name: str
    claims: tuple[Claim, ...]
    tables: Mapping[str, pd.DataFrame]
    lacking: str = ""
    """Why it could not be tested; empty if it was."""
    seconds: float = field(default=0.0, compare=False)


def render_hypothesis(
    tested: Sequence[Tested],
    verdict: Verdict | None,
    at_start: Verdict | None,
    *,
    policy: str,
    facts: Sequence[tuple[str, str]] = (),
    files: Sequence[Path] = (),
    next_steps: Sequence[str] = (),
) -> RenderableType:
    """What is supported, what is refuted, and what is open.

    Args:
        tested: the parts, in the order of the plan.
        verdict: from all moments; None if there is none.
        at_start: from frame 0 alone.
        policy: one line that identifies the policy.
        facts: further lines of the header.
        files: what was written.
        next_steps: commands worth running now.
    """
    claims = [claim for part in tested for claim in part.claims]
    lacking = [f"{part.name}: {part.lacking}" for part in tested if part.lacking]
    question = "does the decoder look its actions up, though it knows the scene?"
    parts: list[RenderableType] = [
        facts_header("hypothesis", question, [("policy", policy), *facts]),
        Text(),
        *verdict_lines(verdict, at_start, []),
        _in_short(claims),
        Text(),
        claims_table(claims, "Claims and their readings"),
        Text(),
    ]
    for part in tested:
        if "dissociation" in part.tables:
            parts += [_knowing(part.tables["dissociation"]), Text(), Text(_KNOWING), Text()]
    parts += [Text(plain(f"not tested: {one}"), style=WARNING) for one in lacking]
    return Group(*parts, *closing([], 0, min_effect=0, files=files, next_steps=next_steps))


_KNOWING = (
    "At the first frame, where the arm does not yet give the object away. read: the object's place "
    "from the action vector by a linear probe of the demonstrations, or one that was taught "
    "by other unseen episodes as well (whether the place is there at all, in a form that the "
    "policy's own head need not find); acted: where the last action of the chunk puts the gripper, "
    "beside the expert's. good: within the same tolerance. The hypothesis expects unseen places in "
    "the second column."
)


def _in_short(claims: Sequence[Claim]) -> Table:
    """One line a claim: how many of its readings say what."""
    table = words_and_numbers("In short", "claim", *(support.value for support in Support))
    for name in dict.fromkeys(claim.claim for claim in claims):
        said = [claim.verdict for claim in claims if claim.claim == name]
        counts = [
            Text(str(said.count(support)) if support in said else "", style=COLOURS[support])
            for support in Support
        ]
        table.add_row(Text(plain(name)), *counts)
    return table


def _knowing(frame: pd.DataFrame) -> Table:
    title = "Knowing and doing, read / acted: share of scenes, 95 %"
    columns = ("good / good", "good / bad", "bad / good", "bad / bad")
    table = words_and_numbers(title, "scenes", *columns, dense=True)
    for _, row in frame.iterrows():
        cells = [
            estimate(row, f"{read}_probe_{acted}_action", ".2f")
            for read in ("good", "bad")
            for acted in ("good", "bad")
        ]
        table.add_row(Text(plain(f"{row.scenes} ({row.n_scenes})")), *cells)
    return table
