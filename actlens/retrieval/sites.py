"""Where two scenes can be alike: what a policy sees, what it computes, what it does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from actlens.config import IMAGE_PREFIX, STATE_KEY
from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite
from actlens.retrieval.keys import RetrievalError

Activations = Mapping[str, Tensor]
"""Hook point -> its activation; the first axis is the batch."""
Observed = Mapping[str, Tensor]
"""LeRobot's keys -> batched tensors, in dataset units."""


class Site(Protocol):
    """What stands for a scene where scenes are compared."""

    @property
    def name(self) -> str:
        """In tables."""
        ...

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hook points that it reads."""
        ...

    def keys(
        self, activations: Activations, observed: Observed
    ) -> Float[Tensor, "scene d"] | Float[Tensor, "scene position d"]:
        """A vector for each scene, or for each position of its chunk."""
        ...


@dataclass(frozen=True)
class Pixels:
    """The cameras' pictures, averaged over squares."""

    name: str = "pixels"
    side: int = 16
    """Pixels of a square; those at the border that fill none are left out."""
    hooks: tuple[str, ...] = ()

    def keys(self, activations: Activations, observed: Observed) -> Float[Tensor, "scene d"]:
        """Brightness by camera, colour and square, 0..1."""
        pictures = [
            picture.float() / (255 if picture.dtype == torch.uint8 else 1)
            for key, picture in sorted(observed.items())
            if key.startswith(IMAGE_PREFIX)
        ]
        return torch.cat([F.avg_pool2d(picture, self.side).flatten(1) for picture in pictures], 1)


@dataclass(frozen=True)
class Observation:
    """Observed numbers as they are: the arm's state, or what a simulator tells of the world."""

    name: str = "state"
    key: str = STATE_KEY
    hooks: tuple[str, ...] = ()

    def keys(self, activations: Activations, observed: Observed) -> Float[Tensor, "scene d"]:
        """In dataset units."""
        return observed[self.key].float()


@dataclass(frozen=True)
class Activation:
    """Everything at some hook points, or its mean over an axis."""

    name: str
    hooks: tuple[str, ...]
    mean_over: tuple[int, ...] = ()
    """Axes of an activation, of which 0 is the batch."""

    def keys(self, activations: Activations, observed: Observed) -> Float[Tensor, "scene d"]:
        """One flat vector a scene."""
        values = [activations[hook].float() for hook in self.hooks]
        if self.mean_over:
            values = [value.mean(self.mean_over) for value in values]
        return torch.cat([value.flatten(1) for value in values], 1)


@dataclass(frozen=True)
class PerPosition:
    """A hook point of the decoder, by position of the chunk."""

    name: str
    hook: str

    @property
    def hooks(self) -> tuple[str, ...]:
        """The one."""
        return (self.hook,)

    def keys(
        self, activations: Activations, observed: Observed
    ) -> Float[Tensor, "scene position d"]:
        """As the decoder has it."""
        return activations[self.hook].float()


def sites_of(model: HookedACT) -> tuple[Site, ...]:
    """The retrieval ladder of a policy, from what it sees to what it does.

    Encoder outputs and ResNet features stand there twice: whole, and as means over tokens or
    pixels, which is what VINN (Pari et al. 2022) retrieves by.
    """
    config, cameras = model.config, model.config.cameras
    features = tuple(f"embed.{camera.name}.hook_layer4" for camera in cameras)
    last = MLPSite.of(model, f"decoder.{config.n_decoder_layers - 1}")
    seen: list[Site] = []
    if cameras:
        seen.append(Pixels())
    if config.state_dim is not None:
        seen.append(Observation())
    if config.env_state_dim is not None:
        seen.append(Observation("environment", config.env_state_key))
    if cameras:
        seen.append(Activation("ResNet features", features))
        seen.append(Activation("ResNet features, mean", features, mean_over=(2, 3)))
    return (
        *seen,
        Activation("encoder output", ("encoder.hook_out",)),
        Activation("encoder output, mean", ("encoder.hook_out",), mean_over=(1,)),
        PerPosition("action vector", last.inputs),
        PerPosition("MLP coefficients", last.keys),
        Activation("predicted action", ("hook_actions_normalized",)),
    )


def check_names(sites: tuple[Site, ...]) -> None:
    """Sites are told apart by their names.

    Raises:
        RetrievalError: if there is none, or two share a name.
    """
    names = [site.name for site in sites]
    if not names or len(set(names)) < len(names):
        raise RetrievalError(f"Sites have names of their own; these are {', '.join(names)}.")
