"""On how many tokens does attention lie? Effective numbers, and what chance gives for them."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

QUANTILES = (0.5, 0.9, 0.95)
TOPS = (5, 20)
STANDS_OUT = 3
"""Times the equal share 1 / S that a token must have to stand out."""
MEASURES = (
    "perplexity",
    "inverse_simpson",
    *(f"tokens_for_{q:g}" for q in QUANTILES),
    *(f"mass_of_top_{k}" for k in TOPS),
    "standing_out",
)
"""The measures of `concentration`, in order."""


def concentration(pattern: Float[Tensor, "*batch token"]) -> Float[Tensor, "*batch measure"]:
    """The effective number of tokens by several measures, which do not agree with one another.

    exp(entropy) and 1 / sum p² (Hill 1973, numbers of order 1 and 2) count a token by its weight;
    `tokens_for_q` is how many of the largest weights sum to q; `mass_of_top_k` is what the k
    largest sum to. All weight on one token gives 1 for each number, equal weights give S (and q S,
    rounded up). `standing_out` counts the tokens with more than three times the equal share: few of
    them may hold little.

    Args:
        pattern: rows that sum to one.
    """
    p = pattern.double()
    largest = p.sort(dim=-1, descending=True).values
    reached = largest.cumsum(-1)
    # Sums of equal weights miss q by rounding, in the precision of the network.
    counts = [(reached < q - 1e-6).sum(-1) + 1.0 for q in QUANTILES]
    tops = [largest[..., :k].sum(-1) for k in TOPS]
    effective = [torch.special.entr(p).sum(-1).exp(), 1 / p.square().sum(-1)]
    out = (p > STANDS_OUT / p.shape[-1]).sum(-1).double()
    return torch.stack([*effective, *counts, *tops, out], -1)


def uniform(n_tokens: int) -> Float[np.ndarray, " measure"]:
    """The measures where every token has the same weight."""
    return concentration(torch.full((n_tokens,), 1 / n_tokens, dtype=torch.float64)).numpy()


def random_logits(
    spread: Float[Tensor, "*batch head"], n_tokens: int, *, draws: int, seed: int = 0
) -> Float[Tensor, "*batch head_and_mean measure"]:
    """The measures under attention that means nothing: Gaussian logits of the same spread.

    Each head's logits are drawn independently over tokens with the standard deviation that its own
    have, so the null holds the sharpness and takes away what the tokens are. Heads are independent
    as well: the last entry, of the head mean, is what heads that agree by chance alone would give.
    By Monte Carlo: S exp(-σ²/2) and its like are for large S, and off by half at a few hundred.

    Args:
        spread: standard deviation of the logits over tokens.
        draws: are averaged over.
    """
    generator = torch.Generator().manual_seed(seed)
    total = None
    for _ in range(draws):
        noise = torch.randn(*spread.shape, n_tokens, generator=generator, dtype=torch.float64)
        drawn = heads_and_mean((noise * spread.double()[..., None]).softmax(-1))
        found = concentration(drawn)
        total = found if total is None else total + found
    if total is None:
        raise ValueError(f"A null needs at least one draw, got {draws}.")
    return total / draws


def heads_and_mean(
    pattern: Float[Tensor, "*batch head token"],
) -> Float[Tensor, "*batch head_and_mean token"]:
    """The heads' patterns and, behind them, their mean."""
    return torch.cat([pattern, pattern.mean(-2, keepdim=True)], -2)
