"""The scenes in which an edit is looked at, grouped by how far they are from its own."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import torch

from actlens.config import STATE_KEY
from actlens.interventions.corruptions import Brightness, Instant, PixelNoise
from actlens.model.act import HookedACT
from actlens.model.units import spread_of
from actlens.rome.situations import Places
from actlens.scene import Scene


class Role(Enum):
    """What an edit should do in scenes of a group."""

    OWN = "the request's own scene"
    VIEW = "the same scene, seen otherwise"
    NEAR = "a scene that should change with it"
    BETWEEN = "neither near nor far"
    FAR = "a scene of the same phase that should stay"
    OTHER = "a scene of another phase that should stay"


@dataclass(frozen=True)
class Group:
    """Scenes at one distance from the target."""

    name: str
    role: Role


@dataclass(frozen=True)
class Views:
    """What sensor noise and light are."""

    pixel_noise: float = 0.02
    """Standard deviation, as a share of the range of values."""
    state_noise: float = 0.02
    """Standard deviation, as a share of the joints' spread in the data."""
    light: float = 0.1
    """Pictures darker and brighter by this share."""

    def of(self, model: HookedACT, scene: Scene, seed: int) -> Iterator[Scene]:
        """The scene under sensor noise and, if it has pictures, darker and brighter."""
        seen = dict(scene.observation)
        if model.config.cameras:
            seen = PixelNoise(self.pixel_noise, seed=seed).apply(seen, Instant())
        if model.config.state_dim is not None:
            state = seen[STATE_KEY]
            drawn = np.random.default_rng(seed).standard_normal(state.shape)
            spread = spread_of(model, STATE_KEY, state)
            seen[STATE_KEY] = state + self.state_noise * torch.from_numpy(drawn).to(spread) * spread
        yield replace(scene, observation=seen)
        if model.config.cameras:
            for factor in (1 - self.light, 1 + self.light):
                lit = Brightness(factor).apply(scene.observation, Instant())
                yield replace(scene, observation=lit)


NOISE, LIGHT, FRAMES = 1, 2, 3
"""Where these groups stand in `groups_of`; the scene itself is first."""


def groups_of(places: Places, frames: tuple[int, ...], views: Views) -> tuple[Group, ...]:
    """The groups, nearest first.

    Args:
        frames: how many frames before or after the target are looked at.
    """
    named = "cube" if places.labels else "episode"
    a, b, c, d = (f"{x:.0f}" if places.unit == "mm" else f"{x:.2f}" for x in places.rings)
    unit = places.unit
    return (
        Group("the scene itself", Role.OWN),
        Group("sensor noise", Role.VIEW),
        Group(f"{100 * views.light:.0f} % darker or brighter", Role.VIEW),
        *(Group(f"{n} frame{'s' * (n > 1)} before or after", Role.NEAR) for n in frames),
        Group(f"{named} within {a} {unit}", Role.NEAR),
        Group(f"{named} {a} to {b} {unit} off", Role.NEAR),
        Group(f"{named} {b} to {c} {unit} off", Role.BETWEEN),
        Group(f"{named} {c} to {d} {unit} off", Role.BETWEEN),
        Group(f"{named} over {d} {unit} off", Role.FAR),
        Group("its other phases", Role.OTHER),
        Group("other phases elsewhere", Role.OTHER),
    )
