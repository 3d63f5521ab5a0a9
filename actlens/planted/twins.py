"""Twins of a policy: its own encoder and cross-attention, another last decoder MLP.

    stored = Stored.of(model, scenes)            # demonstrated chunks, or model(scenes)'s own
    table = plant(model, stored, Table())        # looks every chunk position up
    rule = plant(model, stored, LinearRule())    # ridge regression on what the MLP reads
    half = plant(model, stored, Mixture(0.5))    # Jacobian/secant ratio 0.5 between neighbours
    table.model.save_pretrained("twin")          # a policy as any other

All read the same vectors and give the same answers in the stored scenes (a table exactly, a rule as
well as it fits); they differ in between. Two norms and the head are replaced by a readout: behind a
large constant vector the norms are linear, so that the twin's MLP alone decides.
A table needs two neurons for each chunk position of each scene; where that is more than the policy
has, the twin's MLPs are wider (all of them: see `rewritten` for what it costs).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.config import Activation
from actlens.model.act import HookedACT
from actlens.model.mlp import MLP
from actlens.planted.description import Planted, Truth
from actlens.planted.disguise import Disguise, disguised, extra_neurons
from actlens.planted.errors import PlantError
from actlens.planted.mechanisms import Mechanism
from actlens.planted.neurons import Neurons, Role, make_neurons, together
from actlens.planted.readout import Readout
from actlens.planted.rewriting import rewritten
from actlens.planted.stored import Stored
from actlens.planted.tables import in_single_precision

_NEGLIGIBLE = 1e-5
"""Components of the inputs in the readout that need no clearing."""
_EPS = 1e-5
"""Of torch's LayerNorm."""


def plant(
    model: HookedACT,
    stored: Stored,
    mechanism: Mechanism,
    *,
    disguise: Disguise | None = None,
    readout: Readout | None = None,
    d_mlp: int | None = None,
) -> Planted:
    """A copy of a policy whose last decoder MLP answers by the mechanism; the policy stays.

    Args:
        stored: what the twin answers in which scenes, of this policy.
        disguise: distractors, noise, order and scale of the neurons.
        readout: the directions in which it answers; random ones if None.
        d_mlp: width of the twin's MLPs; as much as is needed if None. Give a multiple of 16.

    Raises:
        PlantError: if the policy is pre-norm or not ReLU, entries are too close to be told apart,
            or the neurons do not fit into `d_mlp`.
    """
    require_plantable(model)
    disguise = disguise or Disguise()
    config = model.config
    readout = readout or Readout.make(config.d_model, config.action_dim, disguise.seed)
    site = f"decoder.{config.n_decoder_layers - 1}"
    block = model.decoder[-1]
    coordinates = _Coordinates.of(block.ln2.weight, block.ln2.bias)
    inputs, targets = stored.entries()
    mean = targets.mean(0)
    mechanism_neurons = mechanism.build(coordinates.normalised(inputs), targets - mean)
    neurons = _in_the_stream(mechanism_neurons, coordinates, inputs, readout, disguise)
    width = width_for(max(config.d_mlp, len(neurons))) if d_mlp is None else d_mlp
    if len(neurons) > width:
        raise PlantError(f"{len(neurons)} neurons do not fit into an MLP of {width}: raise d_mlp.")
    neurons = disguised(in_single_precision(filled(neurons, width), inputs), disguise)
    beside = readout.beside()
    size = (inputs @ beside).square().sum(1).mean() + (targets - mean).square().sum(1).mean()
    changes = mlp_weights(f"{site}.mlp", neurons, readout) | tail_weights(
        f"{site}.ln3", readout, scale=norm_scale(readout, float(size)), bias=mean
    )
    source = f"{mechanism.name} planted in {_origin(model)}"
    twin = rewritten(model, changes, d_mlp=width, source=source)
    fraction = mechanism.table_fraction
    general = {0.0: True, 1.0: False}.get(fraction)
    return Planted(
        twin,
        mechanism.name,
        Truth(fraction, general, site),
        stored,
        neurons.roles,
        neurons.entry,
        largest_error(twin, stored),
    )


