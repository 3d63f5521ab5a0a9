"""A lookup table bolted on to a policy: no weights change, and what is stored is looked up."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.interventions.mlp_runs import MLPRuns
from actlens.model.mlp_site import MLPSite
from actlens.rome.errors import EditError
from actlens.rome.prepared import Prepared
from actlens.rome.request import Resolved
from actlens.rome.rivals import require_same_site
from actlens.rome.statistics import KeyStatistics

QUANTILE = 0.05
"""Of the distances between other episodes' keys of the same phase: so often it may fire wrongly."""
MIN_PAIRS = 20


@dataclass(frozen=True)
class Overlay:
    """Where a scene's keys are near those of a request, its target; elsewhere the policy.

    The distance is the root mean square, over the request's positions (all of the scene's in an
    encoder block), of the distance between keys. Of several requests within the radius the nearest
    is granted.
    """

    site: MLPSite
    keys: Float[Tensor, "request position neuron"]
    """Of the requests' own scenes, at all positions."""
    resolved: tuple[Resolved, ...]
    positionwise: bool
    radius: float

    @property
    def relative_norm(self) -> float:
        """NaN: no weights change."""
        return float("nan")

    def distance(
        self, keys: Float[Tensor, "scene position neuron"]
    ) -> Float[Tensor, "scene request"]:
        """Of scenes to the requests' own."""
        columns = []
        for stored, one in zip(self.keys, self.resolved, strict=True):
            at = list(one.positions) if self.positionwise else slice(None)
            squares = (keys[:, at].double() - stored[at].double()).square().sum(-1)
            columns.append(squares.mean(-1).sqrt())
        return torch.stack(columns, 1)

    def __call__(self, runs: MLPRuns) -> Float[Tensor, "scene chunk joint"]:
        """Normalised actions of the scenes; outside of the radius the policy's own, bit for bit.

        Raises:
            EditError: if the runs were kept at another MLP.
        """
        require_same_site(self.site, runs)
        actions = runs.actions.clone()
        distance, nearest = self.distance(runs.keys).min(1)
        for scene in (distance <= self.radius).nonzero()[:, 0].tolist():
            one = self.resolved[int(nearest[scene])]
            actions[scene, list(one.positions)] = one.target.to(actions)
        return actions


def overlay(prepared: Prepared, radius: float) -> Overlay:
    """The lookup table of some requests.

    Args:
        radius: from `same_phase_radius`, or any distance between keys.

    Raises:
        EditError: if the radius is negative or NaN.
    """
    if not radius >= 0:
        raise EditError(f"The radius must be 0 or more, got {radius:g}.")
    runs = prepared.runs
    return Overlay(runs.site, runs.keys, prepared.resolved, runs.rest.positionwise, radius)


def same_phase_radius(
    statistics: KeyStatistics, *, quantile: float = QUANTILE, slack: int = 2
) -> float:
    """A radius within which a share `quantile` of other episodes' keys of the same phase lie.

    Over pairs of the statistics' sample from the same frame of different episodes, at chunk
    positions that differ by at most `slack` (the same token, in an encoder block).

    Raises:
        EditError: if there are fewer than 20 such pairs.
    """
    episode, frame, position = statistics.sampled_from.T
    apart = (position[:, None] - position).abs()
    same_phase = (frame[:, None] == frame) & (apart <= (slack if statistics.site.in_decoder else 0))
    pairs = (same_phase & (episode[:, None] < episode)).nonzero()
    if len(pairs) < MIN_PAIRS:
        raise EditError(
            f"The sample of these statistics has {len(pairs)} pairs of keys from the same frame of "
            f"different episodes, fewer than {MIN_PAIRS}: take statistics of more scenes at the "
            "same frames, or give a radius."
        )
    first, second = (statistics.sample[pairs[:, i]].double() for i in (0, 1))
    return float((first - second).norm(dim=1).quantile(quantile))
