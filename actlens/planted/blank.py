"""A policy of zeros, to write circuits into."""

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.config import ACTConfig
from actlens.model.act import HookedACT
from actlens.model.attention import Attention
from actlens.planted.rewriting import in_double

SHARP = 60.0
"""Logit of what is attended to, where all else has 0: a pattern of 0 and 1 to rounding."""


@torch.no_grad()
def blank_policy(config: ACTConfig) -> HookedACT:
    """All weights zero, norms without affine map; float64, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        model = HookedACT(config).double().eval()
    for name, parameter in model.named_parameters():
        norm = ".ln" in f".{name}" and name.endswith("weight")
        parameter.fill_(1.0 if norm else 0.0)
    return model


def finished(model: HookedACT) -> HookedACT:
    """The policy with a checkpoint, so that it can be saved: float64, of weights of float32."""
    return in_double(model)


def directions(d_model: int, n: int, seed: int = 0) -> Float[Tensor, "d_model n"]:
    """Random orthonormal directions of mean zero, which a LayerNorm does not take out."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(d_model, n, generator=generator, dtype=torch.float64)
    ones = torch.ones(d_model, 1, dtype=torch.float64)
    return torch.linalg.qr(torch.cat([ones, noise], 1))[0][:, 1:]


@torch.no_grad()
def write_head(
    attn: Attention,
    head: int,
    *,
    queries: Float[Tensor, "q d_model"],
    keys: Float[Tensor, "k d_model"],
    values: Float[Tensor, "v d_model"],
    write: Float[Tensor, "d_model v"],
) -> None:
    """One head: the first rows of its queries, keys and values, and what it writes for each value.

    Rows of queries and keys are matched one by one; the softmax's scale is made up for.
    """
    in_proj = attn.in_proj_weight.unflatten(0, (3, attn.n_heads, -1))
    in_proj[0, head, : len(queries)] = queries * in_proj.shape[2] ** 0.5
    in_proj[1, head, : len(keys)] = keys
    in_proj[2, head, : len(values)] = values
    attn.W_O[head, : write.shape[1]] = write.T
