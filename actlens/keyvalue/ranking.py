"""Which neurons of any MLP move the actions: all at once, by reverse differentiation."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.interventions.mlp_runs import MLPRuns
from actlens.keyvalue.directions import DirectionError, columns_of, joint_spread
from actlens.metrics import Positions, position_weights
from actlens.model.act import HookedACT
from actlens.notebook import DrawnAsTable

_BATCH = 8


@dataclass(frozen=True)
class NeuronRanking(DrawnAsTable):
    """How much each neuron of an MLP moves the mean of what is carried out, to first order.

    For all neurons and entries at once, by one backward a joint. A first order, and a mean over
    chunk positions: good for choosing neurons, to be checked by ablation.
    """

    joints: tuple[str, ...]
    spread: Float[Tensor, " joint"]
    """Dataset units of one normalised unit."""
    effect: Float[Tensor, "scene neuron joint"]
    """Of ablating the neuron at all tokens (positions) of a scene together; normalised, float64."""
    gross: Float[Tensor, "scene neuron joint"]
    """The sum of the absolute effects of ablating it at one token at a time: above |effect| where
    its tokens work against one another."""

    @property
    def size(self) -> Float[Tensor, " neuron"]:
        """Root mean square of the effect over scenes and joints, normalised units."""
        return self.effect.square().mean((0, 2)).sqrt()

    def strongest(self, n: int = 10) -> Int[Tensor, " n"]:
        """The neurons with the largest effects, largest first."""
        return self.size.topk(min(n, self.size.numel())).indices

    def frame(self):
        """One row per neuron: size, and the mean effect by joint in dataset units."""
        import pandas as pd

        mean = columns_of(self.joints, self.effect.mean(0) * self.spread)
        columns = {"size": self.size.cpu().numpy()} | mean
        return pd.DataFrame(columns).rename_axis("neuron")


def rank_neurons(
    model: HookedACT, runs: MLPRuns, weights: Float[Tensor, "scene chunk"] | None = None
) -> NeuronRanking:
    """Every neuron's first-order effect on the mean action; any block.

    Args:
        weights: of every scene's chunk positions (`scene_weights`); of those that are carried out,
            alike in every scene, if not given.

    Raises:
        DirectionError: if a scene counts no position at all.
    """
    if weights is None:
        weights = position_weights(model.config, Positions.EXECUTED).repeat(len(runs.keys), 1)
    total = weights.sum(1, keepdim=True)
    if (empty := (total <= 0)[:, 0]).any():
        raise DirectionError(
            f"Scene {int(empty.nonzero()[0, 0])} counts no chunk position, so it has no mean "
            "action: leave it out."
        )
    values = runs.site.layer(model).weight.detach().T
    effect, gross = [], []
    for scene, gradient in enumerate(_mean_action_gradients(runs, weights / total)):
        by_entry = [runs.keys[scene] * (of_joint @ values.T) for of_joint in gradient]
        effect.append(torch.stack([-one.sum(0, dtype=torch.float64) for one in by_entry], 1))
        gross.append(torch.stack([one.abs().sum(0, dtype=torch.float64) for one in by_entry], 1))
    return NeuronRanking(
        model.config.joints, joint_spread(model), torch.stack(effect), torch.stack(gross)
    )


@torch.no_grad()
def neuron_ablation(
    model: HookedACT, runs: MLPRuns, neuron: int, *, replacement: float = 0.0
) -> Float[Tensor, "scene chunk joint"]:
    """How the normalised actions move if one neuron holds a constant everywhere; any block.

    Exact: the rest of the network is run with it.

    Raises:
        DirectionError: if there is no such neuron.
    """
    if not 0 <= neuron < runs.keys.shape[-1]:
        raise DirectionError(
            f"There is no neuron {neuron}: they go from 0 to {runs.keys.shape[-1] - 1}."
        )
    value = runs.site.layer(model).weight[:, neuron]
    moved = []
    for some in torch.arange(len(runs.keys), device=runs.keys.device).split(_BATCH):
        change = (replacement - runs.keys[some, :, neuron])[..., None] * value
        moved.append(runs.rest.of(some)(runs.output[some] + change) - runs.actions[some])
    return torch.cat(moved)


def _mean_action_gradients(
    runs: MLPRuns, weights: Float[Tensor, "scene chunk"]
) -> Iterator[Float[Tensor, "joint position d_model"]]:
    """d (weighted sum of a scene's actions) / d MLP output by joint, scene by scene.

    Scenes do not see one another, so one backward a joint serves all of a batch.
    """
    every = torch.arange(len(runs.output), device=runs.output.device)
    for some in every.split(_BATCH):
        output = runs.output[some].detach().clone().requires_grad_()
        with torch.enable_grad():
            actions = runs.rest.of(some)(output)
            weighted = actions * weights[some.cpu()].to(actions)[..., None]
            sums = weighted.sum((0, 1)).unbind()
        found = [torch.autograd.grad(one, output, retain_graph=True)[0] for one in sums]
        yield from torch.stack(found, 1)
