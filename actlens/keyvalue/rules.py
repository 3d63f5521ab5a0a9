"""What triggers share: the interval of a trait, or the disc of a place, where they crowd most.

Geva et al. (2020) had people look at the 25 triggers of a key and name patterns that at least three
share. Here a pattern is a scan: of all intervals between two triggers of a neuron the one in which
they crowd most, against how many of all entries lie there (Kulldorff's likelihood ratio, 1997).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

MIN_TRIGGERS = 3
"""That a pattern takes, as in Geva et al. (2020)."""
MIN_LIFT = 3.0
"""How many times denser than all entries triggers must lie in a pattern."""


@dataclass(frozen=True)
class Crowds:
    """The densest crowd of triggers in one trait, of every neuron or every draw of the null."""

    score: Float[np.ndarray, " unit"]
    """Log likelihood ratio of the triggers having another density there; 0 where no crowd is
    large and dense enough."""
    n: Int[np.ndarray, " unit"]
    """Triggers in the crowd."""
    share: Float[np.ndarray, " unit"]
    """Of all entries that lie in it."""
    first: Int[np.ndarray, " unit"]
    """A trigger by its place: the low end of the interval, or the centre of the disc."""
    last: Int[np.ndarray, " unit"]
    """A trigger by its place: the high end, or one on the rim."""


def crowds(
    inside: Int[np.ndarray, "unit first last"],
    around: Int[np.ndarray, "unit first last"],
    n_triggers: int,
    n_entries: int,
) -> Crowds:
    """The densest of candidate regions, each spanned by two triggers.

    Args:
        inside: triggers in each region; 0 where there is no region.
        around: entries in each region, the triggers among them.
        n_triggers: of every unit.
        n_entries: in all.
    """
    share = np.clip(around / n_entries, 1e-12, 1 - 1e-12)
    part = inside / n_triggers
    with np.errstate(divide="ignore", invalid="ignore"):
        outside = np.where(part < 1, (1 - part) * np.log((1 - part) / (1 - share)), 0.0)
        score = n_triggers * (part * np.log(part / share) + outside)
    eligible = (inside >= MIN_TRIGGERS) & (part >= MIN_LIFT * share)
    flat = np.where(eligible, score, 0.0).reshape(len(inside), -1)
    best = flat.argmax(1)
    unit = np.arange(len(inside))
    first, last = np.divmod(best, inside.shape[2])
    return Crowds(
        flat[unit, best], inside[unit, first, last], share[unit, first, last], first, last
    )


def on_a_line(
    triggers: Float[np.ndarray, "unit top"],
    entries: Float[np.ndarray, " entry"],
    *,
    among: bool = False,
) -> tuple[Crowds, Float[np.ndarray, "unit 2"]]:
    """The densest interval of one trait, and its two ends.

    Args:
        triggers: the trait at every unit's triggers; NaN where it is not known.
        entries: the trait at the entries they are compared with.
        among: whether the triggers are some of the entries; else they are counted in.
    """
    n_triggers, n_entries = triggers.shape[1], len(entries)
    known = np.sort(entries[np.isfinite(entries)])
    ordered = np.sort(triggers, axis=1)  # NaN goes last
    missing = np.isnan(ordered)
    left = np.searchsorted(known, ordered, side="left")
    right = np.searchsorted(known, ordered, side="right")
    places = np.arange(n_triggers)
    inside = np.maximum(places - places[:, None] + 1, 0)
    inside = np.where(missing[:, None, :] | missing[:, :, None], 0, inside)
    around = right[:, None, :] - left[:, :, None]
    if not among:
        around, n_entries = around + inside, n_entries + n_triggers
    found = crowds(inside, around, n_triggers, n_entries)
    unit = np.arange(len(triggers))
    return found, np.stack([ordered[unit, found.first], ordered[unit, found.last]], 1)


def in_the_plane(
    triggers: Float[np.ndarray, "unit top 2"], entries: Float[np.ndarray, "entry 2"]
) -> tuple[Crowds, Float[np.ndarray, "unit 3"]]:
    """The densest disc around one trigger through another: its centre and radius."""
    n_triggers = triggers.shape[1]
    apart = np.linalg.norm(triggers[:, :, None] - triggers[:, None], axis=-1)
    inside = _within(apart)
    around = inside.copy()
    for unit, (centres, radii) in enumerate(zip(triggers, apart, strict=True)):
        distances = np.sort(np.linalg.norm(centres[:, None] - entries, axis=-1), axis=1)
        for i in range(n_triggers):
            around[unit, i] += np.searchsorted(distances[i], radii[i], side="right")
    found = crowds(inside, around, n_triggers, len(entries) + n_triggers)
    unit = np.arange(len(triggers))
    radius = apart[unit, found.first, found.last]
    return found, np.column_stack([triggers[unit, found.first], radius])


def discs_by_chance(
    drawn: Int[np.ndarray, "draw top"], entries: Float[np.ndarray, "entry 2"]
) -> Crowds:
    """The densest disc of every draw of some entries."""
    apart = np.linalg.norm(entries[:, None] - entries, axis=-1)
    around = np.stack([np.searchsorted(np.sort(row), row, side="right") for row in apart])
    pairs = (drawn[:, :, None], drawn[:, None, :])
    return crowds(_within(apart[pairs]), around[pairs], drawn.shape[1], len(entries))


def _within(apart: Float[np.ndarray, "unit top top"]) -> Int[np.ndarray, "unit top top"]:
    """How many triggers lie no farther from the first than the second does."""
    return (apart[:, :, None, :] <= apart[:, :, :, None]).sum(-1)


def planes(trait_names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Traits that are coordinates of one thing: `cube` -> the places of `cube_x` and `cube_y`."""
    names = list(trait_names)
    return {
        name.removesuffix("_x"): (place, names.index(name.removesuffix("_x") + "_y"))
        for place, name in enumerate(names)
        if name.endswith("_x") and name.removesuffix("_x") + "_y" in names
    }
