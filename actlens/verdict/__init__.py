"""Is a policy a lookup table? The verdict over two axes, never one number.

    inside, beyond = (index_of(function_axis(…)) for …)  # unseen places between and beyond known
    verdict = judge(inside, mechanism_axis(model, scenes, places=…), beyond=beyond)
    verdict.answer, verdict.site, verdict.candidates, verdict.missing, verdict.frame()

Function: does it do better at unseen places than its nearest demonstration (`actlens.retrieval`)?
Mechanism: does it tell neighbouring scenes apart by jumps (`actlens.mechanism`)? Neither is enough:
a decoder that was trained to memorise is smooth, and a table of enough cells generalises.

The boundaries were fixed on planted policies of known answer before any other was judged;
`python -m benchmarks.verdict_calibration` shows how often the verdict is right on them.
"""

from actlens.verdict.answer import Answer, Evidence, Verdict
from actlens.verdict.claims import dissociation_claims, table_claims
from actlens.verdict.dissociation import (
    TOLERANCE,
    Dissociation,
    dissociation,
    dissociation_frame,
)
from actlens.verdict.judge import (
    FAITHFUL_TWINS,
    GENERALISES,
    TABLE_LIKE,
    index_of,
    judge,
)

__all__ = [
    "FAITHFUL_TWINS",
    "GENERALISES",
    "TABLE_LIKE",
    "TOLERANCE",
    "Answer",
    "Dissociation",
    "Evidence",
    "Verdict",
    "dissociation",
    "dissociation_claims",
    "dissociation_frame",
    "index_of",
    "judge",
    "table_claims",
]
