"""Is the decoder a lookup table? What its last MLP and all behind it do between known scenes.

axis = mechanism_axis(model, trained, held_out)
axis.frame()  # each statistic between those of a table and a rule planted on the same activations

This is one of two axes. A decoder that was trained to memorise can look like a smooth rule to each
of these statistics; whether a policy generalises is another question (`actlens.retrieval`).
"""

from actlens.mechanism.axis import JUMP, MechanismAxis, Placed, mechanism_axis, some_executed
from actlens.mechanism.between import Between, between
from actlens.mechanism.depths import Part, between_at
from actlens.mechanism.locality import Locality, locality
from actlens.mechanism.pairs import Neighbours, neighbours, neighbours_of
from actlens.mechanism.stand_in import (
    LINEAR,
    MEAN,
    NEAREST,
    NOTHING,
    SMOOTH,
    SURROGATES,
    StandIn,
    Surrogate,
    mlp_stand_in,
    tail_stand_in,
)
from actlens.mechanism.surrogates import Contest, Substitute, contest, substitutes
from actlens.mechanism.tail import Tail, Vectored
from actlens.mechanism.tried import Tried, tried, tried_frame

__all__ = [
    "JUMP",
    "LINEAR",
    "MEAN",
    "NEAREST",
    "NOTHING",
    "SMOOTH",
    "SURROGATES",
    "Between",
    "Contest",
    "Locality",
    "MechanismAxis",
    "Neighbours",
    "Part",
    "Placed",
    "StandIn",
    "Substitute",
    "Surrogate",
    "Tail",
    "Tried",
    "Vectored",
    "between",
    "between_at",
    "contest",
    "locality",
    "mechanism_axis",
    "mlp_stand_in",
    "neighbours",
    "neighbours_of",
    "some_executed",
    "substitutes",
    "tail_stand_in",
    "tried",
    "tried_frame",
]
