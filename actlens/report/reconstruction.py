"""The console report of reconstructed scenes; computes nothing but its selection of rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from actlens.claims import Claim, Support
from actlens.reconstruction import CLAIM, Decoder, Fitted, Reconstruction
from actlens.reconstruction.limits import HALF_A_CUBE
from actlens.reconstruction.material import DEMONSTRATIONS, VECTOR
from actlens.reconstruction.result import PICTURE
from actlens.report.cells import number
from actlens.report.claims import COLOURS
from actlens.report.closing import closing
from actlens.report.layout import facts_header, words_and_numbers
from actlens.report.plain import plain

_SHORT = {
    "cube's outline in the pictures": "cube's outline",
    "nearest fitted scene by action vector": "nearest by vector",
    "action vectors, all positions": "all action vectors",
    "action vector, untrained": "vector, untrained",
    "action vector, shuffled": "vector, shuffled",
}


def render_reconstruction(
    result: Reconstruction,
    frames: Mapping[str, pd.DataFrame],
    *,
    policy: str,
    facts: Sequence[tuple[str, str]] = (),
    files: Sequence[Path] = (),
    next_steps: Sequence[str] = (),
) -> RenderableType:
    """The claim part by part, then pictures and places by site, then beside each control.

    Args:
        frames: `result.frames()`.
        policy: one line that identifies the policy.
        facts: further lines of the header.
        files: what was written.
        next_steps: commands worth running now.
    """
    question = "what does the action vector hold?"
    parts: list[RenderableType] = [
        facts_header("reconstruction", question, [("policy", policy), *facts]),
        Text(),
    ]
    if result.claims:
        parts += [Text(plain(f"“{CLAIM}”"), style="bold")]
        parts += _claims(result.claims)
        parts += [Text(), Text(_CLAIMS), Text()]
    for number_of, moment in enumerate(result.moments):
        # Later, the arm gives the cube away: one way to read it is enough there.
        for fitted in Fitted if number_of == 0 else (Fitted.DEMONSTRATIONS,):
            for table in (
                _pictures(frames, moment.moment, fitted),
                _places(frames["state"], moment.moment, fitted),
            ):
                if table is not None:
                    parts += [table, Text()]
    parts += [Text(_NOTE), Text()]
    parts += [_beside(frames["paired"], result.moments[0].moment), Text(), Text(_BESIDE)]
    return Group(*parts, *closing([], 0, min_effect=0, files=files, next_steps=next_steps))


_CLAIMS = (
    "At frame 0, where only the pictures tell where the cube is. The limits were set before "
    "any scene was decoded. Green: the whole interval is within the limit; red: outside; yellow: "
    "neither, or decoders fail at what is known exactly. taught: decoders saw other unseen "
    "episodes, too."
)
_NOTE = (
    "drawn: of the squared change from the mean picture, what the drawing explains; cube: share of "
    f"views in which it is drawn within {HALF_A_CUBE:g} mm (a miss is none). Dim: rivals that "
    "are no activation of this policy. Real picture: the detector's own error. Ridge or kernel "
    "ridge, whichever inner folds choose; no episode is fitted and tested."
)
_BESIDE = (
    "Squared error of the picture drawn from the action vector as a multiple of the control's, "
    "paired by episode: below 1 the vector is better. Bold: Benjamini-Hochberg q below 0.05."
)


def verdict(claims: Sequence[Claim]) -> Support:
    """Of all parts together: refuted if one is, supported if all are."""
    verdicts = {claim.verdict for claim in claims}
    if Support.REFUTED in verdicts:
        return Support.REFUTED
    return Support.SUPPORTED if verdicts == {Support.SUPPORTED} else Support.UNDECIDED


def _claims(claims: Sequence[Claim]) -> list[RenderableType]:
    """One table for each way to read the vector: a row for each part, a column for each set."""
    found: list[RenderableType] = []
    split = [(claim, *claim.reading.split(", ", 1)) for claim in claims]
    for way in dict.fromkeys(one[2] for one in split):
        own = [(claim, scenes) for claim, scenes, other in split if other == way]
        sets = list(dict.fromkeys(scenes for _, scenes in own))
        said = verdict([claim for claim, _ in own])
        table = words_and_numbers("", "", *map(plain, sets), "limit", dense=True)
        table.title = Text.assemble(plain(f"{way}: "), (said.value, COLOURS[said]))
        for figure in dict.fromkeys(claim.figure for claim, _ in own):
            by_set = {scenes: claim for claim, scenes in own if claim.figure == figure}
            cells = [_judged(by_set[name]) if name in by_set else Text() for name in sets]
            limit = next(iter(by_set.values())).rule.split(",")[0]
            table.add_row(Text(plain(figure)), *cells, Text(plain(limit)))
        found += [Text(), table]
    return found


def _judged(claim: Claim) -> Text:
    ends = "" if np.isnan(claim.low) else f" {_brief(claim.low)}…{_brief(claim.high)}"
    return Text(f"{_brief(claim.value)}{ends}", style=COLOURS[claim.verdict])


def _brief(value: float) -> str:
    """Three characters or so."""
    if np.isnan(value):
        return "none"
    return (
        f"{value:.0f}" if abs(value) >= 9.95 else f"{value:.2g}" if value >= 1 else f"{value:.2f}"
    )


def _chosen(table: pd.DataFrame, moment: str, fitted: Fitted) -> pd.DataFrame:
    """Rows of a moment, by the better of a source's two families."""
    if not len(table):
        return table
    own = (table.moment == moment) & (table.fitted == fitted.value)
    return table[own & (table.decoder != Decoder.LINEAR.value)]


