"""The console report of the action lens; computes nothing but its selection of rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from actlens.lens import LensStudy, Part, Variant, When
from actlens.report.cells import number
from actlens.report.claims import claims_table
from actlens.report.closing import closing
from actlens.report.layout import facts_header, words_and_numbers
from actlens.report.plain import plain

_DEPTH = (Part.ENCODER, Part.DECODER, Part.BASELINE)
_SHOWN = (Variant.RAW, Variant.RENORM, Variant.TUNED, Variant.SHUFFLED)


def render_lens(
    study: LensStudy,
    frames: Mapping[str, pd.DataFrame],
    *,
    policy: str,
    facts: Sequence[tuple[str, str]] = (),
    files: Sequence[Path] = (),
    next_steps: Sequence[str] = (),
) -> RenderableType:
    """How far off every state's motion is, what it gets right, and from which layer on.

    Args:
        frames: `study.frames()`.
        policy: one line that identifies the policy.
        facts: further lines of the header.
        files: what was written.
        next_steps: commands worth running now.
    """
    tuned = study.tuned
    on = f"{tuned.n_scenes} scenes of {tuned.n_episodes} demonstrations"
    lines = [("policy", policy), ("tuned on", on), ("asked", _sizes(frames["errors"])), *facts]
    question = "what would the policy do if its network ended here?"
    errors = first_moment(frames["errors"])
    known = str(errors.set.iloc[0])
    parts: list[RenderableType] = [facts_header("lens", question, lines), Text()]
    parts += [claims_table(study.claims()), Text()]
    parts += [_errors(errors, first_moment(frames["overstatement"]), known), Text()]
    parts += [Text(_ERRORS), Text()]
    if "tip_mm" in errors:
        parts += [_by_set(errors), Text(), Text(_BY_SET), Text()]
    questions = first_moment(frames["questions"])
    for name, rows in questions.groupby("question", sort=False):
        parts += [_rates(str(name), rows), Text()]
    parts += [_emergence(first_moment(frames["emergence"])), Text(), Text(_note(study)), Text()]
    for table in (_heads(errors, known), _tokens(errors, known)):
        if table is not None:
            parts += [table, Text()]
    return Group(*parts, *closing([], 0, min_effect=0, files=files, next_steps=next_steps))


_ERRORS = (
    "Root mean square over positions and joints, against what the policy does, in dataset units "
    "(degrees; percent of the gripper). raw: the rest of the network as it stands. renorm: through "
    "the encoder's last norm. tuned: through an affine map fitted on other demonstrations. "
    "shuffled: through one that was fitted on other scenes' targets, so that it knows the moment "
    "but not the scene. raw/tuned: by how much the raw lens overstates the error, in units of each "
    "joint's spread."
)
_BY_SET = "Mean distance of the gripper's tip from the expert's at the same step, tuned lens."


def first_moment(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of frame 0; all where no scene is a first one."""
    start = table[table.when == str(When.START)]
    return start if len(start) else table


def _sizes(errors: pd.DataFrame) -> str:
    one = errors.drop_duplicates(["set", "when"])
    scenes = one.groupby("set", sort=False).agg(scenes=("scenes", "sum"), n=("episodes", "max"))
    return ", ".join(f"{name}: {row.scenes} of {row.n} episodes" for name, row in scenes.iterrows())


def places_by_depth(rows: pd.DataFrame) -> list[str]:
    """By depth, and the mean action."""
    return list(dict.fromkeys(rows[rows.part.isin([str(part) for part in _DEPTH])].place))


def _at(rows: pd.DataFrame, place: str, variant: Variant) -> pd.Series | None:
    found = rows[(rows.place == place) & (rows.variant == str(variant))]
    return None if found.empty else found.iloc[0]


def _errors(errors: pd.DataFrame, factors: pd.DataFrame, known: str) -> Table:
    title = f"How far off is the motion? ({plain(known)}, {errors.when.iloc[0]})"
    table = words_and_numbers(title, "the network ends at", *_SHOWN, "raw/tuned")
    rows = errors[(errors.set == known) & (errors.against == "policy")]
    factor = factors[factors.set == known].set_index("place").factor
    for place in places_by_depth(rows):
        found = [_at(rows, place, variant) for variant in _SHOWN]
        if rows[rows.place == place].part.iloc[0] == Part.BASELINE:
            found[0] = _at(rows, place, Variant.MEAN)
        cells = ["" if one is None else number(one.rms, ".2f") for one in found]
        table.add_row(Text(plain(place)), *cells, number(factor.get(place, np.nan), ".1f"))
    return table


