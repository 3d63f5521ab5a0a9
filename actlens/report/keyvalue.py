"""The console report of an MLP read as a memory; computes nothing but its selection of rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from actlens.keyvalue import ClosedFormValues, KeyValueAnalysis, ShownNeuron
from actlens.keyvalue.downstream import MIN_CONSISTENCY
from actlens.report.closing import closing
from actlens.report.layout import facts_header, words_and_numbers
from actlens.report.plain import plain

_FIGURES = {
    "with_pattern": ("neurons whose triggers share something", "{:.0%}"),
    "patterns_per_neuron": ("traits that they share", "{:.1f}"),
    "coverage": ("triggers that lie in some pattern", "{:.0%}"),
    "distinct_episodes": ("episodes among the strongest frames", "{:.2f}"),
    "in_fullest_episode": ("of these frames in the fullest episode", "{:.0%}"),
    "concentrated": ("neurons with most of them in one episode", "{:.0f}"),
    "cells": ("and half as strong, at most, in any other", "{:.0f}"),
}


def render_keyvalue(
    result: KeyValueAnalysis,
    neurons: pd.DataFrame,
    shown: Sequence[ShownNeuron],
    *,
    policy: str,
    facts: Sequence[tuple[str, str]] = (),
    files: Sequence[Path] = (),
    next_steps: Sequence[str] = (),
) -> RenderableType:
    """What the keys find, what the values do, and what the layer is, each beside its control.

    Args:
        neurons: `result.neurons()`.
        shown: neurons to list, with their triggers.
        policy: one line that identifies the policy.
        facts: further lines of the header.
        files: what was written.
        next_steps: commands worth running now.
    """
    parts: list[RenderableType] = [
        _header(result, policy, facts),
        _keys(result),
        Text(),
        Text(_keys_note(result)),
        Text(),
        _layer(result),
        Text(),
        Text(_layer_note(result)),
        Text(),
        _neurons(result, neurons, shown),
        Text(),
        Text(_neurons_note(result, shown)),
    ]
    return Group(*parts, *closing([], 0, min_effect=0, files=files, next_steps=next_steps))


def _header(
    result: KeyValueAnalysis, policy: str, facts: Sequence[tuple[str, str]]
) -> RenderableType:
    reading = result.own.reading
    where = "chunk positions" if reading.site.in_decoder else "tokens"
    lines = [
        ("policy", policy),
        (
            "memory",
            f"{reading.site.block}.mlp, {len(result.own.patterns.n_triggers):,} neurons, read at "
            f"{reading.activity.n_entries:,} entries ({reading.n_frames:,} frames of "
            f"{len(reading.episodes)} episodes x {len(reading.positions)} {where})",
        ),
        ("values", f"over {len(result.value_scenes)} scenes, one of each episode"),
    ]
    header = facts_header("key-value", "what does the MLP remember?", [*lines, *facts])
    return Group(header, Text())


def _keys(result: KeyValueAnalysis) -> Table:
    own, shuffled = result.own.summary(), result.shuffled.summary()
    table = words_and_numbers("Keys: what triggers a neuron", "", "own", "shuffled keys")
    table.add_row(
        "neurons that fire in enough episodes", *(f"{x['tested']:,}" for x in (own, shuffled))
    )
    for name, (what, form) in _FIGURES.items():
        table.add_row(what, *(_figure(x[name], form) for x in (own, shuffled)))
    known = result.sharper[np.isfinite(result.sharper)]
    sharper = float((known >= 0.95).mean()) if len(known) else np.nan
    table.add_row("crowd more sharply than 95 % of shuffled keys", _figure(sharper, "{:.0%}"), "5%")
    return table


def _figure(value: float, form: str) -> str:
    return "" if np.isnan(value) else form.format(value)


def _keys_note(result: KeyValueAnalysis) -> str:
    patterns, identity = result.own.patterns, result.own.identity
    n = int(patterns.n_triggers.max())
    return (
        f"Triggers: up to {n} entries at which a neuron fires most, one an episode. They share a "
        "trait if they crowd in an interval (or disc) of it, 3 or more and 3 times as dense as all "
        f"entries, more than permuted triggers do (false discovery rate 5 % of {patterns.p.size:,} "
        "tests). Shuffled keys see the same inputs with their weights in another order: what they "
        "share too is a property of the inputs, not of the memory. Episodes: of the "
        f"{identity.n_triggers} strongest frames; drawn at random they would be of "
        f"{identity.distinct_by_chance:.2f} episodes, {identity.largest_by_chance:.0%} in the "
        "fullest."
    )


def _layer(result: KeyValueAnalysis) -> Table:
    title = "The layer (Geva et al. 2020, for actions)"
    table = words_and_numbers(title, "", "value, 95 %", "null", "in a LM")
    for number in result.layer:
        form = _form(number.unit)
        value = form.format(number.value)
        if not np.isnan(number.low):
            value += f" ({form.format(number.low)}…{form.format(number.high)})"
        unit = "" if number.unit.startswith("share") else f", {number.unit}"
        table.add_row(f"{number.name}{unit}", value, form.format(number.null), number.anchor)
    return table


def _form(unit: str) -> str:
    if unit.startswith("share"):
        return "{:.1%}"
    return "{:.0f}" if unit == "neurons" else "{:.2f}"


def _layer_note(result: KeyValueAnalysis) -> str:
    nulls = {number.null_is: None for number in result.layer}
    lines = [
        "Intervals: bootstrap over episodes. Nulls, in order: " + "; ".join(nulls) + ".",
    ]
    if isinstance(result.values, ClosedFormValues):
        audit, parts = result.values.audit, result.values.contributions
        lines.append(
            f"Contributions sum to the action within {parts.incompleteness:.1g}; taken for effects "
            f"they miss those of {len(audit.neurons)} neurons by {audit.frozen.median:.0%} in the "
            f"median, the whole Jacobian by {audit.linear.median:.1%} (worst "
            f"{audit.linear.worst:.1%}). Effects in this report are exact ablations."
        )
    return " ".join(lines)


def _neurons(
    result: KeyValueAnalysis, neurons: pd.DataFrame, shown: Sequence[ShownNeuron]
) -> Table:
    columns = ["in crowd", "lift", "adds most", "gripper"]
    table = words_and_numbers("Neurons with the largest effects", "neuron: fires at", *columns)
    for one in shown:
        row = neurons[neurons.neuron == one.neuron].iloc[0]
        crowd = f"{row.in_crowd:.0f} of {row.triggers:.0f}" if row.in_crowd else ""
        lift = f"{row.lift:.0f}x" if row.in_crowd else ""
        table.add_row(
            Text(plain(f"{one.neuron}: {describe_region(row)}")),
            crowd,
            lift,
            Text(plain(_adds(row))),
            _gripper(row),
        )
    return table


def describe_region(row: pd.Series) -> str:
    """Where a neuron's triggers crowd, in words, from its row of `KeyValueAnalysis.neurons`."""
    if not row.sharpest_trait:
        return "too few triggers" if not row.triggers else "nothing in common"
    if not np.isnan(row.radius):
        return (
            f"{row.sharpest_trait} within {row.radius:.3g} of ({row.low_or_x:.3g}, "
            f"{row.high_or_y:.3g})"
        )
    return f"{row.sharpest_trait} {row.low_or_x:.3g}…{row.high_or_y:.3g}"


