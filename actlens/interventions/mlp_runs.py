"""Forwards of scenes, kept at one MLP: its keys, its output, and the rest of the network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from actlens.errors import SceneError
from actlens.interventions.network import ACTIONS
from actlens.interventions.rest import Rest, activations, inputs_behind
from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite
from actlens.scene import Scene


@dataclass(frozen=True)
class MLPRuns:
    """What an edit of one MLP's output weights needs to know of some scenes; nothing else is run.

    With it the actions under any edit cost what lies behind the MLP, not a forward.
    """

    site: MLPSite
    keys: Float[Tensor, "scene position neuron"]
    """What the MLP's output weights read."""
    output: Float[Tensor, "scene position d_model"]
    """What they and the bias make of it."""
    actions: Float[Tensor, "scene chunk joint"]
    """Normalised, without any edit."""
    rest: Rest

    @classmethod
    def of(cls, model: HookedACT, site: MLPSite, scenes: Sequence[Scene]) -> Self:
        """Run the scenes, with the model's present weights.

        Raises:
            SceneError: if there is no scene, or one does not fit the policy.
        """
        (runs,) = cls.of_sites(model, [site], scenes)
        return runs

    @classmethod
    @torch.no_grad()
    def of_sites(
        cls, model: HookedACT, sites: Sequence[MLPSite], scenes: Sequence[Scene]
    ) -> tuple[Self, ...]:
        """The same forwards kept at several MLPs, one value for each.

        Raises:
            SceneError: if there is no scene, or one does not fit the policy.
        """
        if not scenes:
            raise SceneError("There is no scene to run.")
        read = (name for site in sites for name in inputs_behind(model, site.output))
        own = (name for site in sites for name in (site.keys, site.output))
        kept = activations(model, scenes, (*read, *own, ACTIONS))
        return tuple(
            cls(
                site,
                kept[site.keys],
                kept[site.output],
                kept[ACTIONS],
                Rest.behind(model, site.output, kept),
            )
            for site in sites
        )

    def of_scenes(self, chosen: Sequence[int]) -> "MLPRuns":
        """Some of the scenes."""
        at = torch.tensor(chosen, device=self.keys.device)
        parts = (self.keys[at], self.output[at], self.actions[at])
        return MLPRuns(self.site, *parts, self.rest.of(at))

    @torch.no_grad()
    def actions_with(
        self, written: Float[Tensor, "scene position d_model"]
    ) -> Float[Tensor, "scene chunk joint"]:
        """Normalised actions if something more is written at the MLP's output."""
        return self.rest(self.output + written.to(self.output))


@torch.no_grad()
def keys_in(
    model: HookedACT, site: MLPSite, scenes: Sequence[Scene]
) -> Float[Tensor, "scene position neuron"]:
    """The MLP's keys in some scenes, and nothing else of them."""
    return activations(model, scenes, (site.keys,))[site.keys]
