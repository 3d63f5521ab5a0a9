"""Rank-one edits read along C^-1 k*, with ROME's own C and ridge."""

import pytest
import torch

from actlens.finetuning import KeptScenes, rank_one_ways
from actlens.finetuning.rank_one import matrices
from actlens.rome import KeyMetric, key_statistics
from actlens.scene import stack
from tests.finetuning.conftest import demonstrated


@pytest.fixture(scope="module")
def known_scenes(teacher):
    return demonstrated(teacher, 24, seed=21)


@pytest.fixture(scope="module")
def sets(teacher, known_scenes, scenes):
    parts = [matrix.part for matrix in matrices(teacher)]
    return [KeptScenes.of(teacher, some, parts) for some in (known_scenes, scenes)]


def test_keys_are_what_the_matrices_read(teacher, scenes, sets):
    hooks = ["decoder.0.mlp.hook_post", "decoder.0.cross_attn.hook_z"]
    _, cache = teacher.run_with_cache(stack(scenes), names_filter=hooks)
    read = {}
    handle = teacher.action_head.register_forward_pre_hook(lambda m, x: read.update(head=x[0]))
    with torch.no_grad():
        teacher(stack(scenes))
    handle.remove()
    expected = [cache[hooks[0]], cache[hooks[1]].flatten(2), read["head"]]
    for matrix, keys in zip(matrices(teacher), expected, strict=True):
        torch.testing.assert_close(matrix.keys(teacher, sets[1]), keys)
        (weight,) = matrix.part.weights(teacher).values()
        assert weight.shape[1] == keys.shape[-1]


def test_the_mlps_reader_is_that_of_rome(teacher, known_scenes, scenes, sets):
    """With `KeyMetric` of `actlens.rome` at the same ridge."""
    _, cache = teacher.run_with_cache(stack(scenes), names_filter="decoder.0.mlp.hook_post")
    n = teacher.config.n_action_steps
    counted = torch.stack([~scene.action_is_pad for scene in scenes])[:, :n]
    key = cache["decoder.0.mlp.hook_post"][:, :n][counted].mean(0)
    statistics = key_statistics(teacher, known_scenes, "decoder.0")
    ours = rank_one_ways(teacher, *sets)[0].update.reader
    cosines = []
    for ridge in statistics.ridge_curve.ridges:
        theirs = KeyMetric.of(statistics, ridge).solve(key[None])[0]
        cosines.append(float(torch.cosine_similarity(ours, theirs, dim=0)))
    assert max(cosines) == pytest.approx(1, abs=1e-9)


def test_the_null_reads_the_key_of_what_is_known(teacher, sets):
    known, new = sets
    ways = rank_one_ways(teacher, known, new)
    same = rank_one_ways(teacher, known, known)
    torch.testing.assert_close(ways[-1].update.reader, same[0].update.reader)
    assert not torch.allclose(ways[-1].update.reader, ways[0].update.reader)
