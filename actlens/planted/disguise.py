"""Changes of a planted MLP that leave its function as it is, or nearly, and hide its making."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.planted.neurons import Neurons, Role, make_neurons, together


@dataclass(frozen=True)
class Disguise:
    """What an analysis must see through; the defaults only hide the order of the neurons."""

    distractors: int = 0
    """Neurons that are active as others are and write where nothing reads."""
    cancelling: int = 0
    """Pairs of equal keys and opposite values, in the directions that are read."""
    permute: bool = True
    rescale: bool = False
    """Move a factor, 1/4 to 4, from each value to its key; a power of 2, so no digit changes."""
    noise: float = 0.0
    """Gaussian noise on keys, thresholds and values, in shares of each one's own size."""
    seed: int = 0

    def generator(self) -> torch.Generator:
        """Of everything random here."""
        return torch.Generator().manual_seed(self.seed)


def extra_neurons(
    disguise: Disguise,
    like: Float[Tensor, "neuron target"],
    inputs: Float[Tensor, "entry d"],
    beside: Float[Tensor, "d target"],
) -> tuple[Neurons, Neurons]:
    """Distractors, whose values are vectors of the stream beside the readout, and cancelling pairs.

    Args:
        like: values of the mechanism, whose size the new ones have.
        inputs: that switch them on: keys are random mixtures of these, on for half of them.
        beside: spans what nothing reads.
    """
    generator = disguise.generator()
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    size = like.norm(dim=1).median()
    centred = inputs - inputs.mean(0)

    def keys(n: int) -> tuple[Tensor, Tensor]:
        weight = draw(n, len(inputs)) @ centred
        weight /= (centred @ weight.T).square().mean(0).sqrt()[:, None].clamp(min=1e-12)
        return weight, -weight @ inputs.mean(0)

    weight, bias = keys(disguise.distractors)
    aside = draw(disguise.distractors, beside.shape[1]) @ beside.T
    aside *= size / aside.norm(dim=1, keepdim=True).clamp(min=1e-12)
    distractors = make_neurons(weight, bias, aside, Role.DISTRACTOR)
    weight, bias = keys(disguise.cancelling)
    value = draw(disguise.cancelling, like.shape[1])
    value *= size / value.norm(dim=1, keepdim=True).clamp(min=1e-12)
    pairs = [make_neurons(weight, bias, v, Role.CANCELLING) for v in (value, -value)]
    return distractors, together(pairs)


def disguised(neurons: Neurons, disguise: Disguise) -> Neurons:
    """Noise, then other scales, then another order."""
    generator = disguise.generator()
    draw = lambda like: torch.randn(like.shape, generator=generator, dtype=torch.float64)
    if disguise.noise:
        row = lambda x: x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5
        neurons = Neurons(
            neurons.weight + disguise.noise * row(neurons.weight) * draw(neurons.weight),
            neurons.bias * (1 + disguise.noise * draw(neurons.bias)),
            neurons.value + disguise.noise * row(neurons.value) * draw(neurons.value),
            neurons.constant,
            neurons.roles,
            neurons.entry,
        )
    if disguise.rescale:
        power = torch.randint(-2, 3, neurons.bias.shape, generator=generator)
        neurons = neurons.rescaled(2.0 ** power.double())
    if disguise.permute:
        neurons = neurons.at(torch.randperm(len(neurons), generator=generator).numpy())
    return neurons
