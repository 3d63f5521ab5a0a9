"""Neurons of the last decoder MLP edited one at a time, in closed form through the LayerNorms.

A neuron whose coefficient at a query changes by c adds c w to the stream there, w its column of the
output weights. Of x + c w a LayerNorm needs nothing but dot products of x and w, and so does the
one after it; the action head is linear. All neurons together cost a few matrix products.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from actlens.interventions.scene_run import SceneRun
from actlens.interventions.sources import Moment, Source
from actlens.model.act import HookedACT
from actlens.model.token_major import LayerNorm


def last_neurons(model: HookedACT) -> str:
    """The hook point whose neurons these functions edit."""
    return f"decoder.{model.config.n_decoder_layers - 1}.mlp.hook_post"


@torch.no_grad()
def each_neuron_alone(
    model: HookedACT,
    base: SceneRun,
    source: Source,
    donors: Mapping[str, SceneRun] | None = None,
) -> Float[Tensor, "neuron chunk joint"]:
    """Normalised actions with one neuron of the last decoder MLP replaced at all queries, for each.

    The same as `run` with one intervention for every neuron, without an object for each.

    Raises:
        InterventionError: if the source does not fit the donors.
    """
    point = model.hook_point(last_neurons(model))
    post = base[last_neurons(model)]
    moment = Moment(point, point.index({}, post.shape), donors or {})
    change = source.value(post.clone(), moment) - post
    every = torch.arange(post.shape[-1], device=post.device)
    return with_neurons_changed(model, base, every, change[0].T)


@torch.no_grad()
def with_neurons_changed(
    model: HookedACT,
    base: SceneRun,
    neurons: Int[Tensor, " n"],
    change: Float[Tensor, "n query"],
) -> Float[Tensor, "n chunk joint"]:
    """Normalised actions with each of some neurons' coefficients changed by itself.

    Computed in float64, returned in the model's precision.

    Args:
        neurons: which neuron of the last decoder MLP each of the n actions has changed.
        change: what is added to its coefficient, by query.
    """
    last = model.config.n_decoder_layers - 1
    block = model.decoder[last]
    norms = [model.ln_final] if model.config.pre_norm else [block.ln3, model.ln_final]
    writes = block.mlp.linear2.weight.T[neurons]
    stream = base[f"decoder.{last}.hook_resid_post"][0]
    return through_norms(norms, model.action_head, stream, writes, change.double()).to(stream)


def through_norms(
    norms: Sequence[LayerNorm],
    head: nn.Linear,
    stream: Float[Tensor, "query d_model"],
    writes: Float[Tensor, "n d_model"],
    change: Float[Tensor, "n query"],
) -> Float[Tensor, "n query joint"]:
    """head(norms(stream[q] + change[i, q] writes[i])) for every query q and write i, in float64.

    Behind every LayerNorm the vectors are a (u_q + c v_i) + sum_j f_j x_j, with u and v the stream
    and the writes, mapped linearly, and x_j the biases passed so far; only the numbers a and f
    depend on both q and i.
    """
    u, v, c = stream.double(), writes.double(), change
    factor = torch.ones_like(c)
    passed: list[tuple[Tensor, Tensor]] = []
    centred = lambda x: x - x.mean(-1, keepdim=True)
    for norm in norms:
        u, v = centred(u), centred(v)
        passed = [(f, centred(x)) for f, x in passed]
        moving = u.square().sum(-1) + 2 * c * (v @ u.T) + c.square() * v.square().sum(-1)[:, None]
        squares = factor.square() * moving
        for f, x in passed:
            squares += 2 * factor * f * (u @ x + c * (v @ x)[:, None])
            squares += f * sum(other * (x @ y) for other, y in passed)
        scale = (squares / u.shape[-1] + norm.eps).rsqrt()
        weight = norm.weight.double()
        u, v, factor = u * weight, v * weight, factor * scale
        passed = [(f * scale, x * weight) for f, x in passed]
        passed.append((torch.ones_like(c), norm.bias.double()))
    read = head.weight.double().T
    actions = (v @ read)[:, None] * c[..., None] + u @ read
    actions *= factor[..., None]
    for f, x in passed:
        actions += f[..., None] * (x @ read)
    return actions + head.bias.double()
