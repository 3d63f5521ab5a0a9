"""Effective numbers of tokens, and what chance gives for them."""

import numpy as np
import pytest
import torch
from scipy import stats

from actlens.attention import MEASURES, concentration, random_logits, uniform

S = 162


def measured(pattern):
    return dict(zip(MEASURES, concentration(torch.as_tensor(pattern)).tolist(), strict=True))


def test_all_weight_on_one_token_is_one_token():
    one = torch.zeros(S).index_fill(0, torch.tensor(17), 1.0)
    assert set(measured(one).values()) == {1.0}


@pytest.mark.parametrize("n", [2, 10, 162, 602])
def test_equal_weights_are_all_tokens(n):
    found = measured(torch.full((n,), 1 / n))
    assert found["perplexity"] == pytest.approx(n)
    assert found["inverse_simpson"] == pytest.approx(n)
    for q in (0.5, 0.9, 0.95):
        assert found[f"tokens_for_{q:g}"] == int(np.ceil(round(q * n, 6)))
    assert found["mass_of_top_20"] == pytest.approx(min(20, n) / n)
    assert found["standing_out"] == 0
    assert list(found.values()) == pytest.approx(uniform(n).tolist())


def test_two_equal_tokens_are_two():
    two = torch.zeros(S)
    two[[3, 90]] = 0.5
    found = measured(two)
    assert found["perplexity"] == pytest.approx(2)
    assert found["inverse_simpson"] == pytest.approx(2)
    assert [found[f"tokens_for_{q:g}"] for q in (0.5, 0.9, 0.95)] == [1, 2, 2]
    assert found["standing_out"] == 2


def test_measures_agree_with_scipy_and_with_counting():
    generator = np.random.default_rng(0)
    for p in generator.dirichlet(np.full(40, 0.3), size=20):
        found = measured(p)
        assert found["perplexity"] == pytest.approx(np.exp(stats.entropy(p)))
        assert found["inverse_simpson"] == pytest.approx(1 / (p @ p))
        for q in (0.5, 0.9, 0.95):
            n, mass, left = 0, 0.0, sorted(p)
            while mass < q:
                n, mass = n + 1, mass + left.pop()
            assert found[f"tokens_for_{q:g}"] == n
        assert found["mass_of_top_5"] == pytest.approx(sum(sorted(p)[-5:]))
        assert found["standing_out"] == sum(x > 3 / 40 for x in p)


def test_the_order_of_tokens_does_not_matter():
    p = torch.rand(3, 50, dtype=torch.float64).softmax(-1)
    order = torch.randperm(50)
    torch.testing.assert_close(concentration(p), concentration(p[:, order]))


def test_the_null_is_the_mean_over_brute_force_draws():
    spread, n = np.array([0.5, 2.0]), 7
    found = random_logits(torch.tensor(spread), n, draws=4000, seed=1)
    generator = np.random.default_rng(5)
    logits = generator.normal(size=(4000, 2, n)) * spread[:, None]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    patterns = [p[:, 0], p[:, 1], p.mean(1)]
    expected = [concentration(torch.as_tensor(pattern)).mean(0).numpy() for pattern in patterns]
    error = [concentration(torch.as_tensor(x)).std(0).numpy() / 4000**0.5 for x in patterns]
    assert found.shape == (3, len(MEASURES))
    assert (abs(found.numpy() - expected) < 6 * np.array(error) + 1e-9).all()


def test_the_null_reproduces_known_figures_at_the_size_of_a_full_policy():
    # Perplexity 43, inverse Simpson 16, top 20 hold 73 %: measured with other code.
    spread = torch.full((40, 1), 2.6)
    null = random_logits(spread, 602, draws=20)[:, 0].mean(0)
    found = dict(zip(MEASURES, null.tolist(), strict=True))
    assert found["perplexity"] == pytest.approx(43, rel=0.05)
    assert found["inverse_simpson"] == pytest.approx(16, rel=0.08)
    assert found["mass_of_top_20"] == pytest.approx(0.73, abs=0.02)


def test_without_spread_the_null_is_uniform_and_of_one_head_the_mean_is_that_head():
    flat = random_logits(torch.zeros(2, 3), S, draws=1)
    assert flat.numpy() == pytest.approx(np.broadcast_to(uniform(S), flat.shape))
    one = random_logits(torch.full((5, 1), 1.7), S, draws=2)
    torch.testing.assert_close(one[:, 0], one[:, 1])


def test_a_null_without_draws_is_refused():
    with pytest.raises(ValueError, match="at least one draw"):
        random_logits(torch.ones(1), 10, draws=0)
