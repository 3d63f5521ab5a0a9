"""The seed's claim about the action vector, part by part, against limits fixed beforehand.

A part is judged only where the ceiling passes the same limit: the heading where the cube's outline
shows it, the drawing where a decoder of the true state makes it.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from actlens.claims import Claim, Rule, Support, at_least, at_most, judged
from actlens.reconstruction.limits import ARM, DRAWN, HALF_A_CUBE, HEADING, PICTURE
from actlens.reconstruction.material import (
    DEMONSTRATIONS,
    LABELS,
    OUTLINE,
    PIXELS,
    VECTOR,
    VECTORS,
)
from actlens.reconstruction.quantities import Part, Quantity
from actlens.reconstruction.reading import DRAWABLE, MEAN, SHUFFLED, Fitted, Reading
from actlens.reconstruction.result import MomentRead, hits, pooled, rest_of
from actlens.statistics import Interval

CLAIM = "the action vector holds all of the environment, even for unseen scenes"
"""Of the seed; read here at frame 0, where nothing but the pictures tells where the cube is."""


def claims_of(
    moment: MomentRead, parts: dict[str, Part], *, seed: int, taught: bool = True
) -> tuple[Claim, ...]:
    """One reading for every part of the scene, set of unseen scenes, and way to read the vector.

    Args:
        moment: frame 0's readings.
        parts: quantity -> which part of the scene it is (`parts_of`).
        taught: also by decoders that were taught at other unseen places.
    """
    found: list[Claim] = []
    for fitted in (Fitted.DEMONSTRATIONS, *((Fitted.TAUGHT,) if taught else ())):
        known = {reading.fitted for reading in moment.readings}
        if fitted not in known:
            continue
        for scenes in moment.sets_of(fitted):
            if scenes == DEMONSTRATIONS:
                continue
            for source in (VECTOR, VECTORS):
                found += _of(moment, parts, fitted, scenes, source, seed)
    return tuple(found)


def parts_of(quantities: tuple[Quantity, ...]) -> dict[str, Part]:
    """Quantity -> part."""
    return {one.name: one.part for one in quantities}


def _of(
    moment: MomentRead,
    parts: dict[str, Part],
    fitted: Fitted,
    scenes: str,
    source: str,
    seed: int,
) -> Iterator[Claim]:
    own, mean, shuffled = (moment.reading(name, fitted) for name in (source, MEAN, SHUFFLED))
    rows, groups = moment.rows(own, scenes), moment.groups(own, scenes)
    by = "" if fitted is Fitted.DEMONSTRATIONS else ", decoder taught at other unseen places"
    where = f"{scenes}, {source}{by}"
    ones = np.ones(len(rows))
    null_is = "decoder of shuffled scenes"

    def claim(figure: str, value: Interval, null: Interval, rule: Rule) -> Claim:
        return judged(
            CLAIM, where, figure, value, null=float(null.estimate), null_is=null_is, rule=rule
        )

    sources = {reading.source for reading in moment.readings}

    def ceiling(*names: str) -> Reading:
        return moment.reading(next(name for name in names if name in sources), fitted)

    for name, part in parts.items():
        errors, nothing = own.state[name], shuffled.state[name]
        base = mean.state[name]
        if part is Part.PLACE:
            value, null = (pooled(x.error[rows], ones, groups, seed) for x in (errors, nothing))
            yield claim(f"{name}, mean error in mm", value, null, (at_most, HALF_A_CUBE))
        elif part is Part.HEADING:
            value, null, shown = (
                pooled(x.error[rows], base.error[rows], groups, seed)
                for x in (errors, nothing, ceiling(OUTLINE, PIXELS, LABELS).state[name])
            )
            found = claim(
                f"{name}, error as a share of the mean's", value, null, (at_most, HEADING)
            )
            yield found if shown.estimate <= HEADING else _not_asked(found)
        elif part is Part.ARM:
            value, null = (
                rest_of(pooled(x.squared[rows], base.squared[rows], groups, seed))
                for x in (errors, nothing)
            )
            yield claim(f"{name}, R2", value, null, (at_least, ARM))
    if own.pictures is None or shuffled.pictures is None or mean.pictures is None:
        return
    best = moment.reading(DRAWABLE, fitted).pictures
    assert best is not None
    usual = mean.pictures.squared[rows]
    value, null = (
        pooled(usual - x.squared[rows], usual - best.squared[rows], groups, seed)
        for x in (own.pictures, shuffled.pictures)
    )
    yield claim("picture, of what can be drawn", value, null, (at_least, PICTURE))
    seen = (~np.isnan(own.pictures.off[rows])).sum(1).astype(float)
    if seen.any():
        value, null = (
            pooled(hits(x.off[rows]), seen, groups, seed) for x in (own.pictures, shuffled.pictures)
        )
        found = claim("cube drawn within half a cube, share", value, null, (at_least, DRAWN))
        known = ceiling(LABELS).pictures
        assert known is not None
        drawn = float(hits(known.off[rows]).sum() / seen.sum())
        yield found if drawn >= DRAWN else _not_asked(found)


def _not_asked(claim: Claim) -> Claim:
    """Where decoders fail at what was known exactly, they say nothing of the vector."""
    rule = f"{claim.rule}, where the ceiling passes: it does not"
    return replace(claim, rule=rule, verdict=Support.UNDECIDED)
