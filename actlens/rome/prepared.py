"""Requests looked up in a policy: forwards are made, nothing is solved yet."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.interventions.mlp_runs import MLPRuns, keys_in
from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite
from actlens.rome.errors import EditError
from actlens.rome.fingerprint import Digests, digests_of
from actlens.rome.jitter import Jitter
from actlens.rome.metric import Keys
from actlens.rome.request import JointLimits, Request, Resolved, resolve


@dataclass(frozen=True)
class Prepared:
    """All that edits of one MLP for some requests need to know; good for any number of edits.

    It holds for the policy's weights of then: prepare again after an edit was applied.
    """

    model: HookedACT
    requests: tuple[Request, ...]
    resolved: tuple[Resolved, ...]
    runs: MLPRuns
    """The requests' scenes."""
    keys: tuple[Keys, ...]
    """k* of every request, in float64: one for each of its positions behind the last decoder MLP;
    elsewhere one for each position of the scene, because all have a say in its actions."""
    weight: Float[Tensor, "d_model neuron"]
    """The matrix to be edited."""
    digests: Digests
    """Hashes of all weights."""
    jitter: Jitter


@torch.no_grad()
def prepare(
    model: HookedACT,
    requests: Sequence[Request],
    block: str,
    *,
    jitter: Jitter | None = None,
    limits: JointLimits | None = None,
) -> Prepared:
    """Run the scenes of some requests and average their keys.

    k* is the mean key over a request's scene, its views under `jitter` and its neighbours. One and
    the same k* is used throughout; that some code used another in the numerator than in the
    denominator is what made edits collapse (Gupta et al. 2024).

    Args:
        block: `decoder.0`, `encoder.2`, ….
        limits: what targets are checked against; nothing, if not given.

    Raises:
        EditError: if there is no request, one makes no sense for this policy or lies beyond the
            limits, or the policy is in training mode.
        HookNameError: if the policy has no such block.
        SceneError: if a scene does not fit the policy.
    """
    if not requests:
        raise EditError("There is no request: say what the policy should do, and where.")
    if model.training:
        raise EditError("The model is in training mode, where dropout is random: call `eval()`.")
    site = MLPSite.of(model, block)
    jitter = jitter or Jitter()
    runs = MLPRuns.of(model, site, [request.scene for request in requests])
    resolved = tuple(
        resolve(model, request, present, limits)
        for request, present in zip(requests, runs.actions, strict=True)
    )
    keys = tuple(
        _mean_keys(model, site, request, own, jitter)[
            list(one.positions) if runs.rest.positionwise else slice(None)
        ]
        for request, own, one in zip(requests, runs.keys, resolved, strict=True)
    )
    weight = site.layer(model).weight.detach().clone()
    return Prepared(model, tuple(requests), resolved, runs, keys, weight, digests_of(model), jitter)


def _mean_keys(
    model: HookedACT,
    site: MLPSite,
    request: Request,
    own: Float[Tensor, "position neuron"],
    jitter: Jitter,
) -> Float[Tensor, "position neuron"]:
    """The mean over the scene, its views and its neighbours, on the CPU."""
    seen = own[None].double()
    if alike := [*jitter.views(model, request.scene), *request.neighbours]:
        seen = torch.cat([seen, keys_in(model, site, alike).double()])
    return seen.mean(0).cpu()
