"""Whether requests can be granted together: what it costs to grant them at once."""

from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.rome.linearised import Linearised

PRICE_LIMIT = 1.5
"""At least what makes two requests a conflict: opposite ones at keys that share over half."""


@dataclass(frozen=True)
class Conflict:
    """Two requests that resemble each other as scenes and ask for different things."""

    first: int
    second: int
    """Numbers of the requests, from 0."""
    price: float
    """How many times the drift grows when both are granted, over granting each by itself; infinite
    where the two scenes have one and the same key."""


@dataclass(frozen=True)
class Compatibility:
    """What granting requests together costs over granting each by itself."""

    price: float
    """Of all at once; 1 for a single request."""
    conflicts: tuple[Conflict, ...]
    """The pairs that contradict each other, the dearest first."""


def compatibility(start: Linearised, *, limit: float = PRICE_LIMIT) -> Compatibility:
    """The price of granting all requests at once, and the pairs whose price reaches a limit.

    To first order, the least drift (squared) that gives the changes r of actions is r^T (J J^T)^-1
    r. Requests in unrelated scenes cost together what they cost apart: price 1. Two that help each
    other cost less, down to 0.7. Opposite ones at keys that share a part p of themselves cost
    (1 - p)^-1/2 times as much.

    Args:
        start: the problem linearised where nothing is written yet.
    """
    gram = start.gram()
    problem = start.problem
    wanted = (problem.target.cpu() - start.actions).double().flatten()
    request = problem.request.repeat_interleave(problem.target.shape[1])
    rows = {int(i): (request == i).nonzero()[:, 0] for i in request.unique()}
    cost = lambda at: _least_drift(gram[at[:, None], at], wanted[at])
    alone = {i: cost(at) for i, at in rows.items()}
    price = lambda together, apart: (together / apart) ** 0.5 if apart else 1.0
    found = []
    for i, j in combinations(rows, 2):
        of_pair = price(cost(torch.cat([rows[i], rows[j]])), alone[i] + alone[j])
        if of_pair >= limit:
            found.append(Conflict(i, j, of_pair))
    total = price(cost(torch.arange(len(wanted))), sum(alone.values()))
    return Compatibility(total, tuple(sorted(found, key=lambda conflict: -conflict.price)))


def _least_drift(gram: Float[Tensor, "row row"], wanted: Float[Tensor, " row"]) -> float:
    """r^T G^-1 r; infinite where r leaves the range of G."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    lengths = factor.diagonal()
    if not failed and lengths.min() > 1e-4 * lengths.max():  # well away from singular
        solved = torch.linalg.solve_triangular(factor, wanted[:, None], upper=False)
        return float(solved.square().sum())
    squares, directions = torch.linalg.eigh(gram)
    along = directions.T @ wanted
    possible = squares > 1e-12 * squares[-1]
    if along[~possible].norm() > 1e-6 * wanted.norm():
        return float("inf")
    return float((along[possible].square() / squares[possible]).sum())
