"""The claims about memory: each figure with its interval, its null and what it says.

They are those of a note on an ACT: the decoder MLP memorises exact actions, a lookup table,
although the action vector after cross-attention holds all of the environment, at unseen places too.
"""

from collections.abc import Mapping

import numpy as np

from actlens.claims import Claim, at_least, at_most, judged
from actlens.mechanism import JUMP, MechanismAxis, Part
from actlens.retrieval import Undefined, Value
from actlens.statistics import Interval
from actlens.verdict.dissociation import Dissociation
from actlens.verdict.judge import GENERALISES, TABLE_LIKE

HOLDS = "the action vector holds the environment, at unseen places too"
TABLE = "the decoder MLP memorises exact actions: it is a lookup table"
DISSOCIATED = "at unseen places it knows where the object is and acts wrongly"
_NEARLY_ALL = 0.9
_MOST = 0.5


def table_claims(mechanism: MechanismAxis, indices: Mapping[str, Value]) -> tuple[Claim, ...]:
    """Both halves of a lookup table: it jumps, and it does not generalise.

    Args:
        indices: the generalisation index by the name of the unseen scenes.
    """
    jump = mechanism.of(JUMP)
    table = f"{jump.table:.2f}" if np.isfinite(jump.table) else "none could be planted"
    memoriser = f", of a trained memoriser {jump.memoriser:.2f}" * bool(np.isfinite(jump.memoriser))
    claims = [
        judged(
            TABLE, f"it jumps between neighbours (a planted table: {table}{memoriser})",
            f"{JUMP}, {Part.DECODER_MLP}", jump.interval,
            null=jump.rule, null_is="a planted rule", rule=(at_least, TABLE_LIKE),
        )
    ]  # fmt: skip
    for scenes, value in indices.items():
        known = Interval(*(np.full((), np.nan),) * 3) if isinstance(value, Undefined) else value
        claims.append(
            judged(
                TABLE, f"it does not generalise: {scenes}",
                "generalisation index" + (f" ({value})" if isinstance(value, Undefined) else ""),
                known, null=0.0, null_is="the nearest demonstration",
                rule=(at_most, GENERALISES),
            )
        )  # fmt: skip
    return tuple(claims)


def dissociation_claims(
    tables: Mapping[str, Dissociation], known: Dissociation
) -> tuple[Claim, ...]:
    """What is known at unseen places, and what is done.

    Args:
        tables: unseen scenes by name, which says how the probe was fitted.
        known: the demonstrations, read by probes of other episodes.
    """
    claims = [
        judged(
            HOLDS, f"{name}: read to {table.tolerance:g} mm", "share of scenes", table.read,
            null=table.guessed, null_is="a mean place",
            rule=(at_least, _NEARLY_ALL),
        )
        for name, table in tables.items()
    ]  # fmt: skip
    at_known = float(known.share(probe=True, action=False).estimate)
    claims += [
        judged(
            DISSOCIATED, f"{name}: read well, gripper sent more than {table.tolerance:g} mm astray",
            "share of scenes", table.share(probe=True, action=False),
            null=at_known, null_is="at demonstrated places", rule=(at_least, _MOST),
        )
        for name, table in tables.items()
    ]  # fmt: skip
    return tuple(claims)
