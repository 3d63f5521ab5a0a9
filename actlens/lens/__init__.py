"""The action lens: every state of the network as the motion that the rest would make of it.

The Diffusion lens (Toker et al. 2024) for a policy. What draws or carries out decoded chunks needs

    decoded(model, scenes, lenses) -> chunks[lens, scene, chunk, joint] in dataset units

with lenses such as `encoder_lens(model, 1)` or all of `raw_lenses(model)`, whose `name` says where
they look.
"""

from actlens.lens.decoding import decoded, lens_hooks
from actlens.lens.decodings import Decodings, State, When
from actlens.lens.families import head_lenses, raw_lenses, renorm_lenses, token_groups, token_lenses
from actlens.lens.lenses import (
    Lens,
    Moved,
    encoder_lens,
    head_lens,
    policy_itself,
    renormed,
    stream_lens,
    token_lens,
    tuned_stream_lens,
)
from actlens.lens.places import Part, Place, Sublayer, Variant
from actlens.lens.questions import Asking, Question
from actlens.lens.study import LensOptions, LensStudy, study_lenses
from actlens.lens.translator import Moments, Translator, fitted, ridge
from actlens.lens.tuning import Tuned, tune

__all__ = [
    "Asking",
    "Decodings",
    "Lens",
    "LensOptions",
    "LensStudy",
    "Moments",
    "Moved",
    "Part",
    "Place",
    "Question",
    "State",
    "Sublayer",
    "Translator",
    "Tuned",
    "Variant",
    "When",
    "decoded",
    "encoder_lens",
    "fitted",
    "head_lens",
    "head_lenses",
    "lens_hooks",
    "policy_itself",
    "raw_lenses",
    "renorm_lenses",
    "renormed",
    "ridge",
    "stream_lens",
    "study_lenses",
    "token_groups",
    "token_lens",
    "token_lenses",
    "tune",
    "tuned_stream_lens",
]
