"""From the two axes to an answer: an axis counts if its interval excludes the boundary."""

from collections.abc import Mapping
from enum import Enum
from itertools import product

import numpy as np

from actlens.mechanism import JUMP, MechanismAxis, Part
from actlens.retrieval import ALL_JOINTS, FunctionAxis, Undefined, Value
from actlens.statistics import MIN_CLUSTERS, Interval
from actlens.verdict.answer import Answer, Evidence, Verdict

GENERALISES = 0.5
"""Generalisation index above which a policy is more than its nearest demonstration: half way from
retrieval (0) to being as good at unseen places as at known ones (1)."""
TABLE_LIKE = 0.5
"""Share of jumps above which a part is a table rather than a smooth map: half of the answer."""
FAITHFUL_TWINS = (0.2, 0.6)
"""The planted rule must not jump more than this, nor the planted table less: else the statistic
does not tell them apart on these activations and says nothing of the policy. A planted table's
ramps take up 0.3 of what would be a jump where its default lies midway."""


class _Side(Enum):
    """Where an interval lies with respect to its boundary."""

    BELOW = (False,)
    ABOVE = (True,)
    OPEN = (False, True)


def judge(
    inside: Value,
    mechanism: MechanismAxis,
    *,
    beyond: Value | None = None,
    parts: Mapping[Part, Interval] | None = None,
) -> Verdict:
    """What the policy is.

    Both axes must exclude their boundary, so no correction for two tests is called for: an answer
    is wrong only if an interval is.

    Args:
        inside: the generalisation index at unseen places between the demonstrations (`index_of`).
        mechanism: of the decoder's last MLP, on the policy's own demonstrations.
        beyond: the index at places beyond them; without it interpolation and rule are one.
        parts: jumps between neighbours seen from the encoder and from cross-attention on
            (`between_at`). Leave them out where pixels are blended: double exposures are no scenes.
    """
    missing: list[str] = []
    jumps = {Part.DECODER_MLP: mechanism.of(JUMP).interval, **(parts or {})}
    sides = {part: _side(jumps[part], TABLE_LIKE) for part in reversed(Part) if part in jumps}
    twins = mechanism.of(JUMP)
    if mechanism.no_table:
        missing.append(
            f"no table could be planted on these activations ({mechanism.no_table}): it is not "
            "shown that one would be seen here"
        )
    if twins.rule > FAITHFUL_TWINS[0] or twins.table < FAITHFUL_TWINS[1]:  # False for NaN
        sides = dict.fromkeys(sides, _Side.OPEN)
        missing.append(
            f"a rule and a table planted on these activations jump {twins.rule:.2f} and "
            f"{twins.table:.2f}: they must be told apart (at most {FAITHFUL_TWINS[0]}, at least "
            f"{FAITHFUL_TWINS[1]}) before the policy can be"
        )
    function = _side(inside, GENERALISES)
    outside = _Side.OPEN if beyond is None else _side(beyond, GENERALISES)
    table = _of_any(list(sides.values()))
    candidates = _possible(function, table, outside)
    tiles = function is not _Side.BELOW and table is not _Side.BELOW
    decided = len(candidates) == 1 and not tiles
    answer = candidates[0] if decided else Answer.UNDECIDED
    missing += _lacking(inside, beyond, jumps, function, outside, table)
    evidence = [_index_evidence("between the demonstrations", inside)]
    if beyond is not None:
        evidence.append(_index_evidence("beyond the demonstrations", beyond))
    evidence += [_jump_evidence(part, jumps[part]) for part in reversed(Part) if part in jumps]
    site = _site(sides) if answer is Answer.LOOKUP_TABLE else None
    if answer is Answer.UNDECIDED and function is _Side.ABOVE and table is _Side.ABOVE:
        missing.append(
            "table-like, yet better than retrieval: perhaps a table of more cells than there are "
            "demonstrations; unseen places nearer to the demonstrations would tell"
        )
    return Verdict(answer, candidates, site, tuple(evidence), tuple(missing))


