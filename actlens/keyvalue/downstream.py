"""What a neuron does through the rest of the network, where attention lies in between.

Behind an encoder MLP, or a decoder MLP that is not the last, a value has no direction of its own:
what becomes of it depends on the scene and on the token. So it is asked scene by scene, by
products with the Jacobian of all that follows, and whether the answers agree is part of the answer.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import forward_ad

from actlens.interventions.mlp_runs import MLPRuns
from actlens.interventions.rest import Rest
from actlens.keyvalue.directions import DirectionError, columns_of, joint_spread
from actlens.model.act import HookedACT
from actlens.notebook import DrawnAsTable

MIN_CONSISTENCY = 0.8
"""Below this share of samples that agree, a neuron has no direction."""
_BATCH = 8


@dataclass(frozen=True)
class SampledDirection(DrawnAsTable):
    """d actions / d coefficient of one neuron at some entries, and whether they agree.

    An entry is a scene and a token (in a decoder, a chunk position): usually the neuron's triggers.
    """

    neuron: int
    joints: tuple[str, ...]
    spread: Float[Tensor, " joint"]
    """Dataset units of one normalised unit."""
    scenes: Int[Tensor, " sample"]
    positions: Int[Tensor, " sample"]
    groups: Int[Tensor, " sample"]
    """Samples of the same group (an episode, or a scene) are no evidence for one another."""
    coefficients: Float[Tensor, " sample"]
    derivatives: Float[Tensor, "sample chunk joint"]
    """Normalised actions per unit of coefficient, in the model's precision."""
    weights: Float[Tensor, "sample chunk"]
    """Of chunk positions; nothing behind the episode's end."""
    control_consistency: Float[Tensor, " control"]
    """The consistency of values with this one's entries in another order, at the same entries.

    Mostly as high: scenes that trigger one neuron resemble one another, and then the network behind
    them does the same with anything that is written. Consistency means that a direction may be
    spoken of, not that the value has one of its own.
    """

    @property
    def agreement(self) -> Float[Tensor, " sample"]:
        """Cosine of every sample with the mean over the samples of all other groups.

        Over chunk positions and joints, in normalised units. A mean that held the sample itself, or
        another frame of its episode, would agree with it for that reason alone: with two random
        samples always. NaN where a derivative, or that mean, is zero.
        """
        return _agreement(self._rows, self.groups)

    @property
    def consistency(self) -> float:
        """Share of the samples whose cosine with the mean of the other groups is positive."""
        return _consistency(self._rows, self.groups)

    def p_value(self, *, draws: int = 9999, seed: int = 0) -> float:
        """One-sided p of so much consistency if each group pointed either way by chance.

        The signs of whole groups are flipped. With n groups it cannot fall below about 2 / 2^n,
        so few groups prove nothing, however consistent they are.
        """
        _, member = self.groups.unique(return_inverse=True)
        generator = torch.Generator().manual_seed(seed)
        flips = torch.randint(0, 2, (draws, int(member.max()) + 1), generator=generator) * 2.0 - 1
        signs = flips.to(self._rows)[:, member.to(self._rows.device)]
        inner = self._rows @ self._rows.T
        inner = inner * (self.groups[:, None] != self.groups)
        agreeing = (signs * (signs @ inner) > 0).double().mean(1)
        return float(((agreeing >= self.consistency - 1e-12).sum() + 1) / (draws + 1))

    @property
    def direction(self) -> Float[Tensor, "chunk joint"]:
        """The mean derivative, normalised units per unit of coefficient, float64.

        Raises:
            DirectionError: if fewer than 80 % of the samples agree with the others.
        """
        if not self.consistency >= MIN_CONSISTENCY:
            raise DirectionError(
                f"Neuron {self.neuron} has no direction: {self.consistency:.0%} of its "
                f"{len(self.scenes)} samples agree with the others, {MIN_CONSISTENCY:.0%} must. "
                "What it does depends on the scene; look at `derivatives` one by one."
            )
        return self._mean(self.derivatives.double())

    @property
    def by_joint(self) -> Float[Tensor, " joint"]:
        """The direction averaged over chunk positions, dataset units per unit of coefficient.

        Raises:
            DirectionError: if there is no direction.
        """
        counted = self.weights.double().sum(0)
        return (self.direction.nan_to_num() * counted[:, None]).sum(0) / counted.sum() * self.spread

    @property
    def profile(self) -> Float[Tensor, " chunk"]:
        """Mean size of the derivative by chunk position, whatever its direction, float64; NaN at
        positions that no sample counts."""
        return self._mean(self.derivatives.double().norm(dim=-1, keepdim=True))[:, 0]

    @property
    def effect(self) -> Float[Tensor, "sample chunk joint"]:
        """What ablating the neuron at the sample's own token would do, to first order."""
        return -self.coefficients[:, None, None] * self.derivatives

    def frame(self):
        """One row per sample: entry, coefficient, agreement, mean derivative by joint in units."""
        import pandas as pd

        weights = (self.weights / self.weights.sum(1, keepdim=True)).to(self.derivatives)
        mean = torch.einsum("sk,skj->sj", weights, self.derivatives) * self.spread
        columns = {
            "scene": self.scenes.cpu().numpy(),
            "position": self.positions.cpu().numpy(),
            "group": self.groups.cpu().numpy(),
            "coefficient": self.coefficients.cpu().numpy(),
            "agreement": self.agreement.cpu().numpy(),
        }
        return pd.DataFrame(columns | columns_of(self.joints, mean)).rename_axis("sample")

    @property
    def _rows(self) -> Float[Tensor, "sample chunk*joint"]:
        return _rows(self.derivatives, self.weights)

    def _mean(self, values: Float[Tensor, "sample chunk one"]) -> Float[Tensor, "chunk one"]:
        weights = self.weights.double()
        total = weights.sum(0)
        mean = torch.einsum("sk,skj->kj", weights, values)
        return mean / torch.where(total > 0, total, torch.nan)[:, None]


