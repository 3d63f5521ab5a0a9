"""Changed queries and keys through the softmax exactly, and linearly after it.

The QK fix of AtP* (Kramar et al. 2024). A gradient says nothing of attention that is saturated: it
vanishes, while a changed query or key may turn the attention elsewhere. So the pattern is computed
anew for every query and every key that changes by itself, and only what follows the pattern is
linearised. That takes two more products of queries and keys in every attention.
"""

import torch
from jaxtyping import Float
from torch import Tensor

Pattern = Float[Tensor, "head query key"]


def of_queries(gradient: Pattern, scores: Pattern, changed: Pattern) -> Float[Tensor, "query head"]:
    """The estimate for each query of each head, changed by itself.

    Args:
        gradient: with respect to the pattern.
        scores: of the run.
        changed: of the donor's queries with the run's keys.
    """
    return ((changed.softmax(-1) - scores.softmax(-1)) * gradient).sum(-1).T


def of_all_keys(gradient: Pattern, scores: Pattern, changed: Pattern) -> Float[Tensor, " head"]:
    """The estimate for all keys of each head, changed together.

    Args:
        gradient: with respect to the pattern.
        scores: of the run.
        changed: of the run's queries with the donor's keys.
    """
    return ((changed.softmax(-1) - scores.softmax(-1)) * gradient).sum((-1, -2))


def of_keys(gradient: Pattern, scores: Pattern, changed: Pattern) -> Float[Tensor, "key head"]:
    """The estimate for each key of each head, changed by itself.

    A key whose score at a query becomes s' gets the share sigmoid(s' - o) of it, o the log-sum-exp
    of the other keys' scores; the others share the rest as before.

    Args:
        gradient: with respect to the pattern.
        scores: of the run.
        changed: of the run's queries with the donor's keys.
    """
    if scores.shape[-1] == 1:  # there are no others: it keeps everything
        return scores.new_zeros(1, len(scores))
    pattern = scores.softmax(-1)
    mixed = (pattern * gradient).sum(-1, keepdim=True)
    rest = 1 - pattern
    others = scores.logsumexp(-1, keepdim=True) + rest.log()
    others_mixed = (mixed - pattern * gradient) / rest
    # Where one key has nearly everything, rounding leaves nothing of what the others have.
    strongest = scores.argmax(-1, keepdim=True)
    without = scores.scatter(-1, strongest, -torch.inf)
    others = others.scatter(-1, strongest, without.logsumexp(-1, keepdim=True))
    remaining = (without.softmax(-1) * gradient).sum(-1, keepdim=True)
    others_mixed = others_mixed.scatter(-1, strongest, remaining)
    share = torch.sigmoid(changed - others)
    return (share * gradient + (1 - share) * others_mixed - mixed).sum(-2).T
