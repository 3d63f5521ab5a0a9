"""Attention after a few keys, values or queries have changed, without redoing it.

If the score of key n at a query changes from s to s', its softmax changes in the one entry and in
its denominator alone, so with the base run's pattern P, mix z and log-sum-exp l

    z' = (z - P_n v_n + R v'_n) / C,    R = exp(s' - l),    C = 1 - P_n + R,

and likewise with sums over several changed keys. This is exact; where C is small (attention that
left the changed keys' old values) the row is computed anew.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.interventions.rows import Rows, Value

SMALLEST_DENOMINATOR = 0.05
"""Rounding errors of z' grow as 1 / C; rows with a smaller C are computed anew."""
LARGEST_RATIO = 1e30
"""Rows whose new score would overflow the ratio R are computed anew."""
LARGEST_SHARE = 0.15
"""With more of the keys changed than this, attention computed as a whole is faster."""


def scores_of(
    q: Float[Tensor, "batch query head d_head"], k: Float[Tensor, "batch key head d_head"]
) -> Float[Tensor, "batch head query key"]:
    """Scaled dot products."""
    scaled = q * math.sqrt(1.0 / q.shape[-1])
    return scaled.transpose(1, 2) @ k.permute(0, 2, 3, 1)


def attend(
    q: Float[Tensor, "batch query head d_head"],
    k: Float[Tensor, "batch key head d_head"],
    v: Float[Tensor, "batch key head d_head"],
) -> Float[Tensor, "batch query head d_head"]:
    """The mix of values."""
    return (scores_of(q, k).softmax(-1) @ v.transpose(1, 2)).transpose(1, 2)


@dataclass(frozen=True)
class BaseAttention:
    """The base run's attention, in the form in which updates read it."""

    q: Float[Tensor, "1 query head d_head"]
    k: Float[Tensor, "1 key head d_head"]
    v: Float[Tensor, "1 key head d_head"]
    z: Float[Tensor, "1 query head d_head"]
    by_key: Float[Tensor, "key head query"]
    """The pattern; what one key receives lies together."""
    log_sum_exp: Float[Tensor, "head query"]

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, z: Tensor, pattern: Tensor) -> "BaseAttention":
        """From activations with a batch axis of one."""
        by_key = pattern[0].permute(2, 0, 1).contiguous()
        return cls(q, k, v, z, by_key, scores_of(q, k)[0].logsumexp(-1))


def updated(q: Value | None, k: Value | None, v: Value | None, base: BaseAttention) -> Value:
    """The mix of values after changes; None stands for what is as in the base run."""
    rows = [x for x in (q, k, v) if isinstance(x, Rows)]
    whole = any(isinstance(x, Tensor) for x in (q, k, v))
    apart = any(not x.shares_places(rows[0]) for x in rows[1:])
    if isinstance(q, Rows) and k is None and v is None:
        return q.holding(attend(q.values, base.k, base.v))
    n_keys = base.k.shape[1]
    grid = None if whole or apart else rows[0].grid(n_keys)
    if grid is None or grid.shape[1] > LARGEST_SHARE * n_keys:
        filled = (
            x.dense(old) if isinstance(x, Rows) else old if x is None else x
            for x, old in ((q, base.q), (k, base.k), (v, base.v))
        )
        return attend(*filled)
    new_k = k.on_grid(grid, base.k) if isinstance(k, Rows) else base.k[0][grid]
    new_v = v.on_grid(grid, base.v) if isinstance(v, Rows) else base.v[0][grid]
    z = _update_mix(base, new_k, new_v, grid)
    if isinstance(q, Rows):
        batch = torch.arange(len(grid), device=grid.device)[:, None]
        queries = q.on_grid(grid, base.q)
        z[batch, grid] = _attend_to_changed(queries, base.k, base.v, new_k, new_v, grid)
    return z


def _update_mix(
    base: BaseAttention,
    new_k: Float[Tensor, "batch changed head d_head"],
    new_v: Float[Tensor, "batch changed head d_head"],
    index: Int[Tensor, "batch changed"],
) -> Float[Tensor, "batch query head d_head"]:
    """z' of the module's formula at every query."""
    before = base.by_key[index].transpose(1, 2)  # batch head changed query
    ratio = (scores_of(new_k, base.q) - base.log_sum_exp[:, None]).exp_()
    denominator = 1 + (ratio - before).sum(2)
    mixed = base.z.transpose(1, 2) + ratio.transpose(2, 3) @ new_v.transpose(1, 2)
    mixed -= before.transpose(2, 3) @ base.v[0][index].transpose(1, 2)
    mixed /= denominator[..., None]
    unsafe = (denominator < SMALLEST_DENOMINATOR) | ~(ratio.amax(2) < LARGEST_RATIO)
    if unsafe.any():
        batch, head, query = unsafe.nonzero(as_tuple=True)
        for h in head.unique().tolist():
            b, i = batch[head == h], query[head == h]
            one = slice(h, h + 1)
            mixed[b, h, i] = _attend_to_changed(
                base.q[0, i, one][:, None], base.k[:, :, one], base.v[:, :, one],
                new_k[b][:, :, one], new_v[b][:, :, one], index[b],
            )[:, 0, 0]  # fmt: skip
    return mixed.transpose(1, 2)


def _attend_to_changed(
    q: Float[Tensor, "batch query head d_head"],
    k: Float[Tensor, "1 key head d_head"],
    v: Float[Tensor, "1 key head d_head"],
    new_k: Float[Tensor, "batch changed head d_head"],
    new_v: Float[Tensor, "batch changed head d_head"],
    index: Int[Tensor, "batch changed"],
) -> Float[Tensor, "batch query head d_head"]:
    """Attention computed anew for given queries, over keys of which some have changed."""
    scores = scores_of(q, k)
    at = index[:, None, None].expand(-1, *scores.shape[1:3], -1)
    pattern = scores.scatter(3, at, scores_of(q, new_k)).softmax(-1)
    change = (new_v - v[0][index]).transpose(1, 2)
    z = pattern @ v.transpose(1, 2) + pattern.gather(3, at) @ change
    return z.transpose(1, 2)
