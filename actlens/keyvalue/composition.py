"""How memories compose, and the stream beside them (Geva et al. 2020, section 5)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.config import ACTION_KEY
from actlens.interventions.mlp_runs import MLPRuns
from actlens.keyvalue.attribution import Contributions
from actlens.keyvalue.layers import LayerNumber
from actlens.keyvalue.profiles import scene_weights
from actlens.model.act import HookedACT
from actlens.scene import Scene
from actlens.statistics import pooled_ratio

SAME_ANGLE = 20.0
"""Degrees within which a memory points where its layer does."""
SAME_SIZE = 0.5
"""Part of the layer's length that a memory must have to give its action by itself."""
CARRIED = (0.5, 0.8, 0.9)


def composition_numbers(
    contributions: Contributions,
    weights: Float[Tensor, "scene position"],
    episodes: Int[np.ndarray, " scene"],
    *,
    seed: int = 0,
) -> list[LayerNumber]:
    """Whether one memory gives what its layer adds, and how many carry it (section 5).

    The null deals the coefficients of an entry out to other neurons.

    Args:
        weights: of scenes and positions (`scene_weights`).
        episodes: of the scenes; the unit of the intervals.
    """
    generator = torch.Generator().manual_seed(seed)
    n_neurons = contributions.coefficients.shape[-1]
    other = torch.randperm(n_neurons, generator=generator)
    own, null = [], []
    for scene in range(len(contributions.coefficients)):
        for found, coefficients in (
            (own, contributions.coefficients[scene]),
            (null, contributions.coefficients[scene][:, other]),
        ):
            one = coefficients.double() / contributions.scale[scene][:, None]
            terms = one[..., None] * contributions.directions.normalized
            found.append(_composed(terms))
    summed = lambda found: np.einsum("spk,sp->sk", np.stack(found), weights.numpy())
    total = weights.sum(1).numpy()
    estimate = pooled_ratio(summed(own).T, total[None], clusters=episodes, seed=seed)
    chance = summed(null).sum(0) / total.sum()
    names = [
        ("no single memory gives the action", "share of entries", ">= 68 %"),
        ("the strongest memory", "share of all contributions", ""),
        *(
            (
                f"memories that carry {part:.0%}".replace("%", " %"),
                "neurons",
                "",
            )
            for part in CARRIED
        ),
    ]
    return [
        LayerNumber(
            name, unit, float(estimate.estimate[i]), float(estimate.low[i]),
            float(estimate.high[i]), float(chance[i]), "coefficients among neurons", anchor=anchor,
        )
        for i, (name, unit, anchor) in enumerate(names)
    ]  # fmt: skip


def _composed(
    terms: Float[Tensor, "position neuron joint"],
) -> Float[np.ndarray, "position statistic"]:
    """Composed or not, the strongest's share, and how many carry each part."""
    layer = terms.sum(1, keepdim=True)
    size, whole = terms.norm(dim=-1), layer.norm(dim=-1)
    cosine = (terms * layer).sum(-1) / (size * whole).clamp_min(1e-12)
    alone = (cosine > np.cos(np.deg2rad(SAME_ANGLE))) & (size >= SAME_SIZE * whole)
    ordered = size.sort(dim=-1, descending=True).values
    shares = ordered.cumsum(-1) / ordered.sum(-1, keepdim=True).clamp_min(1e-12)
    carried = [(shares < part).sum(-1) + 1 for part in CARRIED]
    return torch.stack([~alone.any(-1), shares[:, 0], *carried], -1).double().numpy()


@torch.no_grad()
def stream_numbers(
    model: HookedACT,
    scenes: Sequence[Scene],
    runs: MLPRuns,
    episodes: Int[np.ndarray, " scene"],
    *,
    tolerance: float = 1.0,
    seed: int = 0,
) -> list[LayerNumber]:
    """The stream beside the MLP against the MLP (section 5.2): which of them gives the action?

    Each is replaced by its mean over scenes, position by position. The null replaces it by that of
    a scene of another episode, which is what an unrelated memory would cost.

    Args:
        episodes: of the scenes; the unit of the intervals.
        tolerance: the largest difference of any joint that counts as the same action, dataset
            units.
    """
    weights = scene_weights(model.config, scenes)
    counts = weights.numpy()
    shift = _to_other_episodes(episodes, seed)
    (skip,) = (name for name in runs.rest.ops[0].inputs if name != runs.rest.start)
    stream, units = runs.rest.given[skip], lambda x: model.normalizer.unnormalize(ACTION_KEY, x)
    mean = lambda x: x.mean(0, keepdim=True).expand_as(x)
    base = units(runs.actions)

    def moved(output: Tensor, beside: Tensor) -> Float[np.ndarray, "scene chunk joint"]:
        rest = replace(runs.rest, given=dict(runs.rest.given) | {skip: beside})
        parts = [rest.of(at)(output[at]) for at in torch.arange(len(output)).split(8)]
        return (units(torch.cat(parts)) - base).abs().double().cpu().numpy()

    without_mlp, without_stream = moved(mean(runs.output), stream), moved(runs.output, mean(stream))
    other_mlp, other_stream = moved(runs.output[shift], stream), moved(runs.output, stream[shift])
    pooled = lambda x: pooled_ratio(
        (x * counts).sum(1)[None], counts.sum(1)[None], clusters=episodes, seed=seed
    )
    cost = lambda x: pooled(x.mean(-1))
    same = lambda x: (x.max(-1) <= tolerance).astype(np.float64)
    # Which of the two alone gives the action, as Geva et al. ask of predictions.
    kinds = {
        "the stream alone gives the action": lambda m, s: same(m) * (1 - same(s)),
        "the MLP alone gives the action": lambda m, s: same(s) * (1 - same(m)),
        "either gives it": lambda m, s: same(m) * same(s),
        "only both together": lambda m, s: (1 - same(m)) * (1 - same(s)),
    }
    rows = [
        ("MLP replaced by its mean", "mean change, units", cost(without_mlp), cost(other_mlp), ""),
        (
            "stream replaced by its mean",
            "mean change, units",
            cost(without_stream),
            cost(other_stream),
            "",
        ),
    ]
    anchors = {"the stream alone gives the action": "most", "only both together": "composition"}
    rows += [
        (
            name,
            f"share within {tolerance:g} units",
            pooled(kind(without_mlp, without_stream)),
            pooled(kind(other_mlp, other_stream)),
            anchors.get(name, ""),
        )
        for name, kind in kinds.items()
    ]
    return [
        LayerNumber(
            name, unit, float(found.estimate[0]), float(found.low[0]), float(found.high[0]),
            float(null.estimate[0]), "that of another episode instead", anchor=anchor,
        )
        for name, unit, found, null, anchor in rows
    ]  # fmt: skip


def _to_other_episodes(episodes: Int[np.ndarray, " scene"], seed: int) -> Int[Tensor, " scene"]:
    """For every scene one of another episode; itself if there is no other."""
    rng = np.random.default_rng(seed)
    chosen = []
    for own in episodes:
        others = np.flatnonzero(episodes != own)
        chosen.append(int(rng.choice(others)) if len(others) else int(np.argmax(episodes == own)))
    return torch.tensor(chosen)