def index_of(axis: FunctionAxis, measure: str = ALL_JOINTS) -> Value:
    """The generalisation index that the verdict is about.

    Raises:
        KeyError: if it was not measured.
    """
    return {index.measure: index.index for index in axis.indices}[measure]


def _side(value: Value, boundary: float) -> _Side:
    if isinstance(value, Undefined) or not np.isfinite(value.low):
        return _Side.OPEN
    if value.low > boundary:
        return _Side.ABOVE
    return _Side.BELOW if value.high < boundary else _Side.OPEN


def _of_any(sides: list[_Side]) -> _Side:
    if _Side.ABOVE in sides:
        return _Side.ABOVE
    return _Side.OPEN if _Side.OPEN in sides else _Side.BELOW


def _possible(function: _Side, table: _Side, outside: _Side) -> tuple[Answer, ...]:
    found = []
    for generalises, jumps, further in product(function.value, table.value, outside.value):
        if not generalises:
            found.append(Answer.LOOKUP_TABLE if jumps else Answer.SMOOTH_MEMORISER)
        elif not jumps:
            found.append(Answer.GENERAL_RULE if further else Answer.INTERPOLATOR)
    return tuple(answer for answer in Answer if answer in found)


def _site(sides: Mapping[Part, _Side]) -> Part | None:
    """From the action back: the first part that jumps, unless one behind it may."""
    for part, side in sides.items():
        if side is _Side.ABOVE:
            return part
        if side is _Side.OPEN:
            return None
    return None


def _lacking(
    inside: Value,
    beyond: Value | None,
    jumps: Mapping[Part, Interval],
    function: _Side,
    outside: _Side,
    table: _Side,
) -> list[str]:
    """Why an axis that matters is open."""
    found = []
    if function is _Side.OPEN:
        found.append(_why("the generalisation index between the demonstrations", inside))
    if table is _Side.OPEN:
        open_parts = (part for part, jump in jumps.items() if _side(jump, TABLE_LIKE) is _Side.OPEN)
        found += [_why(f"the share of jumps, {part}", jumps[part]) for part in open_parts]
    if outside is _Side.OPEN and function is not _Side.BELOW and table is not _Side.ABOVE:
        if beyond is None:
            found.append(
                "scenes beyond the demonstrations: they tell a general rule from an interpolator"
            )
        else:
            found.append(_why("the generalisation index beyond the demonstrations", beyond))
    return found


def _why(figure: str, value: Value) -> str:
    if isinstance(value, Undefined):
        return f"{figure} has no value: {value.reason}"
    if not np.isfinite(value.low):
        return f"{figure} has no interval: it takes {MIN_CLUSTERS} episodes at least"
    return (
        f"{figure} may lie on either side of its boundary ({float(value.low):.2f} to "
        f"{float(value.high):.2f}): more episodes are needed"
    )


def _index_evidence(where: str, value: Value) -> Evidence:
    figure = f"generalisation index {where}"
    if isinstance(value, Undefined):
        nothing = (np.nan,) * 3
        return Evidence("function", figure, *nothing, GENERALISES, str(value))
    says = {
        _Side.ABOVE: "better than the nearest demonstration",
        _Side.BELOW: "little or no better than the nearest demonstration",
        _Side.OPEN: "either",
    }[_side(value, GENERALISES)]
    return Evidence("function", figure, *_bounds(value), GENERALISES, says)


def _jump_evidence(part: Part, value: Interval) -> Evidence:
    says = {_Side.ABOVE: "table-like", _Side.BELOW: "smooth", _Side.OPEN: "either"}
    figure = f"{JUMP}, {part}" + ("" if part is Part.DECODER_MLP else " and all behind it")
    return Evidence(
        "mechanism", figure, *_bounds(value), TABLE_LIKE, says[_side(value, TABLE_LIKE)]
    )


def _bounds(value: Interval) -> tuple[float, float, float]:
    return float(value.estimate), float(value.low), float(value.high)
