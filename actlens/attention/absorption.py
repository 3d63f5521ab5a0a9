"""Where is a token's information when the decoder looks? Interchange before and after the encoder.

Abs(g) = 1 - effect(g swapped at the encoder's output) / effect(g swapped at its input): 1 where
other tokens have taken all of it over, 0 where it still sits in its own, negative where the group
has taken over what came from others. Carriers say which tokens hold it now.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from actlens.attention.groups import TokenGroup
from actlens.attention.masking import in_units, rms_of
from actlens.interventions import FromScene, Intervention, SceneRun, activations_under, run
from actlens.interventions.tracing import TOKENS
from actlens.metrics import project
from actlens.model.act import HookedACT
from actlens.sites import Site

MEMORY = "encoder.hook_out"


@dataclass(frozen=True)
class Interchange:
    """What swapping each group of tokens between two scenes did to the action of the first.

    Sizes are root mean squares over joints and the chunk positions that count, dataset units.
    """

    scenes_differ: float
    """The two scenes' own actions."""
    at_input: Float[np.ndarray, " group"]
    """The group's input tokens from the other scene."""
    at_memory: Float[np.ndarray, " group"]
    """The group's outputs of the encoder from the other scene."""
    carried_along: Float[np.ndarray, "group carrier"]
    """Of the movement that a swap at the input makes, what arrives if only the carrier's output
    tokens change as they do under that swap: its product with the whole movement, normalised
    actions."""
    carried_total: Float[np.ndarray, " group"]
    """The whole movement's square: `carried_along / carried_total` is the carrier's share."""


def swap(name: str, tokens: Sequence[int], donor: str) -> Intervention:
    """Some tokens of an activation from another run."""
    return Intervention.at(Site(name, {"token": tuple(tokens)}), FromScene(donor))


@torch.no_grad()
def interchange(
    model: HookedACT,
    base: SceneRun,
    other: SceneRun,
    groups: Sequence[TokenGroup],
    *,
    counted: Float[np.ndarray, " query"],
) -> Interchange:
    """Swap every group at the encoder's input and at its output, and see who carries it.

    Positions do not move with tokens. All swaps put activations of a real scene beside those of
    another, which together no scene has.
    """
    donors, plans = {"other": other}, []
    # A swap between equal tokens is none, whatever rounding would make of it.
    differ = [not _equal(base[TOKENS], other[TOKENS], group.tokens) for group in groups]
    for group, is_swap in zip(groups, differ, strict=True):
        swapped = f"with {group.name} swapped"
        donors[swapped] = base
        if is_swap:
            at_input = swap(TOKENS, group.tokens, "other")
            donors[swapped] = activations_under(model, base, at_input, [MEMORY], donors)
        plans.append(swap(MEMORY, group.tokens, "other"))
        plans.append(Intervention.at(Site(MEMORY), FromScene(swapped)))
        plans += [swap(MEMORY, carrier.tokens, swapped) for carrier in groups]
    actions = run(model, base, plans, donors).actions.unflatten(0, (len(groups), -1))
    size = rms_of(in_units(model, actions - base.actions), counted)
    weights = torch.as_tensor(counted).to(actions.device)
    found = project(actions[:, 2:], base.actions, actions[:, 1:2], weights=weights)
    return Interchange(
        scenes_differ=float(rms_of(in_units(model, other.actions - base.actions), counted)),
        at_input=np.where(differ, size[:, 1], 0.0),
        at_memory=size[:, 0],
        carried_along=np.where(np.array(differ)[:, None], found.along.numpy(force=True), 0.0),
        carried_total=np.where(differ, found.total[:, 0].numpy(force=True), 0.0),
    )


def _equal(a: Tensor, b: Tensor, tokens: Sequence[int]) -> bool:
    index = list(tokens)
    return torch.equal(a[:, index], b[:, index])
