"""What must change for a policy to reach a new place? The claims, with figures and verdicts.

A note on an ACT says: only the decoder MLP was trained on demonstrations at a new place, and the
arm lifted the cube there; so the MLP is where positions are looked up. That the MLP suffices is one
claim, that nothing else would do is another, and only the second speaks for a table.
"""

import numpy as np

from actlens.claims import Claim, at_least, at_most, judged
from actlens.finetuning.result import NEW, Finetuning, Outcome
from actlens.finetuning.scoring import Errors
from actlens.finetuning.ways import Budget
from actlens.statistics import Interval, pooled_ratio

SUFFICES = "training the decoder MLP alone brings a policy to new places"
SPECIAL = "it is the decoder MLP that must change"
ONE_ENTRY = "new places are entries that can be written into the MLP"
APART = "what is stored for other places stays as it is"
MLP_VALUES = "decoder MLP's values"
_EDIT = (MLP_VALUES, Budget.RANK_ONE)
_HALF = 0.5
_TOLERATED = 0.1


def claims_of(found: Finetuning) -> tuple[Claim, ...]:
    """All claims that the ways that were tried allow to be asked about."""
    mlp = found.outcome("decoder MLP", Budget.WHOLE)
    if mlp is None:
        return ()
    before = found.untrained(NEW)
    claims = [
        judged(
            SUFFICES, "all of the MLP's numbers", f"of the error there ({_unit(found)}) taken away",
            _last(mlp.after[NEW].cut(before)),
            null=0.0, null_is="nothing trained", rule=(at_least, _HALF),
        )
    ]  # fmt: skip
    for part, budget in (("decoder MLP", Budget.WHOLE), ("decoder MLP", Budget.EQUAL), _EDIT):
        if (own := found.outcome(part, budget)) is not None:
            claims += [_compared(found, own, one, budget) for one in _others(found, budget)]
    claims += _entries(found, mlp, before)
    claims += _apart(found, mlp, "all of the MLP's numbers")
    if (edit := found.outcome(*_EDIT)) is not None:
        claims += _apart(found, edit, "the rank-one edit")
    return tuple(claims)


def _apart(found: Finetuning, one: Outcome, what: str) -> list[Claim]:
    claims = []
    for places in found.before:
        if places != NEW:
            less = _last(one.after[places].cut(found.untrained(places)))
            claims.append(
                judged(
                    APART, f"{places}, {what}", f"growth of the error ({_unit(found)}), share",
                    Interval(-less.estimate, -less.high, -less.low),
                    null=0.0, null_is="nothing trained", rule=(at_most, _TOLERATED),
                )
            )  # fmt: skip
    return claims


def _compared(found: Finetuning, mlp: Outcome, other: Outcome, budget: Budget) -> Claim:
    numbers = f"{mlp.n_free:,} of the MLP's against {other.n_free:,}"
    return judged(
        SPECIAL, f"not the {other.way.part.name}: {numbers}",
        f"error left by training it instead, more than the MLP leaves ({_unit(found)})",
        _last(other.after[NEW].minus(mlp.after[NEW])),
        null=0.0, null_is=f"equally good, {budget}", rule=(at_least, 0.0),
    )  # fmt: skip


def _entries(found: Finetuning, mlp: Outcome, before: Errors) -> list[Claim]:
    gain = before.sums - mlp.after[NEW].sums

    def share(one: Outcome) -> Interval:
        own = before.sums - one.after[NEW].sums
        return _last(pooled_ratio(own, gain, clusters=before.episodes))

    claims = []
    edit = found.outcome(*_EDIT)
    null = found.outcome(MLP_VALUES, Budget.KNOWN_KEY)
    if edit is not None and null is not None:
        claims.append(
            judged(
                ONE_ENTRY, "a rank-one edit at the mean key of the new places",
                "of what training the whole MLP gains, gained by the edit",
                share(edit),
                null=float(share(null).estimate), null_is="at the mean key of what is known",
                rule=(at_least, _HALF),
            )
        )  # fmt: skip
    if found.locality is not None:
        few = max(n for n in found.locality.neurons if n <= found.locality.neurons[-1] // 20)
        at = found.locality.neurons.index(few)
        claims.append(
            judged(
                ONE_ENTRY, f"{few} of {found.locality.neurons[-1]} neurons that change most",
                "of what training the whole MLP gains, gained by their change alone",
                found.locality.by_effect[at],
                null=float(found.locality.at_random[at].estimate),
                null_is="as many drawn at random", rule=(at_least, _HALF),
            )
        )  # fmt: skip
    return claims


def _others(found: Finetuning, budget: Budget) -> list[Outcome]:
    """Other parts with this budget; the head's own size is the equal one."""
    left_out = ("decoder MLP", MLP_VALUES, "everything behind the tokens")
    head = found.outcome("head", Budget.EQUAL) if budget is Budget.WHOLE else None
    alike = [one for one in found.outcomes if one.way.budget is budget or one is head]
    return [one for one in alike if one.way.part.name not in left_out]


def _unit(found: Finetuning) -> str:
    return found.measures[-1]


def _last(interval: Interval) -> Interval:
    """Of the main measure."""
    return Interval(*(np.asarray(x)[-1] for x in (interval.estimate, interval.low, interval.high)))
