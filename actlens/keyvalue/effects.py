"""What changing one neuron of the last decoder MLP does to the action: exactly, and to first order.

The exact effect of every neuron by itself costs a few matrix products (`through_norms`). The first
order says why it is what it is, and keeps one term that reading off contributions forgets: a
LayerNorm fixes the length of the stream, so it takes back part of whatever is added to it.
"""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.interventions.closed_form import through_norms
from actlens.interventions.mlp_runs import MLPRuns
from actlens.keyvalue.directions import ReadOut, joint_spread, skipped
from actlens.model.act import HookedACT

Effect = Float[Tensor, "neuron position joint"]
"""How the normalised actions of one scene move when one neuron at a time is changed, float64."""


@dataclass(frozen=True)
class Effects:
    """The effects of changing each neuron's coefficient by itself, at every position of a scene.

    To first order, for a change c of the coefficient of neuron n with value v,

        e = c J v,    J v = (G - sum_i r_i (f_i . v)) / s,

    with G the scale-free direction, s the product of the norms' scales, and one correction for
    every norm, which takes back the component along the stream as that norm receives it. Kept in
    these factors, since scenes x positions x neurons x joints are many numbers.
    """

    joints: tuple[str, ...]
    spread: Float[Tensor, " joint"]
    """Dataset units of one normalised unit."""
    change: Float[Tensor, "scene position neuron"]
    """What replaces the coefficient minus the coefficient, in the model's precision."""
    values: Float[Tensor, "neuron d_model"]
    direct: Float[Tensor, "neuron joint"]
    """G: the scale-free directions."""
    stream: Float[Tensor, "scene position d_model"]
    """Behind the MLP, before the norms."""
    scale: Float[Tensor, "scene position"]
    reading: Float[Tensor, "norm scene position d_model"]
    """f: what of a value a norm notices."""
    answer: Float[Tensor, "norm scene position joint"]
    """r: what it takes back for that."""
    read_out: ReadOut

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: HookedACT,
        runs: MLPRuns,
        replacement: Float[Tensor, "*#positions neuron"] | None = None,
    ) -> Self:
        """The effects of replacing each coefficient by something, in some scenes.

        Args:
            replacement: of each neuron, perhaps by position (`mean_coefficients`); zero, the
                ablation, if not given. Under ReLU many neurons are always on: against their mean
                they may matter little where against zero they matter much.

        Raises:
            DirectionError: if the runs are not kept at the last decoder MLP.
        """
        read_out = ReadOut.of(model)
        stream = skipped(model, runs) + runs.output.double()
        passage = read_out.passed(stream)
        reading, answer = _corrections(read_out, passage.normalized, passage.scales)
        values = runs.site.layer(model).weight.T.double()
        change = -runs.keys if replacement is None else replacement.to(runs.keys) - runs.keys
        return cls(
            model.config.joints,
            joint_spread(model),
            change,
            values,
            read_out.linear(values),
            stream,
            passage.scales.prod(0),
            reading,
            answer,
            read_out,
        )

    @property
    def n_scenes(self) -> int:
        """How many scenes there are."""
        return len(self.change)

    @torch.no_grad()
    def exact(self, scene: int) -> Effect:
        """Actions with each neuron changed minus the actions: the intervention's own result."""
        none = self.values.new_zeros(1, self.stream.shape[1])
        through = lambda values, change: through_norms(
            self.read_out.norms, self.read_out.head, self.stream[scene], values, change
        )
        own = through(self.values[:1], none)
        return through(self.values, self.change[scene].T.double()) - own

    @torch.no_grad()
    def linear(self, scene: int) -> Effect:
        """To first order, through the whole Jacobian of the norms."""
        noticed = self.values @ self.reading[:, scene].mT  # norm neuron position
        taken_back = torch.einsum("inp,ipj->npj", noticed, self.answer[:, scene])
        moved = self.direct[:, None] - taken_back
        return moved * (self.change[scene].double() / self.scale[scene][:, None]).T[..., None]

    @torch.no_grad()
    def frozen(self, scene: int) -> Effect:
        """As if the norms kept their scales: for the ablation, minus the contributions.

        Beside the others for what it misses; it is no prediction of an effect.
        """
        return (
            self.direct[:, None]
            * (self.change[scene].double() / self.scale[scene][:, None]).T[..., None]
        )

    @torch.no_grad()
    def jacobian(self, scene: int, position: int) -> Float[Tensor, "joint d_model"]:
        """d action / d stream at one chunk position, normalised units."""
        direct = self.read_out.linear(torch.eye(self.values.shape[1]).to(self.values)).T
        reading, answer = self.reading[:, scene, position], self.answer[:, scene, position]
        return (direct - answer.T @ reading) / self.scale[scene, position]

    def size(
        self, weights: Float[Tensor, "scene position"] | None = None
    ) -> Float[Tensor, " neuron"]:
        """Root mean square of the exact effect over scenes, positions and joints, by neuron.

        Args:
            weights: of scenes and positions; all alike if not given.
        """
        weights = torch.ones_like(self.scale) if weights is None else weights.to(self.scale)
        squares = torch.zeros_like(self.values[:, 0])
        for scene, weight in enumerate(weights):
            squares += self.exact(scene).square().mean(-1) @ weight
        return (squares / weights.sum()).sqrt()


def _corrections(
    read_out: ReadOut,
    normalized: Float[Tensor, "norm scene position d_model"],
    scales: Float[Tensor, "norm scene position"],
) -> tuple[
    Float[Tensor, "norm scene position d_model"], Float[Tensor, "norm scene position joint"]
]:
    """What every norm notices of a change of the stream, and what it takes back for that.

    The Jacobian of a LayerNorm is diag(gamma) / s (C - x x^T / d), x the normalised stream.
    """
    reading, answer = [], []
    for i, norm in enumerate(read_out.norms):
        row = normalized[i] / normalized.shape[-1]
        for before in reversed(range(i)):
            x, weight = normalized[before], read_out.norms[before].weight.double()
            row = row * weight
            row = row - row.mean(-1, keepdim=True) - x * (row * x).mean(-1, keepdim=True)
        reading.append(row)
        answer.append(read_out.linear(normalized[i] * norm.weight.double(), start=i + 1))
    return torch.stack(reading), torch.stack(answer)


def mean_coefficients(
    runs: MLPRuns, weights: Float[Tensor, "scene position"] | None = None
) -> Float[Tensor, " neuron"]:
    """The mean coefficient of every neuron, float64.

    Args:
        weights: of scenes and positions; all alike if not given.
    """
    if weights is None:
        weights = torch.ones(runs.keys.shape[:2])
    weights = weights.to(runs.keys.device, torch.float64)
    return sum_over(runs.keys, weights) / weights.sum()


def sum_over(
    keys: Float[Tensor, "scene position neuron"], weights: Float[Tensor, "scene position"]
) -> Float[Tensor, " neuron"]:
    """A weighted sum over scenes and positions in float64, a scene at a time."""
    total = torch.zeros(keys.shape[-1], dtype=torch.float64, device=keys.device)
    for one, weight in zip(keys, weights, strict=True):
        total += weight @ one.double()
    return total
