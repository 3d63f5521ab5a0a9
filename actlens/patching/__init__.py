"""Activation patching between two scenes: which parts carry what differs between them?"""

from actlens.metrics import Direction
from actlens.patching.pairs import patch_pairs
from actlens.patching.parts import (
    ALL_TOKENS,
    CHANGED,
    UNCHANGED,
    Part,
    Unit,
    differing_tokens,
    parts_of,
    token_groups,
)
from actlens.patching.result import PatchingResult
from actlens.patching.sweep import PairSweep, SweepOptions, sweep_pair

__all__ = [
    "ALL_TOKENS",
    "CHANGED",
    "UNCHANGED",
    "Direction",
    "PairSweep",
    "Part",
    "PatchingResult",
    "SweepOptions",
    "Unit",
    "differing_tokens",
    "parts_of",
    "patch_pairs",
    "sweep_pair",
    "token_groups",
]
