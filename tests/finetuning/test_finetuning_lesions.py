"""Which part suffices is found where it is known: policies of which one part was damaged.

Each lesion blocks what the teacher's other parts say, so that without the damaged part nothing but
a constant can be learned (or, for the head, nothing at all about one joint). Undoing it is always
possible: the teacher does what is demonstrated.
"""

import copy

import numpy as np
import pytest
import torch

from actlens.finetuning import (
    Behind,
    KeptScenes,
    Recipe,
    Training,
    Whole,
    cross_attention,
    decoder_mlp,
    encoder,
    head,
)
from tests.finetuning.conftest import CHANGES, demonstrated

PARTS = {
    "decoder MLP": decoder_mlp,
    "cross-attention": cross_attention,
    "encoder": encoder,
    "head": head,
}
SILENT = slice(0, 12)
"""Coordinates of the stream to which only the decoder MLP can write, and which alone are read."""
RECIPE = Recipe(steps=200, batch_size=12, rates=(0.02,))


@pytest.fixture(scope="module")
def teacher(new_model):
    """Its head reads nothing but what its decoder MLP writes."""
    model = new_model(**CHANGES).double()
    block = model.decoder[0]
    with torch.no_grad():
        # What the cross-attention writes goes into the other coordinates, with a positive mean.
        block.ln2.weight[SILENT] = 0
        block.ln2.bias.fill_(1.0)
        block.ln2.bias[SILENT] = 0
        block.ln3.weight.zero_()
        block.ln3.weight[SILENT] = 1
        block.ln3.bias.zero_()
        block.mlp.linear2.weight.mul_(6)
        block.cross_attn.in_proj_weight.mul_(2)  # so that it looks at something
        block.cross_attn.out_proj.weight.mul_(4)
    return model


@pytest.fixture(scope="module")
def scenes(teacher):
    return demonstrated(teacher, 160, seed=1, frames=1)


@torch.no_grad()
def lesion(teacher, part):
    model = copy.deepcopy(teacher)
    block = model.decoder[0]
    if part == "decoder MLP":
        block.mlp.linear2.weight[SILENT] = 0
        block.mlp.linear2.bias[SILENT] = 0
    if part == "cross-attention":
        d = model.config.d_model
        block.cross_attn.in_proj_weight[2 * d :] = 0  # no values
    if part == "encoder":
        model.encoder[-1].ln2.weight.zero_()
    if part == "head":
        model.action_head.weight[1] = 0
    return model


@pytest.fixture(scope="module", params=PARTS)
def case(request, teacher, scenes):
    """The damaged part, and the errors on other scenes: before, best constant, after each part."""
    model = lesion(teacher, request.param)
    parts = {name: make(model) for name, make in PARTS.items()}
    kept = KeptScenes.of(model, scenes, list(parts.values()))
    train, test = kept.of_episodes(np.arange(120)), kept.of_episodes(np.arange(120, 160))
    tuned = {
        name: Training(model, part, Whole(), RECIPE).fit(train, 0.02)
        for name, part in parts.items()
    }
    return request.param, model, train, test, tuned


@torch.no_grad()
def joint_error(model, test, part, weights, joint):
    off = Behind(model, part).with_weights(weights, test.activations) - test.target
    return float(off[..., joint].abs()[test.counted].mean())


def constant_error(train, test, joint):
    """Of the median chunk, the best constant in L1."""
    off = test.target - train.target.median(0).values
    return float(off[..., joint].abs()[test.counted].mean())


def test_only_the_damaged_part_brings_back_what_was_lost(case):
    damaged, model, train, test, tuned = case
    for joint in [1] if damaged == "head" else [0, 1, 2]:
        floor = constant_error(train, test, joint)
        left = {
            name: joint_error(model, test, one.part, one.after, joint)
            for name, one in tuned.items()
        }
        assert left[damaged] < 0.6 * floor, left
        for name, error in left.items():
            assert name == damaged or error > 0.95 * floor, (name, left)


def test_where_nothing_passes_no_training_changes_anything(case):
    damaged, model, _, test, tuned = case
    if damaged == "cross-attention":
        assert tuned["encoder"].relative_norm < 1e-9  # the gradient is rounding
    if damaged == "head":
        for name in ("decoder MLP", "cross-attention", "encoder"):
            one = tuned[name]
            before, after = (
                joint_error(model, test, one.part, w, 1) for w in (one.before, one.after)
            )
            assert one.relative_norm > 0
            assert after == before
