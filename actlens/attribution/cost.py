"""What attributions cost, in forwards of the transformer."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from actlens.attribution.cuts import START
from actlens.interventions.network import TOKEN_POS
from actlens.model.act import HookedACT


def cost_in_forwards(
    model: HookedACT, run: Mapping[str, Tensor], work: Callable[[], object]
) -> float:
    """Floating-point operations of some work over those of one forward from the tokens on.

    Operations are counted, not timed: the products of matrices, which are nearly all there is.
    """
    with FlopCounterMode(display=False) as counted:
        work()
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        model.resume_normalized(run[START], run[TOKEN_POS][0], layer=0)
    return counted.get_total_flops() / forward.get_total_flops()
