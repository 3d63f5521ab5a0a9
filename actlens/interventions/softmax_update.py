"""Attention after a few keys, values or queries have changed, without redoing it.

If the score of key n at a query changes from s to s', its softmax changes in the one entry and in
its denominator alone, so with the base run's pattern P, mix z and log-sum-exp l

    z' = (z - P_n v_n + R v'_n) / C,    R = exp(s' - l),    C = 1 - P_n + R,

and likewise with sums over several changed keys. This is exact; where C is small (attention that
left the changed keys' old values) the row is computed anew.
"""

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.interventions.rows import Rows, Value

SMALLEST_DENOMINATOR = 0.05
"""Rounding errors of z' grow as 1 / C; rows with a smaller C are computed anew."""
LARGEST_RATIO = 1e30
"""Rows whose new score would overflow the ratio R are computed anew."""
LARGEST_SHARE = 0.25
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


def updated(
    q: Value | None,
    k: Value | None,
    v: Value | None,
    base: Mapping[str, Tensor],
    prefix: str,
    log_sum_exp: Callable[[str], Float[Tensor, "1 head query"]],
) -> Value:
    """The mix of values after changes; None stands for what is as in the base run.

    Args:
        base: the base run's activations.
        prefix: of the attention's hook names.
        log_sum_exp: of the base run's scores, by prefix.
    """
    old_q, old_k, old_v = (base[f"{prefix}.hook_{name}"] for name in "qkv")
    rows = [x.index for x in (q, k, v) if isinstance(x, Rows)]
    whole = any(isinstance(x, Tensor) for x in (q, k, v))
    apart = any(index is not rows[0] for index in rows[1:])
    keys_changed = k is not None or v is not None
    share = rows[0].shape[1] / old_k.shape[1] if rows else 1.0
    if whole or apart or (keys_changed and share > LARGEST_SHARE):
        filled = (
            x.dense(old) if isinstance(x, Rows) else old if x is None else x
            for x, old in ((q, old_q), (k, old_k), (v, old_v))
        )
        return attend(*filled)
    index = rows[0]
    if isinstance(q, Rows) and not keys_changed:
        return Rows(index, attend(q.values, old_k, old_v))
    new_k = k.values if isinstance(k, Rows) else old_k[0][index]
    new_v = v.values if isinstance(v, Rows) else old_v[0][index]
    z = _update_mix(
        old_q, old_k, old_v, new_k, new_v, index,
        base[f"{prefix}.hook_pattern"], base[f"{prefix}.hook_z"], log_sum_exp(prefix),
    )  # fmt: skip
    if isinstance(q, Rows):
        batch = torch.arange(len(index), device=index.device)[:, None]
        z[batch, index] = _attend_to_changed(q.values, old_k, old_v, new_k, new_v, index)
    return z


def _update_mix(
    q: Float[Tensor, "1 query head d_head"],
    k: Float[Tensor, "1 key head d_head"],
    v: Float[Tensor, "1 key head d_head"],
    new_k: Float[Tensor, "batch changed head d_head"],
    new_v: Float[Tensor, "batch changed head d_head"],
    index: Int[Tensor, "batch changed"],
    pattern: Float[Tensor, "1 head query key"],
    z: Float[Tensor, "1 query head d_head"],
    log_sum_exp: Float[Tensor, "1 head query"],
) -> Float[Tensor, "batch query head d_head"]:
    """z' of the module's formula at every query."""
    ratio = (scores_of(q, new_k) - log_sum_exp[..., None]).exp()  # batch head query changed
    before = pattern[0][:, :, index].permute(2, 0, 1, 3)
    denominator = 1 - before.sum(-1) + ratio.sum(-1)
    weights = torch.cat([ratio, -before], -1)
    values = torch.cat([new_v, v[0][index]], 1).transpose(1, 2)  # batch head 2*changed d_head
    mixed = (z.transpose(1, 2) + weights @ values) / denominator[..., None]
    unsafe = (denominator < SMALLEST_DENOMINATOR) | ~(ratio.amax(-1) < LARGEST_RATIO)
    if unsafe.any():
        batch, head, query = unsafe.nonzero(as_tuple=True)
        for h in head.unique().tolist():
            b, i = batch[head == h], query[head == h]
            one = slice(h, h + 1)
            mixed[b, h, i] = _attend_to_changed(
                q[0, i, one][:, None], k[:, :, one], v[:, :, one],
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
