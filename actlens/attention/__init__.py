"""What a policy attends to, and whether that is what matters: the claims about attention, tested.

episodes = [list(dataset.scenes(chunk=50, episodes=[e], frames=[0, 20, 40])) for e in range(12)]
result = analyse_attention(model, episodes)
result.frame()  # a row per claim: figure, interval, null, verdict
result.survey.shares()  # who gets how much, at every chunk position
result.effects.absorptions()  # tokens swapped before and after the encoder

Attention says where queries look, not what the action depends on: the encoder has moved
information between tokens before the decoder looks. So every description stands beside exact
interventions.
"""

from actlens.attention.absorption import Interchange, interchange
from actlens.attention.analysis import AttentionAnalysis, analyse_attention
from actlens.attention.concentration import MEASURES, concentration, random_logits, uniform
from actlens.attention.effects import AttentionEffects, SceneEffects
from actlens.attention.groups import TokenGroup, token_groups
from actlens.attention.masking import (
    leave_one_out,
    only_own_top,
    only_tokens,
    sufficiency,
    without_tokens,
)
from actlens.attention.options import AttentionOptions
from actlens.attention.overlap import Overlap, overlap, random_jaccard
from actlens.attention.reading import SceneAttention, read_attention
from actlens.attention.survey import AttentionSurvey
from actlens.attention.weights import (
    attention,
    encoder_rollout,
    logit_spread,
    norm_based,
    rollout,
)

__all__ = [
    "MEASURES",
    "AttentionAnalysis",
    "AttentionEffects",
    "AttentionOptions",
    "AttentionSurvey",
    "Interchange",
    "Overlap",
    "SceneAttention",
    "SceneEffects",
    "TokenGroup",
    "analyse_attention",
    "attention",
    "concentration",
    "encoder_rollout",
    "interchange",
    "leave_one_out",
    "logit_spread",
    "norm_based",
    "only_own_top",
    "only_tokens",
    "overlap",
    "random_jaccard",
    "random_logits",
    "read_attention",
    "rollout",
    "sufficiency",
    "token_groups",
    "uniform",
    "without_tokens",
]