@torch.no_grad()
def answers(model: HookedACT, inputs: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch j"]:
    """The policy's normalised actions for vectors that its last decoder MLP reads."""
    block = model.decoder[-1]
    x = inputs.to(model.action_head.weight).reshape(1, -1, inputs.shape[-1])
    out = model.action_head(model.ln_final(block.ln3(x + block.mlp(x))))
    return out.reshape(*inputs.shape[:-1], -1).double().cpu()


def largest_error(model: HookedACT, stored: Stored) -> float:
    """Largest difference between a policy and what is stored, normalised, over valid entries."""
    inputs, targets = stored.entries()
    return float((answers(model, inputs) - targets).abs().max())


def mlp_weights(name: str, neurons: Neurons, readout: Readout) -> dict[str, Tensor]:
    """An MLP's weights: its values are vectors of the stream, its bias the readout's anchor."""
    return {
        f"{name}.linear1.weight": neurons.weight,
        f"{name}.linear1.bias": neurons.bias,
        f"{name}.linear2.weight": neurons.value.T,
        f"{name}.linear2.bias": neurons.constant + readout.length * readout.anchor,
    }


def tail_weights(
    norm: str, readout: Readout, *, scale: float, bias: Float[Tensor, " joint"]
) -> dict[str, Tensor]:
    """The last two norms without affine map, and the head that undoes their scale."""
    d_model = len(readout.anchor)
    ones, zeros = torch.ones(d_model), torch.zeros(d_model)
    return {
        f"{norm}.weight": ones,
        f"{norm}.bias": zeros,
        "ln_final.weight": ones,
        "ln_final.bias": zeros,
        "action_head.weight": scale * norm_scale_of_unit() * readout.basis.T,
        "action_head.bias": bias,
    }


def norm_scale(readout: Readout, others: float) -> float:
    """What a LayerNorm divides by: the anchor and, beside it, vectors of this mean square norm."""
    return math.sqrt((readout.length**2 + others) / len(readout.anchor) + _EPS)


def norm_scale_of_unit() -> float:
    """What a LayerNorm divides the output of another one by."""
    return math.sqrt(1 + _EPS)


@dataclass(frozen=True)
class _Coordinates:
    """What the MLP reads, with its norm's affine map undone: vectors of mean square 1."""

    weight: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> "_Coordinates":
        weight, bias = weight.detach().double().cpu(), bias.detach().double().cpu()
        # A dead dimension carries nothing; its key entries become zero.
        inverse = torch.where(weight.abs() > 1e-6 * weight.abs().max(), 1 / weight, 0.0)
        return cls(inverse, bias)

    def normalised(self, inputs: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        return (inputs - self.bias) * self.weight

    def read(self, neurons: Neurons, value: Tensor, constant: Tensor) -> Neurons:
        """The neurons as they read the inputs themselves, with values in the stream."""
        weight = neurons.weight * self.weight
        bias = neurons.bias - weight @ self.bias
        return Neurons(weight, bias, value, constant, neurons.roles, neurons.entry)


def _in_the_stream(
    neurons: Neurons,
    coordinates: _Coordinates,
    inputs: Float[Tensor, "entry d_model"],
    readout: Readout,
    disguise: Disguise,
) -> Neurons:
    """The mechanism and all that goes with it, reading and writing vectors of the stream."""
    into = readout.basis.T
    normalised = coordinates.normalised(inputs)
    aside, cancelling = extra_neurons(disguise, neurons.value, normalised, readout.beside())
    stream = lambda part: coordinates.read(part, part.value @ into, part.constant @ into)
    parts = [stream(neurons), stream(cancelling)]
    parts.append(coordinates.read(aside, aside.value, torch.zeros_like(readout.anchor)))
    if (inputs @ readout.taken).abs().max() > _NEGLIGIBLE:
        parts.append(clearing(readout))
    return together(parts)


def clearing(readout: Readout) -> Neurons:
    """Pairs that take out of the stream what it already holds in the readout's directions."""
    rows = readout.taken.T
    zeros = rows.new_zeros(2 * len(rows))
    return make_neurons(torch.cat([rows, -rows]), zeros, torch.cat([-rows, rows]), Role.CLEARING)


def width_for(n_neurons: int) -> int:
    """A width that fits, a multiple of 64.

    Matrix kernels sum the columns that are left over in another order. In float32 the two neurons
    of a cell would then see scores that differ in the last bit, and a narrow cell's answer with it.
    """
    return -(-n_neurons // 64) * 64


def filled(neurons: Neurons, width: int) -> Neurons:
    """With neurons that are never on, up to a width."""
    spare = width - len(neurons)
    zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64)
    d_model = neurons.weight.shape[1]
    unused = make_neurons(zeros(spare, d_model), zeros(spare), zeros(spare, d_model), Role.UNUSED)
    return together([neurons, unused])


def require_plantable(model: HookedACT) -> None:
    """Refuse pre-norm and GELU, of which the constructions are not made."""
    config = model.config
    if config.pre_norm or config.activation is not Activation.RELU:
        raise PlantError("Twins are made of post-norm policies with ReLU, as ACT is by default.")
    assert isinstance(model.decoder[-1].mlp, MLP)


def _origin(model: HookedACT) -> str:
    return model.checkpoint.source if model.checkpoint is not None else "a policy in memory"