def _pictures(frames: Mapping[str, pd.DataFrame], moment: str, fitted: Fitted) -> Table | None:
    rows = _chosen(frames["pictures"], moment, fitted)
    if not len(rows):
        return None
    cubes = _chosen(frames["cubes"], moment, fitted)
    if len(cubes):
        cubes = cubes[cubes.camera == "all cameras"].set_index(["source", "scenes"])
    sets = list(dict.fromkeys(rows.scenes))
    words = _by(moment, fitted)
    title = f"Pictures, {words}: drawn{', cube within half a cube' if len(cubes) else ''}"
    table = words_and_numbers(title, "from", *map(plain, sets), dense=True)
    for source, own in rows.groupby("source", sort=False):
        cells = []
        for name in sets:
            one = own[own.scenes == name].iloc[0]
            cell = f"{one.explained:.2f}"
            if len(cubes) and (source, name) in cubes.index:
                cell += f" {100 * cubes.loc[(source, name)].within_half_a_cube:4.0f} %"
            cells.append(cell)
        table.add_row(Text(plain(_short(str(source)))), *cells, style=_look(str(source)))
    return table


def _places(state: pd.DataFrame, moment: str, fitted: Fitted) -> Table | None:
    """Mean errors of every quantity: a row for each site, columns for the sets of one quantity."""
    rows = _chosen(state, moment, fitted)
    if not len(rows):
        return None
    quantities = list(dict.fromkeys(zip(rows.quantity, rows.unit, strict=True)))
    sets = [name for name in dict.fromkeys(rows.scenes) if name != DEMONSTRATIONS] or [
        DEMONSTRATIONS
    ]
    heads = [f"{name.removesuffix(' joints')}, {unit}" for name, unit in quantities]
    title = f"Off by, {_by(moment, fitted)}: {plain(', '.join(sets))}"
    table = words_and_numbers(title, "read off", *map(plain, heads), dense=True)
    for source, own in rows.groupby("source", sort=False):
        cells = []
        for name, _ in quantities:
            of = own[own.quantity == name].set_index("scenes").error
            cells.append(" ".join(number(float(of[s]), ".0f" if of[s] >= 9.95 else ".1f")
                                  for s in sets if s in of))  # fmt: skip
        table.add_row(Text(plain(_short(str(source)))), *cells, style=_look(str(source)))
    return table


def _by(moment: str, fitted: Fitted) -> str:
    return plain(moment if fitted is Fitted.DEMONSTRATIONS else f"{moment}, {fitted.value}")


def _short(source: str) -> str:
    return _SHORT.get(source, source)


def _look(source: str) -> str | None:
    activations = ("ResNet", "encoder", VECTOR, "stream")
    own = source.startswith(activations) and not source.endswith(("untrained", "shuffled"))
    return ("bold" if source.startswith(VECTOR) else None) if own else "dim"


def _beside(paired: pd.DataFrame, moment: str) -> RenderableType:
    if not len(paired):
        return Text()
    measure = PICTURE if (paired.measure == PICTURE).any() else str(paired.measure.iloc[0])
    own = (paired.moment == moment) & (paired.source == VECTOR) & (paired.measure == measure)
    rows = paired[own & (paired.fitted == Fitted.DEMONSTRATIONS.value)]
    sets = list(dict.fromkeys(rows.scenes))
    title = f"The action vector beside its controls: {measure}, {plain(moment)}"
    table = words_and_numbers(title, "control", *map(plain, sets), dense=True)
    for control, of in rows.groupby("control", sort=False):
        cells = []
        for name in sets:
            one = of[of.scenes == name].iloc[0]
            ends = "" if np.isnan(one.ratio_low) else f" {one.ratio_low:.2f}…{one.ratio_high:.2f}"
            cells.append(Text(f"{one.ratio:.2f}{ends}", style="bold" if one.q < 0.05 else ""))
        table.add_row(Text(plain(_short(str(control)))), *cells)
    return table