def sampled_direction(
    model: HookedACT,
    runs: MLPRuns,
    neuron: int,
    scenes: Sequence[int],
    positions: Sequence[int],
    *,
    weights: Float[Tensor, "scene chunk"] | None = None,
    groups: Sequence[int] | None = None,
    n_controls: int = 1,
    seed: int = 0,
) -> SampledDirection:
    """The derivatives of the actions by one neuron's coefficient at some of its entries.

    By forward differentiation of the rest of the network, several entries at once; an entry costs
    some five forwards of the rest, and as much again for each control.

    Args:
        runs: of the scenes, at the neuron's MLP; any block.
        scenes: of the entries, as indices into the runs' scenes.
        positions: of the entries: tokens, or chunk positions in a decoder.
        weights: of every scene's chunk positions (`scene_weights`); all alike if not given.
        groups: of every scene of the runs, its episode; if not given each is a group of its own.
        n_controls: values with shuffled entries whose consistency is measured beside.
        seed: of the shuffles.

    Raises:
        DirectionError: if there is no such neuron or entry, or all entries are of one group.
    """
    n_scenes, n_positions, n_neurons = runs.keys.shape
    _check(neuron, n_neurons, scenes, n_scenes, positions, n_positions)
    device = runs.keys.device
    scene, position = (torch.tensor(list(x), device=device) for x in (scenes, positions))
    of_scene = torch.tensor(list(groups) if groups is not None else range(n_scenes), device=device)
    if len(of_scene[scene].unique()) < 2:
        raise DirectionError(
            f"All {len(scene)} samples of neuron {neuron} are of one episode or scene: whether a "
            "direction is consistent needs two at least."
        )
    if weights is None:
        weights = torch.ones(n_scenes, model.config.chunk)
    weights, group = weights.to(device)[scene], of_scene[scene]
    value = runs.site.layer(model).weight.detach()[:, neuron]
    generator = torch.Generator().manual_seed(seed)
    controls = []
    for _ in range(n_controls):
        shuffled = value[torch.randperm(len(value), generator=generator).to(device)]
        found = _derivatives(runs, shuffled, scene, position)
        controls.append(_consistency(_rows(found, weights), group))
    return SampledDirection(
        neuron,
        model.config.joints,
        joint_spread(model),
        scene,
        position,
        group,
        runs.keys[scene, position, neuron],
        _derivatives(runs, value, scene, position),
        weights,
        torch.tensor(controls, dtype=torch.float64),
    )


def _derivatives(
    runs: MLPRuns,
    value: Float[Tensor, " d_model"],
    scene: Int[Tensor, " sample"],
    position: Int[Tensor, " sample"],
) -> Float[Tensor, "sample chunk joint"]:
    """d actions / d how much of a value is written at each of some entries."""
    parts = []
    for some in torch.arange(len(scene), device=scene.device).split(_BATCH):
        output = runs.output[scene[some]]
        tangent = torch.zeros_like(output)
        tangent[torch.arange(len(some)), position[some]] = value
        parts.append(pushed(runs.rest.of(scene[some]), output, tangent))
    return torch.cat(parts)


def _rows(
    derivatives: Float[Tensor, "sample chunk joint"], weights: Float[Tensor, "sample chunk"]
) -> Float[Tensor, "sample chunk*joint"]:
    """By sample, so that inner products are weighted ones."""
    return (derivatives.double() * weights.double().sqrt()[..., None]).flatten(1)


def _agreement(
    rows: Float[Tensor, "sample chunk*joint"], groups: Int[Tensor, " sample"]
) -> Float[Tensor, " sample"]:
    others = (groups[:, None] != groups).to(rows) @ rows
    return (rows * others).sum(1) / (rows.norm(dim=1) * others.norm(dim=1))


def _consistency(
    rows: Float[Tensor, "sample chunk*joint"], groups: Int[Tensor, " sample"]
) -> float:
    return float((_agreement(rows, groups) > 0).double().mean())


def _check(
    neuron: int,
    n_neurons: int,
    scenes: Sequence[int],
    n_scenes: int,
    positions: Sequence[int],
    n_positions: int,
) -> None:
    if not 0 <= neuron < n_neurons:
        raise DirectionError(f"There is no neuron {neuron}: they go from 0 to {n_neurons - 1}.")
    if len(scenes) != len(positions) or not len(scenes):
        raise DirectionError(
            f"Neuron {neuron} is asked at {len(scenes)} scenes and {len(positions)} positions: "
            "give one position for each scene, two samples at least."
        )
    for what, given, n in (("scene", scenes, n_scenes), ("position", positions, n_positions)):
        if outside := [i for i in given if not 0 <= i < n]:
            raise DirectionError(f"There is no {what} {outside[0]}: they go from 0 to {n - 1}.")


@torch.no_grad()
def pushed(
    rest: Rest,
    output: Float[Tensor, "unit position d_model"],
    tangent: Float[Tensor, "unit position d_model"],
) -> Float[Tensor, "unit chunk joint"]:
    """The Jacobian of the normalised actions times a change of an MLP's output."""
    with warnings.catch_warnings():
        # Torch scripts its own decompositions when forward differentiation is first used.
        warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated")
        with forward_ad.dual_level():
            actions = rest(forward_ad.make_dual(output.clone(), tangent))
            moved = forward_ad.unpack_dual(actions).tangent
            assert moved is not None
            return moved