def _adds(row: pd.Series) -> str:
    added = {
        name.removeprefix("adds ").removesuffix(".pos"): float(row[name])
        for name in row.index
        if name.startswith("adds ")
    }
    joint = max(added, key=lambda name: abs(added[name]))
    return f"{joint} {added[joint]:+.2f}"


def _gripper(row: pd.Series) -> str:
    axes = [row.get(f"gripper_{axis}_mm", np.nan) for axis in "xyz"]
    return "" if np.isnan(axes).any() else f"{float(np.linalg.norm(axes)):.1f} mm"


def _neurons_note(result: KeyValueAnalysis, shown: Sequence[ShownNeuron]) -> str:
    if isinstance(result.values, ClosedFormValues):
        return (
            "adds most: the joint that the neuron moves most (minus the mean effect of ablating "
            "it, at the chunk position where that is largest), dataset units; gripper: how far "
            "that moves the point between the jaws."
        )
    directions = [one.direction for one in shown if one.direction is not None]
    steady = sum(one.consistency >= MIN_CONSISTENCY for one in directions)
    median = lambda values: float(np.median(values)) if len(values) else np.nan
    own = median([one.consistency for one in directions])
    control = median([float(one.control_consistency.mean()) for one in directions])
    return (
        "adds most: to the mean executed action, minus the first-order effect of ablating the "
        f"neuron at all tokens. Of the {len(directions)} neurons listed {steady} have one "
        "direction at their triggers; of the others no direction is given, because what they do "
        f"depends on the scene. Samples that agree: {own:.0%} in the median, {control:.0%} if the "
        "value's entries are shuffled: consistency is the network's behind it as much as its own."
    )