def _by_set(errors: pd.DataFrame) -> Table:
    rows = errors[errors.against == "expert"]
    sets = list(dict.fromkeys(rows.set))
    title = f"How far from the expert's motion? (mm, {errors.when.iloc[0]})"
    table = words_and_numbers(title, "the network ends at", *map(plain, sets))
    for place in places_by_depth(rows):
        cells = []
        for name in sets:
            here = rows[(rows.set == name) & (rows.place == place)]
            tuned = here[here.variant == str(Variant.TUNED)]
            one = (tuned if len(tuned) else here).iloc[0]
            cells.append(
                f"{one.tip_mm:.0f} ({number(one.tip_mm_low, '.0f')}…"
                f"{number(one.tip_mm_high, '.0f')})"
            )
        table.add_row(Text(plain(place)), *cells)
    return table


def _rates(question: str, rows: pd.DataFrame) -> Table:
    """Rates by encoder layer, raw and tuned, in every set."""
    sets = list(dict.fromkeys(rows.set))
    title = f"Share of motions: {plain(question)} (raw / tuned, {rows.when.iloc[0]})"
    table = words_and_numbers(title, "the network ends at", *map(plain, sets))
    for place in places_by_depth(rows):
        cells = []
        for name in sets:
            here = rows[(rows.set == name) & (rows.place == place)]
            by_variant = here.set_index("variant").rate
            raw = by_variant.get(str(Variant.RAW), np.nan)
            raw = by_variant.get(str(Variant.MEAN), np.nan) if np.isnan(raw) else raw
            tuned = by_variant.get(str(Variant.TUNED), np.nan)
            cells.append(
                f"{_percent(raw)} / {_percent(tuned)}" if tuned == tuned else _percent(raw)
            )
        table.add_row(Text(plain(place)), *cells)
    return table


def _percent(rate: float) -> str:
    return "" if np.isnan(rate) else f"{rate:.0%}"


def _emergence(rows: pd.DataFrame) -> Table:
    variants = [v for v in (Variant.RAW, Variant.TUNED) if str(v) in set(rows.variant)]
    title = "From which encoder layer on? (share of resamples)"
    table = words_and_numbers(title, "", *variants, "final", "null")
    for keys, both in rows.groupby(["question", "set"], sort=False):
        by_variant = both.set_index("variant")
        cells = []
        for variant in variants:
            one = by_variant.loc[str(variant)]
            cells.append("none" if np.isnan(one.layer) else f"{one.layer:.0f} ({one.same:.0%})")
        one = both.iloc[0]
        name = f"{keys[0]}, {keys[1]}"
        table.add_row(Text(plain(name)), *cells, _percent(one.final), _percent(one.null))
    return table


def _note(study: LensStudy) -> str:
    asking = study.asking
    return (
        f"Reaching: within {asking.within_mm:g} mm of the expert's tip where that is nearest to "
        f"the cube. This scene's: nearer to its expert than to those of {asking.among - 1} other "
        f"scenes. In time: closes within {asking.steps} steps of the expert. Layer: the first with "
        "nine tenths of the final rate; none where the policy itself is no better than the null "
        "(the mean action; chance). The map reads every token by itself and was fitted to states, "
        "not to actions: what it fails to show may still be there."
    )


def _heads(errors: pd.DataFrame, known: str) -> Table | None:
    rows = errors[(errors.part == Part.HEAD) & (errors.set == known)]
    rows = rows[rows.against == "policy"]
    if rows.empty:
        return None
    table = words_and_numbers(
        "One cross-attention head alone", "", "others silent", "at their mean"
    )
    for place, both in rows.groupby("place", sort=False):
        rms = both.set_index("variant").rms
        table.add_row(
            Text(plain(place)), *(f"{rms[str(v)]:.2f}" for v in (Variant.RAW, Variant.MEAN))
        )
    return table


def _tokens(errors: pd.DataFrame, known: str) -> Table | None:
    of_tokens = [str(Part.BUT_TOKENS), str(Part.ONLY_TOKENS)]
    rows = errors[errors.part.isin(of_tokens) & (errors.set == known)]
    rows = rows[rows.against == "policy"]
    if rows.empty:
        return None
    layers = sorted(set(rows.layer))
    names = [f"{what} {layer}" for what in ("early", "late") for layer in layers]
    title = "Early: these tokens from an earlier layer. Late: all but these (tuned)"
    table = words_and_numbers(title, "tokens", *names, dense=True)
    for detail, mine in rows.groupby("detail", sort=False):
        rms = mine.set_index(["part", "layer"]).rms
        keys = [(part, layer) for part in of_tokens for layer in layers]
        table.add_row(
            Text(plain(str(detail))), *(number(rms.get(key, np.nan), ".2f") for key in keys)
        )
    return table
