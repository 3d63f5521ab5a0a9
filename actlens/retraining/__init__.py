"""The decoder's end, retrained in seconds on what the frozen encoder says of each scene.

    stored = cached(model, dataset.scenes(chunk=50, frames=[0, 25, 50]))
    study = study_memorisation(model, stored)                   # what is learnt by heart?
    study.own[study.matched].share, study.shuffled[study.matched].share
    entries, new = Entries.of(model, stored), Entries.of(model, unseen)
    late_generalisation(model, entries, {"new": new}).falls_frame()   # does it arrive late?

With encoder and cross-attention frozen, nothing else of a scene reaches the decoder's end than one
vector for each chunk position; training on cached vectors is training the policy in that part. What
the frozen part has learnt by heart stays learnt: these figures are of the decoder alone.
"""

from actlens.retraining.claims import late_claims, memory_claims
from actlens.retraining.counterfactual import MemorisationOptions, memorisation
from actlens.retraining.curves import Curve, LateFall, LateGeneralisation, Settled, Start
from actlens.retraining.entries import Entries, cached
from actlens.retraining.late import LateOptions, late_generalisation
from actlens.retraining.learners import Decoders, Learner, LinearReadout
from actlens.retraining.memorisation import Memorisation
from actlens.retraining.study import (
    Isolation,
    MemorisationStudy,
    isolation,
    study_memorisation,
)

__all__ = [
    "Curve",
    "Decoders",
    "Entries",
    "Isolation",
    "LateFall",
    "LateGeneralisation",
    "LateOptions",
    "Learner",
    "LinearReadout",
    "Memorisation",
    "MemorisationOptions",
    "MemorisationStudy",
    "Settled",
    "Start",
    "cached",
    "isolation",
    "late_claims",
    "late_generalisation",
    "memorisation",
    "memory_claims",
    "study_memorisation",
]
