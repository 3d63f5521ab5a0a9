"""One forward and one backward from the cached tokens: the network's gradient at every site."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.attribution.cuts import START
from actlens.interventions.evaluate import needed
from actlens.interventions.network import ACTIONS, network
from actlens.model.act import HookedACT

Scalar = Callable[[Float[Tensor, "chunk joint"]], Float[Tensor, ""]]
"""What is explained: a number made of the normalised action chunk."""


@dataclass(frozen=True)
class Linearised:
    """Activations of one forward, and the gradient of a scalar with respect to each of them."""

    activations: Mapping[str, Float[Tensor, "1 ..."]]
    gradients: Mapping[str, Float[Tensor, "1 ..."]]


def linearise(
    model: HookedACT,
    run: Mapping[str, Tensor],
    names: Collection[str],
    scalar: Scalar,
    *,
    tokens: Float[Tensor, "1 token d_model"] | None = None,
) -> Linearised:
    """Run the transformer once from a run's tokens, and once backward.

    Gradients are total: through everything that follows the hook point, in both attentions. No
    gradient of the weights is taken, and the model is left as it was.

    Args:
        run: a scene's activations, of which the tokens and positions are read.
        names: hook points from `embed.hook_tokens` on, under their own names.
        tokens: instead of the run's.

    Raises:
        InterventionError: if inference does not pass one of the hook points.
    """
    ops = network(model, {START, *names})
    ops = ops[[op.output for op in ops].index(START) :]
    above = needed(ops, {ACTIONS, *names})
    values: dict[str, Tensor] = {}
    with torch.enable_grad():
        for op in ops:
            if op.output not in above:
                continue
            if op.output == START or op.compute is None:
                given = run[op.output] if op.output != START or tokens is None else tokens
                values[op.output] = given.detach().requires_grad_()
            else:
                inputs = (values[name] if name in values else run[name] for name in op.inputs)
                values[op.output] = op.compute(*inputs)
        outcome = scalar(values[ACTIONS][0])
    gradients = torch.autograd.grad(
        outcome, [values[name] for name in names], allow_unused=True, materialize_grads=True
    )
    return Linearised(
        {name: values[name].detach() for name in names}, dict(zip(names, gradients, strict=True))
    )
