"""Whether single neurons belong to single scenes, as the cells of a table do."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from actlens.mechanism.tail import Vectored


@dataclass(frozen=True)
class Locality:
    """How neurons share scenes."""

    participation: float
    """Over how many scenes a neuron's work is spread, as a share of all, weighted by its work: 1
    for neurons that work everywhere, 1 / scenes for cells."""
    specificity: Float[np.ndarray, " scene"]
    """log10 of the damage that ablating a scene's main neurons does there over the median damage
    elsewhere: 0 for a distributed map."""


@torch.no_grad()
def locality(run: Vectored, *, n_scenes: int = 25, seed: int = 0) -> Locality:
    """Participation ratios of all neurons, and ablations of the main neurons of some scenes.

    A scene's main neurons carry half of its contributions, each in centred coefficients times the
    length of its value.

    Args:
        n_scenes: whose main neurons are ablated, drawn evenly.
        seed: of the draw.
    """
    coefficients = run.tail.coefficients(run.x).double()
    values = run.tail.site.layer(run.tail.model).weight.double()
    reach = (values - values.mean(0)).norm(dim=0)  # no norm lets the mean over channels through
    centred = (coefficients - coefficients.mean(0)).abs().mean(1)  # scene neuron
    spread = centred.sum(0).square() / centred.square().sum(0).clamp_min(1e-30) / len(centred)
    work = centred.sum(0) * reach
    participation = float((spread * work).sum() / work.sum().clamp_min(1e-30))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(centred), generator=generator)[:n_scenes]
    found = [_specificity(run, centred * reach, int(scene)) for scene in drawn]
    return Locality(participation, np.array(found))


def _specificity(run: Vectored, work: Float[Tensor, "scene neuron"], scene: int) -> float:
    order = work[scene].argsort(descending=True)
    carried = work[scene][order].cumsum(0) < 0.5 * work[scene].sum()
    main = order[: int(carried.sum()) + 1]
    coefficients = run.tail.coefficients(run.x)
    coefficients[..., main] = 0
    moved = run.tail.with_output(run.x, run.tail.output(coefficients)) - run.actions
    damage = moved.double().abs().mean((1, 2))
    elsewhere = torch.cat([damage[:scene], damage[scene + 1 :]]).median()
    return float(torch.log10(damage[scene].clamp_min(1e-12) / elsewhere.clamp_min(1e-12)))
