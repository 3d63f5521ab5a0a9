"""Is the decoder a lookup table? What its last MLP and all behind it do between known scenes.

axis = mechanism_axis(model, trained, held_out, places=places)
axis.frame()  # each statistic between those of a table and a rule planted on the same activations

This is one of two axes. A decoder that was trained to memorise can look like a smooth rule to each
of these statistics; whether a policy generalises is another question (`actlens.retrieval`).
"""

from actlens.mechanism.axis import MechanismAxis, Placed, mechanism_axis
from actlens.mechanism.between import Between, between
from actlens.mechanism.locality import Locality, locality
from actlens.mechanism.pairs import Neighbours, neighbours
from actlens.mechanism.surrogates import Contest, Substitute, contest, substitutes
from actlens.mechanism.tail import Tail, Vectored

__all__ = [
    "Between",
    "Contest",
    "Locality",
    "MechanismAxis",
    "Neighbours",
    "Placed",
    "Substitute",
    "Tail",
    "Vectored",
    "between",
    "contest",
    "locality",
    "mechanism_axis",
    "neighbours",
    "substitutes",
]
