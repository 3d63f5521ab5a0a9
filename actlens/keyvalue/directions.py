"""Where the values of the last decoder MLP point in joint space (Geva et al. 2022, sec. 3.1).

Geva et al. read a value by projecting it on the vocabulary. A policy has no vocabulary: behind its
last decoder MLP come one or two LayerNorms and the action head, so a value is read in joints.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from actlens.config import ACTION_KEY
from actlens.errors import ActlensError
from actlens.interventions.mlp_runs import MLPRuns
from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite
from actlens.model.token_major import LayerNorm
from actlens.model.units import spread_of
from actlens.notebook import DrawnAsTable


class DirectionError(ActlensError, ValueError):
    """A neuron has no direction in joint space: none in closed form, or none that is consistent."""


@dataclass(frozen=True)
class ReadOut:
    """What turns the stream behind the last decoder MLP into actions, in float64.

    Under post-norm two LayerNorms in a row (the block's last and the final one), under pre-norm the
    final one alone; then the action head. With the model's present weights.
    """

    norms: tuple[LayerNorm, ...]
    head: nn.Linear

    @classmethod
    def of(cls, model: HookedACT) -> Self:
        """A policy's."""
        if model.config.pre_norm:
            return cls((model.ln_final,), model.action_head)
        return cls((model.decoder[-1].ln3, model.ln_final), model.action_head)

    @torch.no_grad()
    def linear(
        self, vectors: Float[Tensor, "*batch d_model"], start: int = 0
    ) -> Float[Tensor, "*batch joint"]:
        """The vectors as the head reads them, with the scales of the norms left out.

        Args:
            start: the first norm that they pass.
        """
        vectors = vectors.double()
        for norm in self.norms[start:]:
            vectors = centred(vectors) * norm.weight.double()
        return vectors @ self.head.weight.double().T

    @torch.no_grad()
    def passed(self, stream: Float[Tensor, "*batch d_model"]) -> "Passage":
        """A stream's way through the norms."""
        x, normalized, scales = stream.double(), [], []
        for norm in self.norms:
            x = centred(x)
            scale = (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()
            normalized.append(x / scale)
            scales.append(scale[..., 0])
            x = normalized[-1] * norm.weight.double() + norm.bias.double()
        return Passage(torch.stack(normalized), torch.stack(scales))

    @torch.no_grad()
    def constant(self, scales: Float[Tensor, "norm ..."]) -> Float[Tensor, "... joint"]:
        """What the biases of norms and head give where the norms have these scales."""
        total = self.head.bias.double().expand(*scales.shape[1:], -1)
        for i, norm in enumerate(self.norms):
            left = scales[i + 1 :].prod(0)[..., None]
            total = total + self.linear(norm.bias, start=i + 1) / left
        return total


@dataclass(frozen=True)
class Passage:
    """A stream inside the norms that it passes, float64."""

    normalized: Float[Tensor, "norm ... d_model"]
    """Centred and divided by the scale, before weight and bias."""
    scales: Float[Tensor, "norm ..."]
    """sqrt(variance + eps)."""


@dataclass(frozen=True)
class Directions(DrawnAsTable):
    """G_n = W_h diag(gamma_f) C (gamma_3 * C v_n), C subtracting the mean over channels.

    For every neuron of the last decoder MLP, whatever the scene and the chunk position. Signs and
    ratios between joints have a meaning; sizes have none before they are divided by the scales of
    the norms (`Contributions`) and multiplied by a coefficient.
    """

    site: MLPSite
    joints: tuple[str, ...]
    normalized: Float[Tensor, "neuron joint"]
    """In normalised action units, float64."""
    spread: Float[Tensor, " joint"]
    """Dataset units of one normalised unit."""

    @classmethod
    @torch.no_grad()
    def of(cls, model: HookedACT) -> Self:
        """The directions of a policy's last decoder MLP."""
        site = last_site(model)
        normalized = ReadOut.of(model).linear(site.layer(model).weight.T)
        return cls(site, model.config.joints, normalized, joint_spread(model))

    @property
    def in_units(self) -> Float[Tensor, "neuron joint"]:
        """In dataset units: degrees, percent of the gripper, whatever the dataset records."""
        return self.normalized * self.spread

    def frame(self):
        """One row per neuron, one column per joint, in dataset units."""
        import pandas as pd

        return pd.DataFrame(columns_of(self.joints, self.in_units)).rename_axis("neuron")


def centred(x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
    """Without its mean over channels, which no LayerNorm lets through."""
    return x - x.mean(-1, keepdim=True)


def columns_of(
    joints: tuple[str, ...], values: Float[Tensor, "row joint"]
) -> dict[str, Float[np.ndarray, " row"]]:
    """A table's columns by joint."""
    return dict(zip(joints, values.T.cpu().numpy(), strict=True))


def last_site(model: HookedACT) -> MLPSite:
    """The MLP behind which nothing mixes chunk positions any more."""
    return MLPSite.of(model, f"decoder.{model.config.n_decoder_layers - 1}")


def joint_spread(model: HookedACT) -> Float[Tensor, " joint"]:
    """Dataset units of one normalised unit of the action, float64."""
    like = torch.zeros(model.config.action_dim, dtype=torch.float64)
    return spread_of(model, ACTION_KEY, like.to(model.action_head.weight.device))


def skipped(model: HookedACT, runs: MLPRuns) -> Float[Tensor, "scene position d_model"]:
    """The stream that the last decoder MLP's output is added to, float64.

    Raises:
        DirectionError: if the runs are kept at another MLP.
    """
    if runs.site != last_site(model):
        raise DirectionError(
            f"Behind {runs.site.block} attention mixes positions, so its values have no closed "
            f"form in joints; {last_site(model).block}'s have. For others use `sampled_effects`."
        )
    (skip,) = (name for name in runs.rest.ops[0].inputs if name != runs.rest.start)
    return runs.rest.given[skip].double()
