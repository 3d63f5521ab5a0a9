"""Which neurons add up to an action: shares of a sum, not consequences of a change."""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.interventions.mlp_runs import MLPRuns
from actlens.keyvalue.directions import Directions, ReadOut, columns_of, skipped
from actlens.model.act import HookedACT


@dataclass(frozen=True)
class Contributions:
    """The terms of the sum that an action is, in normalised units and float64.

    a = sum_n m_n G_n / s + R(x) / s + R(b) / s + constant, with m the coefficients, G the
    scale-free directions, x the stream beside the MLP, b its output bias, R the read-out without
    scales and s the product of the norms' scales at that very scene and chunk position. The sum is
    exact. It does not tell what happens without a neuron: then the norms' scales change too, and
    they take back much of it (`Effects`).
    """

    directions: Directions
    coefficients: Float[Tensor, "scene position neuron"]
    """In the model's precision."""
    scale: Float[Tensor, "scene position"]
    residual: Float[Tensor, "scene position joint"]
    bias: Float[Tensor, "scene position joint"]
    constant: Float[Tensor, "scene position joint"]
    actions: Float[Tensor, "scene position joint"]
    """The policy's own, in its precision."""

    @classmethod
    @torch.no_grad()
    def of(cls, model: HookedACT, runs: MLPRuns) -> Self:
        """The terms of some scenes' actions.

        Raises:
            DirectionError: if the runs are not kept at the last decoder MLP.
        """
        directions, read_out = Directions.of(model), ReadOut.of(model)
        layer, skip = runs.site.layer(model), skipped(model, runs)
        written = _written(runs.keys, layer.weight, layer.bias)
        scales = read_out.passed(skip + written).scales
        scale = scales.prod(0)
        return cls(
            directions,
            runs.keys,
            scale,
            read_out.linear(skip) / scale[..., None],
            read_out.linear(layer.bias) / scale[..., None],
            read_out.constant(scales),
            runs.actions,
        )

    def of_scene(self, scene: int) -> Float[Tensor, "position neuron joint"]:
        """Every neuron's contribution in one scene."""
        weight = self.coefficients[scene].double() / self.scale[scene][:, None]
        return weight[..., None] * self.directions.normalized

    @property
    def layer(self) -> Float[Tensor, "scene position joint"]:
        """What the neurons contribute together; the output bias is not theirs."""
        sums = [one.double() @ self.directions.normalized for one in self.coefficients]
        return torch.stack(sums) / self.scale[..., None]

    @property
    def total(self) -> Float[Tensor, "scene position joint"]:
        """All terms."""
        return self.layer + self.residual + self.bias + self.constant

    @property
    def incompleteness(self) -> float:
        """The largest difference of the sum from the policy's actions: rounding, in its precision.

        Normalised units; below 1e-6 in float32 for actions of a few units.
        """
        return float((self.total - self.actions.double()).abs().max())

    def by_neuron(
        self, weights: Float[Tensor, "scene position"] | None = None
    ) -> Float[Tensor, "neuron joint"]:
        """Mean absolute contribution over scenes and chunk positions.

        Args:
            weights: of scenes and positions; all alike if not given.
        """
        weights = torch.ones_like(self.scale) if weights is None else weights.to(self.scale)
        mean = torch.zeros_like(self.directions.normalized[:, 0])
        for one, share in zip(self.coefficients, weights / self.scale, strict=True):
            mean += share @ one.double().abs()
        return (mean / weights.sum())[:, None] * self.directions.normalized.abs()

    def strongest(self, scene: int, position: int, n: int = 10):
        """The neurons that contribute most to one action, and what else adds up to it; a table.

        One row per term, in dataset units by joint: the n largest neurons by the norm of their
        contribution in normalised units (`size`), the other neurons together, then the stream
        beside the MLP, biases and constants. Up to the shift of the units the rows sum to the
        action.
        """
        import pandas as pd

        at = (scene, position)
        every = self.coefficients[at].double()[:, None] * self.directions.normalized
        every = every / self.scale[at]
        size = every.norm(dim=-1)
        top = size.topk(min(n, len(size))).indices
        terms = {f"neuron {int(i)}": every[i] for i in top}
        terms["other neurons"] = every.sum(0) - every[top].sum(0)
        terms["stream beside the MLP"] = self.residual[at]
        terms["output bias"] = self.bias[at]
        terms["biases of norms and head"] = self.constant[at]
        rows = torch.stack(list(terms.values()))
        columns = columns_of(self.directions.joints, rows * self.directions.spread)
        columns = {"size": rows.norm(dim=-1).cpu().numpy()} | columns
        return pd.DataFrame(columns, index=list(terms)).rename_axis("term")


def _written(
    keys: Float[Tensor, "scene position neuron"],
    weight: Float[Tensor, "d_model neuron"],
    bias: Float[Tensor, " d_model"],
) -> Float[Tensor, "scene position d_model"]:
    """What the MLP writes, in float64, a scene at a time."""
    values = weight.double().T
    return torch.stack([one.double() @ values for one in keys]) + bias.double()
