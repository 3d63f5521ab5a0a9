"""In which part of the policy neighbours are told apart by jumps: encoder, attention or MLP?

A table in the encoder leaves a decoder behind it that only reads it out, and is smooth. So the way
between two neighbours is walked at several depths, everything behind each of them included. What is
a table from the encoder's output on, and smooth from the action vector on, is in cross-attention.
Neighbours are those of each depth's own input: what is far apart there may well be told apart by a
smooth map that turns back and forth on the way.

A blend of two scenes' image tokens is not the tokens of any scene: with cameras, the two depths in
front of the action vector say what a policy makes of double exposures.
"""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import torch

from actlens.interventions.rest import Rest, activations, inputs_behind
from actlens.mechanism.between import POINTS, Between, measured
from actlens.mechanism.pairs import Neighbours, neighbours_of
from actlens.model.act import HookedACT
from actlens.scene import Scene

_STEP = 1 / 64
"""Of the way, for slopes by central differences: attention has no forward derivative here."""
_TOKENS = 1300
"""How many are computed at once."""


class Part(StrEnum):
    """Where a policy can hold a table, from what it sees to what it does."""

    ENCODER = "encoder"
    CROSS_ATTENTION = "cross-attention"
    DECODER_MLP = "decoder MLP"


_INPUT = {Part.ENCODER: "encoder.0.hook_resid_pre", Part.CROSS_ATTENTION: "encoder.hook_out"}


@torch.no_grad()
def between_at(
    model: HookedACT,
    part: Part,
    scenes: Sequence[Scene],
    positions: Sequence[int],
    *,
    n_pairs: int = 80,
    seed: int = 0,
) -> tuple[Between, Neighbours]:
    """What everything from a part's input on does between neighbours, and which these are.

    Args:
        part: the encoder or cross-attention; `between` is for the decoder's MLP.
        positions: of the chunk, which are compared.
        n_pairs: so many are drawn if there are more.

    Raises:
        KeyError: for the decoder's MLP.
        SceneError: if a scene does not fit the policy, or none are neighbours.
    """
    hook, at = _INPUT[part], list(positions)
    kept = activations(model, scenes, (hook, *inputs_behind(model, hook)))
    values, rest = kept[hook], Rest.behind(model, hook, kept)
    pairs = neighbours_of(values, scenes)
    if len(pairs.first) > n_pairs:
        some = np.random.default_rng(seed).choice(len(pairs.first), n_pairs, replace=False)
        pairs = Neighbours(pairs.first[some], pairs.second[some])
    shares = torch.linspace(0, 1, POINTS)
    walked = torch.cat([torch.tensor([-_STEP, _STEP]), shares]).to(values)
    n, n_points = len(pairs.first), len(walked)
    start, end = (torch.from_numpy(x) for x in (pairs.first, pairs.second))
    answers = []
    for units in torch.arange(n * n_points).split(max(1, _TOKENS // values.shape[1])):
        pair, point = units // n_points, units % n_points
        x, y = values[start[pair]], values[end[pair]]
        blended = x + walked[point].view(-1, *[1] * (x.ndim - 1)) * (y - x)
        answers.append(rest.of(start[pair])(blended)[:, at])
    way = torch.cat(answers).unflatten(0, (n, n_points)).transpose(0, 1)
    before, after, way = way[0], way[1], way[2:]
    return measured(way[-1] - way[0], (after - before) / (2 * _STEP), way, shares), pairs
