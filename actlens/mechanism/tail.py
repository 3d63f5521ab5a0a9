"""The last decoder MLP and all behind it, as a function of one action vector."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from actlens.config import Activation
from actlens.interventions.mlp_runs import MLPRuns
from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite
from actlens.model.token_major import LayerNorm
from actlens.scene import Scene
from actlens.tails import input_hook

Vectors = Float[Tensor, "*batch d_model"]
Actions = Float[Tensor, "*batch joint"]


@dataclass(frozen=True)
class Tail:
    """From the stream after cross-attention, at one chunk position, to the normalised action.

    Nothing mixes positions any more, and all that the action depends on of the scene is in this one
    vector: whether the policy is a table or a rule behind cross-attention is a question about this
    function. Under post-norm the vector is the normalised one, the action vector; under pre-norm
    the stream itself, which also passes beside the MLP.
    """

    model: HookedACT

    @property
    def site(self) -> MLPSite:
        """Its MLP."""
        return MLPSite(f"decoder.{self.model.config.n_decoder_layers - 1}")

    @property
    def hook(self) -> str:
        """Where its input is."""
        return input_hook(self.model.config)

    def read(self, x: Vectors) -> Vectors:
        """What the MLP reads of it."""
        return _normed(self.model.decoder[-1].ln3, x) if self.model.config.pre_norm else x

    def coefficients(self, x: Vectors) -> Float[Tensor, "*batch neuron"]:
        """The MLP's coefficients."""
        mlp = self.site.mlp(self.model)
        act = F.relu if self.model.config.activation is Activation.RELU else F.gelu
        return act(F.linear(self.read(x), mlp.linear1.weight, mlp.linear1.bias))

    def with_output(self, x: Vectors, output: Vectors) -> Actions:
        """The action if the MLP writes this."""
        block, stream = self.model.decoder[-1], x + output
        if not self.model.config.pre_norm:
            stream = _normed(block.ln3, stream)
        return self.model.action_head(_normed(self.model.ln_final, stream))

    def output(self, coefficients: Float[Tensor, "*batch neuron"]) -> Vectors:
        """What the MLP writes with these coefficients."""
        layer = self.site.layer(self.model)
        return F.linear(coefficients, layer.weight, layer.bias)

    def __call__(self, x: Vectors) -> Actions:
        """The action."""
        return self.with_output(x, self.output(self.coefficients(x)))

    def on_the_way(
        self, start: Vectors, end: Vectors, shares: Float[Tensor, " point"]
    ) -> Float[Tensor, "point *batch d_model"]:
        """Points between vectors, where a post-norm vector can be: on the norm's ellipsoid."""
        at = shares.view(-1, *[1] * start.ndim).to(start)
        between = start + at * (end - start)
        if self.model.config.pre_norm:
            return between
        norm = self.model.decoder[-1].ln2
        plain = (between - norm.bias) / norm.weight
        return _normed(norm, plain)


def _normed(norm: LayerNorm, x: Vectors) -> Vectors:
    """The norm of vectors of any batch shape; the policy's own takes batches of tokens."""
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


@dataclass(frozen=True)
class Vectored:
    """The tail's inputs in some scenes, at some chunk positions."""

    tail: Tail
    x: Float[Tensor, "scene position d_model"]
    actions: Float[Tensor, "scene position joint"]
    """Normalised, the policy's own."""
    positions: tuple[int, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, model: HookedACT, scenes: Sequence[Scene], positions: Sequence[int]) -> Self:
        """Run some scenes.

        Raises:
            SceneError: if there is no scene, or one does not fit the policy.
        """
        tail, at = Tail(model), list(positions)
        runs = MLPRuns.of(model, tail.site, scenes)
        (skip,) = (name for name in runs.rest.ops[0].inputs if name != runs.rest.start)
        x = runs.rest.given[skip][:, at]
        return cls(tail, x, runs.actions[:, at], tuple(at))
