"""Tokens taken out of cross-attention: what each alone was worth, and how far a few suffice."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.attention.weights import cross_attentions
from actlens.config import ACTION_KEY
from actlens.interventions import Call, Edit, Intervention, SceneRun, knock_out, run
from actlens.model.act import HookedACT
from actlens.model.units import spread_of
from actlens.sites import Site


def in_units(model: HookedACT, normalized: Tensor) -> Tensor:
    """A difference of normalised actions in dataset units, float64."""
    return normalized.double() * spread_of(model, ACTION_KEY, normalized.double())


def without_tokens(model: HookedACT, tokens: Sequence[int]) -> Intervention:
    """No query of any decoder block sees these tokens; the others share their attention."""
    return knock_out(model, cross_attentions(model), keys=tuple(tokens))


def only_tokens(model: HookedACT, tokens: Sequence[int]) -> Intervention:
    """No query of any decoder block sees any other token."""
    kept = set(tokens)
    return without_tokens(model, [i for i in range(len(model.tokens)) if i not in kept])


def only_own_top(model: HookedACT, k: int) -> Intervention:
    """Every head keeps, at every query, its own k largest weights."""

    return _only(model, lambda scores: scores.topk(k, dim=-1).indices)


def only_own_random(model: HookedACT, k: int, seed: int = 0) -> Intervention:
    """Every head keeps, at every query, k random tokens of its own: the control of its top."""

    def drawn(scores: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(scores.shape, generator=generator).topk(k, dim=-1).indices

    return _only(model, drawn)


def _only(model: HookedACT, chosen: Callable[[Tensor], Tensor]) -> Intervention:
    """Scores lose all tokens but those whose indices `chosen` takes from them."""

    def masked(scores: Tensor) -> Tensor:
        kept = chosen(scores).to(scores.device)
        return torch.full_like(scores, float("-inf")).scatter(-1, kept, scores.gather(-1, kept))

    sites = (Site(f"{name}.hook_attn_scores") for name in cross_attentions(model))
    return Intervention(tuple(Edit(site, Call(masked)) for site in sites))


def leave_one_out(model: HookedACT, base: SceneRun) -> Float[np.ndarray, "token query"]:
    """How far the action moves without each token: root mean square over joints, dataset units.

    Exact: the decoder is run again for every token. With one decoder block, chunk positions do not
    talk, and a position's entry is that position's attention alone. Tokens that stand in for one
    another all look unimportant.
    """
    masks = [without_tokens(model, [token]) for token in range(len(model.tokens))]
    moved = in_units(model, run(model, base, masks).actions - base.actions)
    return moved.square().mean(-1).sqrt().numpy(force=True)


def sufficiency(
    model: HookedACT,
    base: SceneRun,
    orders: Mapping[str, Int[np.ndarray, " token"]],
    tops: Sequence[int],
    *,
    counted: Float[np.ndarray, " query"],
    random: int = 5,
    seed: int = 0,
) -> dict[str, Float[np.ndarray, " top"]]:
    """The action's error if cross-attention sees the k first tokens alone, in dataset units.

    Root mean squares over the chunk positions that count and joints, by who chose the tokens:
    `orders` (most important first) and `random` (the mean over draws); `own` (each head's and
    query's own k largest weights) and `own_random`.

    Args:
        tops: the k, each less than the number of tokens.
        random: draws.
    """
    n, generator = len(model.tokens), np.random.default_rng(seed)
    drawn = [generator.permutation(n) for _ in range(random)]
    chosen = [*orders.values(), *drawn]
    plans = [only_tokens(model, order[:k].tolist()) for order in chosen for k in tops]
    plans += [only_own_top(model, k) for k in tops]
    plans += [only_own_random(model, k, seed + draw) for draw in range(random) for k in tops]
    moved = in_units(model, run(model, base, plans).actions - base.actions)
    error = rms_of(moved, counted).reshape(-1, len(tops))
    given, by_set, own, by_head = np.split(error, np.cumsum([len(orders), random, 1]))
    found = dict(zip(orders, given, strict=True))
    return found | {"random": by_set.mean(0), "own": own[0], "own_random": by_head.mean(0)}


def rms_of(
    moved: Float[Tensor, "*batch query joint"], counted: Float[np.ndarray, " query"]
) -> Float[np.ndarray, "*batch"]:
    """Root mean square over joints and the chunk positions that count."""
    return over_positions(moved.square().mean(-1).sqrt().numpy(force=True), counted)


def over_positions(
    moved: Float[np.ndarray, "*batch query"], counted: Float[np.ndarray, " query"]
) -> Float[np.ndarray, "*batch"]:
    """Root mean square over the chunk positions that count."""
    return np.sqrt(moved**2 @ counted / counted.sum())
