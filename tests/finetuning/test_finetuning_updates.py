"""Updates start at nothing, are isometries, and have as many free numbers as they say."""

import pytest
import torch

from actlens.finetuning import AlongKey, FinetuningError, Subspace, Whole


@pytest.fixture(scope="module")
def weights():
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (7, 11), "b": (7,), "c": (3, 5)}
    return {k: torch.randn(s, generator=generator, dtype=torch.float64) for k, s in shapes.items()}


@pytest.fixture(scope="module")
def reader():
    return torch.randn(11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["whole", "subspace", "along key"])
def test_free_numbers_and_changes_have_equal_norm(kind, weights, reader):
    n = sum(weight.numel() for weight in weights.values())
    if kind == "along key":
        weights, n_free = {"a": weights["a"]}, 7
        space, n = AlongKey(reader).on(weights), 77
    else:
        n_free = n if kind == "whole" else 10
        space = (Whole() if kind == "whole" else Subspace(10)).on(weights)
    assert space.n_free == n_free
    basis = torch.stack([space.changes(e) for e in torch.eye(n_free, dtype=torch.float64)])
    assert basis.shape == (n_free, n)
    torch.testing.assert_close(basis @ basis.T, torch.eye(n_free, dtype=torch.float64))
    assert not space.changes(torch.zeros(n_free, dtype=torch.float64)).any()


def test_a_subspace_moves_every_weight_by_exactly_one_free_number(weights):
    space = Subspace(10, seed=3).on(weights)
    basis = torch.stack([space.changes(e) for e in torch.eye(10, dtype=torch.float64)])
    assert ((basis != 0).sum(0) == 1).all()
    per_number = (basis != 0).sum(1)
    assert per_number.max() - per_number.min() <= 1
    other = Subspace(10, seed=4).on(weights)
    assert not torch.equal(basis[0], other.changes(torch.eye(10, dtype=torch.float64)[0]))


def test_a_subspace_that_is_large_enough_is_everything(weights):
    assert Subspace(10**6).on(weights).n_free == 7 * 11 + 7 + 15
    with pytest.raises(FinetuningError, match="at least one dimension"):
        Subspace(0)


def test_a_change_along_a_key_writes_at_the_key_alone(weights, reader):
    space = AlongKey(reader).on({"a": weights["a"]})
    free = torch.randn(7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    change = space.changes(free).view(7, 11)
    assert torch.linalg.matrix_rank(change) == 1
    across = torch.linalg.svd(reader[None])[2][1:]  # everything that the reader does not see
    assert (change @ across.T).abs().max() < 1e-12
    with pytest.raises(FinetuningError, match="needs one matrix"):
        AlongKey(reader).on(weights)
