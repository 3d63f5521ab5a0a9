"""The last decoder MLP, the norms and the head behind it: several of them as one batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from actlens.config import ACTConfig, Activation
from actlens.model.act import HookedACT

_EPS = 1e-5
"""Of torch's LayerNorm, which every ACT has."""
_BLOCK = 2**22
"""Numbers that the coefficients of one evaluation may hold."""


class Part(Enum):
    """What of the decoder's end is trained."""

    MLP = ("linear1", "linear2")
    """The MLP alone."""
    END = ("linear1", "linear2", "ln3", "ln_final", "action_head")
    """The MLP, the norms and the head."""


@dataclass(frozen=True)
class Shape:
    """Of one decoder's end."""

    d_model: int
    d_mlp: int
    n_joints: int
    pre_norm: bool = False
    activation: Activation = Activation.RELU

    @classmethod
    def of(cls, config: ACTConfig) -> Self:
        """A policy's."""
        return cls(
            config.d_model, config.d_mlp, config.action_dim, config.pre_norm, config.activation
        )


def input_hook(config: ACTConfig) -> str:
    """Where all that the decoder's end depends on can be read.

    Under post-norm the action vector; under pre-norm the stream, which passes beside the MLP too.
    """
    last = f"decoder.{config.n_decoder_layers - 1}"
    end = "resid_mid_cross" if config.pre_norm else "normalized_resid_mid_cross"
    return f"{last}.hook_{end}"


@dataclass(frozen=True)
class Tails:
    """Several ends of one shape; every weight has a leading axis `run`.

    Everything that concerns one run is computed as if it were alone: the gradient of a sum of
    losses, and every optimizer that works number by number, keep runs apart.
    """

    shape: Shape
    weights: dict[str, Tensor]
    """By the names of torch's layers, each as torch has it behind the axis `run`: `linear1.weight`
    is `run neuron d_model`, `ln3.bias` is `run d_model`."""

    @classmethod
    def of(cls, model: HookedACT, n: int) -> Self:
        """Copies of a policy's own, of its dtype and on its device."""
        state = model.state_dict()
        weights = {
            name: state[full].detach().expand(n, *state[full].shape).clone()
            for name, full in _names(model.config)
        }
        return cls(Shape.of(model.config), weights)

    @classmethod
    def drawn(cls, shape: Shape, n: int) -> Self:
        """As torch draws new layers, from the present random state; run by run."""
        drawn = []
        for _ in range(n):
            layers = {
                "linear1": nn.Linear(shape.d_model, shape.d_mlp),
                "linear2": nn.Linear(shape.d_mlp, shape.d_model),
                "ln3": nn.LayerNorm(shape.d_model),
                "ln_final": nn.LayerNorm(shape.d_model),
                "action_head": nn.Linear(shape.d_model, shape.n_joints),
            }
            drawn.append(
                {
                    f"{layer}.{name}": value.detach()
                    for layer, module in layers.items()
                    for name, value in module.named_parameters()
                }
            )
        return cls(shape, {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]})

    @property
    def n(self) -> int:
        """How many there are."""
        return len(self.weights["linear1.weight"])

    def to(self, like: Tensor) -> "Tails":
        """On the device and of the dtype of another tensor."""
        return Tails(self.shape, {name: value.to(like) for name, value in self.weights.items()})

    def of_part(self, part: Part) -> list[Tensor]:
        """The weights that belong to a part."""
        return [v for name, v in self.weights.items() if name.partition(".")[0] in part.value]

    def __call__(
        self, x: Float[Tensor, "run entry d_model"], *, bf16: bool = False
    ) -> Float[Tensor, "run entry joint"]:
        """Normalised actions.

        Args:
            bf16: multiply the MLP's matrices in bfloat16, as ACT is trained here.
        """
        read = self._norm("ln3", x) if self.shape.pre_norm else x
        act = F.relu if self.shape.activation is Activation.RELU else F.gelu
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            out = self._linear("linear2", act(self._linear("linear1", read)))
        stream = x + out.to(x.dtype)
        if not self.shape.pre_norm:
            stream = self._norm("ln3", stream)
        return self._linear("action_head", self._norm("ln_final", stream))

    @torch.no_grad()
    def answers(
        self, x: Float[Tensor, "entry d_model"], *, bf16: bool = False
    ) -> Float[Tensor, "run entry joint"]:
        """Every run's normalised actions for the same vectors, some at a time."""
        step = max(1, _BLOCK // (self.n * self.shape.d_mlp))
        parts = [self(part.expand(self.n, -1, -1), bf16=bf16) for part in x.split(step)]
        return torch.cat(parts, 1)

    def changes(self, model: HookedACT, run: int) -> dict[str, Tensor]:
        """One run's weights by the model's own names, for a copy of the policy."""
        return {full: self.weights[name][run].detach() for name, full in _names(model.config)}

    def _linear(self, layer: str, x: Tensor) -> Tensor:
        weight, bias = self.weights[f"{layer}.weight"], self.weights[f"{layer}.bias"]
        if self.n == 1:  # to the bit what torch's own layers do, and a little faster
            return F.linear(x[0], weight[0], bias[0])[None]
        return torch.baddbmm(bias[:, None], x, weight.mT)

    def _norm(self, layer: str, x: Tensor) -> Tensor:
        weight, bias = self.weights[f"{layer}.weight"], self.weights[f"{layer}.bias"]
        if self.n == 1:
            return F.layer_norm(x, x.shape[-1:], weight[0], bias[0], _EPS)
        plain = F.layer_norm(x, x.shape[-1:], eps=_EPS)
        return plain * weight[:, None] + bias[:, None]


def _names(config: ACTConfig) -> Iterator[tuple[str, str]]:
    """Our names and the model's."""
    last = f"decoder.{config.n_decoder_layers - 1}"
    within = {"linear1": f"{last}.mlp.", "linear2": f"{last}.mlp.", "ln3": f"{last}."}
    for layer in Part.END.value:
        for name in ("weight", "bias"):
            yield f"{layer}.{name}", f"{within.get(layer, '')}{layer}.{name}"
