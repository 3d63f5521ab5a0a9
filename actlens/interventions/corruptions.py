"""Corruptions of what a policy sees: the usual ones of pictures and of joint positions, as values.

Each takes an observation in LeRobot's form (uint8 or float pictures, batched or not) and gives a
new one; what it was given stays as it was. The severities that studies use are those of Hendrycks
and Dietterich (2019); here every corruption has its own unit instead, so that it can be read.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.v2 import functional as pictures

from actlens.config import STATE_KEY, Camera
from actlens.errors import InterventionError, SceneError
from actlens.scene import Observation
from actlens.text import did_you_mean

Picture = Float[Tensor, "*batch 3 height width"]
"""Values in 0..1."""


@dataclass(frozen=True)
class Instant:
    """When something is seen: what noise is drawn by, and what a frozen camera still shows."""

    control_step: int = -1
    """Of a rollout, from 0; -1 outside of one."""
    episode: int = 0
    """Other episodes have other noise."""
    first: Observation | None = field(default=None, compare=False)
    """What was seen when the corruption set in."""


@dataclass(frozen=True)
class Corruption(ABC):
    """One change of an observation; a frozen value whose numbers are checked on construction."""

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Field -> least and largest value of its number or numbers; whole ones ask for integers."""

    def __post_init__(self) -> None:
        for name, (low, high) in self.bounds.items():
            given = getattr(self, name)
            kind = int if isinstance(low, int) else int | float
            values = given if isinstance(given, tuple) else (given,)
            if not all(isinstance(value, kind) and low <= value <= high for value in values):
                whole = "whole " if kind is int else ""
                raise InterventionError(
                    f"{type(self).__name__} takes {whole}numbers in {low:g}..{high:g} as {name}, "
                    f"got {given!r}."
                )
        if not isinstance(getattr(self, "cameras", ()), tuple):
            raise InterventionError(f"{self}: cameras takes a tuple of names, such as ('top',).")

    @abstractmethod
    def apply(self, observation: Observation, instant: Instant) -> dict[str, Tensor]:
        """A corrupted copy; entries that are not touched are shared.

        Raises:
            SceneError: if the observation lacks what the corruption works on.
        """


@dataclass(frozen=True)
class OnPictures(Corruption):
    """A corruption of single pictures, of the named cameras or of all."""

    cameras: tuple[str, ...] = field(default=(), kw_only=True)
    """Short names (`top`); all if empty."""

    def apply(self, observation: Observation, instant: Instant) -> dict[str, Tensor]:
        """Every chosen picture corrupted, in the dtype that it has."""
        return dict(observation) | {
            key: _like(observation[key], self.seen(_in_unit_range(observation[key]), key, instant))
            for key in camera_keys(observation, self.cameras)
        }

    @abstractmethod
    def seen(self, picture: Picture, key: str, instant: Instant) -> Picture:
        """What is seen instead; values beyond 0..1 are clipped afterwards."""


@dataclass(frozen=True)
class Blur(OnPictures):
    """A Gaussian blur; `sigma` in pixels."""

    sigma: float
    bounds: ClassVar = {"sigma": (1e-3, 100.0)}

    def seen(self, picture: Picture, key: str, instant: Instant) -> Picture:
        """Blurred as far as three sigma, the border mirrored."""
        radius = math.ceil(3 * self.sigma)
        if radius >= min(picture.shape[-2:]):
            raise SceneError(
                f"{self} reaches {radius} pixels far; {key} has only {tuple(picture.shape[-2:])}."
            )
        size, sigma = 2 * radius + 1, [self.sigma, self.sigma]
        # A Gaussian is separable: one axis after the other is the same, and a lot less to compute.
        across = pictures.gaussian_blur(picture, [size, 1], sigma)
        return pictures.gaussian_blur(across, [1, size], sigma)


@dataclass(frozen=True)
class PixelNoise(OnPictures):
    """Gaussian noise on every pixel and channel; `std` as a share of the range of values.

    Every row of a batch gets the same draw, every camera, control step and episode its own.
    """

    std: float
    seed: int = 0
    bounds: ClassVar = {"std": (0.0, 10.0), "seed": (0, 2**62)}

    def seen(self, picture: Picture, key: str, instant: Instant) -> Picture:
        """The picture plus noise."""
        noise = _gaussian(self.seed, key, instant, tuple(picture.shape[-3:]))
        return picture + self.std * noise.to(picture)


@dataclass(frozen=True)
class Brightness(OnPictures):
    """All values times `factor`: darker below 1, brighter above."""

    factor: float
    bounds: ClassVar = {"factor": (0.0, 100.0)}

    def seen(self, picture: Picture, key: str, instant: Instant) -> Picture:
        """The picture, scaled."""
        return pictures.adjust_brightness(picture, self.factor)


@dataclass(frozen=True)
class Contrast(OnPictures):
    """Distances from the picture's mean grey times `factor`: 0 leaves an even grey."""

    factor: float
    bounds: ClassVar = {"factor": (0.0, 100.0)}

    def seen(self, picture: Picture, key: str, instant: Instant) -> Picture:
        """The picture, spread about its mean."""
        return pictures.adjust_contrast(picture, self.factor)


@dataclass(frozen=True)
class Shift(OnPictures):
    """The picture moved by whole pixels, as if the camera had turned; its edge is repeated."""

    right: int = 0
    down: int = 0
    bounds: ClassVar = {"right": (-8192, 8192), "down": (-8192, 8192)}

    def seen(self, picture: Picture, key: str, instant: Instant) -> Picture:
        """The moved picture, of the same size."""
        height, width = picture.shape[-2:]
        left, top = max(self.right, 0), max(self.down, 0)
        right, bottom = max(-self.right, 0), max(-self.down, 0)
        padded = pictures.pad(picture, [left, top, right, bottom], padding_mode="edge")
        return pictures.crop(padded, bottom, right, height, width)


@dataclass(frozen=True)
class Occlusion(OnPictures):
    """A card before the camera; its edges are shares of the picture's height and width."""

    rows: tuple[float, float]
    """Upper and lower edge, from 0 (top) to 1 (bottom)."""
    columns: tuple[float, float]
    """Left and right edge."""
    rgb: tuple[float, float, float] = (0.5, 0.5, 0.5)
    bounds: ClassVar = {"rows": (0.0, 1.0), "columns": (0.0, 1.0), "rgb": (0.0, 1.0)}

    def __post_init__(self) -> None:
        super().__post_init__()
        edges = (self.rows, self.columns)
        if len(self.rgb) != 3 or any(len(e) != 2 or e[0] >= e[1] for e in edges):
            raise InterventionError(f"{self}: give a lower and a higher edge each, and a colour.")

    @classmethod
    def around(
        cls, row: float, column: float, size: float, *, cameras: tuple[str, ...] = ()
    ) -> "Occlusion":
        """A card of a share `size` of height and width about a point; cut off at the border."""
        edges = lambda at: (max(0.0, at - size / 2), min(1.0, at + size / 2))
        return cls(edges(row), edges(column), cameras=cameras)

    def seen(self, picture: Picture, key: str, instant: Instant) -> Picture:
        """The picture behind the card."""
        height, width = picture.shape[-2:]
        top, bottom = (round(edge * height) for edge in self.rows)
        left, right = (round(edge * width) for edge in self.columns)
        colour = picture.new_tensor(self.rgb)[:, None, None]
        return pictures.erase(picture, top, left, bottom - top, right - left, colour)


@dataclass(frozen=True)
class Blackout(OnPictures):
    """A camera that shows nothing: all values 0."""

    def seen(self, picture: Picture, key: str, instant: Instant) -> Picture:
        """Black."""
        return torch.zeros_like(picture)


@dataclass(frozen=True)
class FrozenCamera(Corruption):
    """A camera that still shows what it showed when the corruption set in (`Instant.first`)."""

    cameras: tuple[str, ...] = field(default=(), kw_only=True)
    """Short names (`top`); all if empty."""

    def apply(self, observation: Observation, instant: Instant) -> dict[str, Tensor]:
        """The pictures of then, everything else of now.

        Raises:
            SceneError: if there is no earlier observation, or one of another shape.
        """
        frozen: dict[str, Tensor] = {}
        for key in camera_keys(observation, self.cameras):
            earlier = None if instant.first is None else instant.first.get(key)
            if earlier is None or earlier.shape != observation[key].shape:
                got = "none" if earlier is None else f"one of shape {tuple(earlier.shape)}"
                raise SceneError(
                    f"FrozenCamera shows an earlier picture of {key}, shape "
                    f"{tuple(observation[key].shape)}; there is {got}: give Instant(first=…), or "
                    "use PerturbedView in a rollout."
                )
            frozen[key] = earlier
        return dict(observation) | frozen


@dataclass(frozen=True)
class CameraSwap(Corruption):
    """Two cameras of equal size exchanged, as by two plugs.

    An exact null where the policy scales both alike: ACT tells cameras apart by nothing but the
    size of their token grids, so the swap only permutes its tokens.
    """

    one: str
    other: str

    def apply(self, observation: Observation, instant: Instant) -> dict[str, Tensor]:
        """Each camera's picture under the other's key.

        Raises:
            SceneError: if the two differ in size.
        """
        (one,), (other,) = (camera_keys(observation, (name,)) for name in (self.one, self.other))
        if observation[one].shape != observation[other].shape:
            raise SceneError(
                f"{one} {tuple(observation[one].shape)} and {other} "
                f"{tuple(observation[other].shape)} differ in size and cannot be exchanged."
            )
        return dict(observation) | {one: observation[other], other: observation[one]}


@dataclass(frozen=True)
class StateNoise(Corruption):
    """Gaussian noise on every joint position; `std` in dataset units (degrees, percent, …)."""

    std: float
    seed: int = 0
    bounds: ClassVar = {"std": (0.0, 1e6), "seed": (0, 2**62)}

    def apply(self, observation: Observation, instant: Instant) -> dict[str, Tensor]:
        """Other joint positions; every row of a batch gets the same draw."""
        state = _state(observation)
        noise = _gaussian(self.seed, STATE_KEY, instant, (state.shape[-1],))
        return dict(observation) | {STATE_KEY: state + self.std * noise.to(state)}


@dataclass(frozen=True)
class StateOffset(Corruption):
    """Joint positions read off by a constant: a mis-calibrated encoder."""

    offset: tuple[float, ...]
    """In dataset units, one for each joint or one for all."""
    bounds: ClassVar = {"offset": (-1e6, 1e6)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.offset, tuple):
            raise InterventionError(f"{self}: offset takes a tuple, such as (2.0,) for all joints.")

    def apply(self, observation: Observation, instant: Instant) -> dict[str, Tensor]:
        """Other joint positions.

        Raises:
            SceneError: if the observation has another number of joints.
        """
        state = _state(observation)
        if len(self.offset) not in (1, state.shape[-1]):
            raise SceneError(f"{self} has not one number for each of {state.shape[-1]} joints.")
        return dict(observation) | {STATE_KEY: state + torch.tensor(self.offset).to(state)}


CORRUPTIONS: tuple[type[Corruption], ...] = (
    Blur,
    PixelNoise,
    Brightness,
    Contrast,
    Shift,
    Occlusion,
    Blackout,
    FrozenCamera,
    CameraSwap,
    StateNoise,
    StateOffset,
)


def camera_keys(observation: Observation, cameras: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The keys of the named cameras' pictures, of all if none is named.

    Raises:
        SceneError: if there is no such camera.
    """
    known = {
        Camera(key, *value.shape[-2:]).name: key
        for key, value in observation.items()
        if value.ndim >= 3
    }
    for name in cameras:
        if name not in known:
            raise SceneError(
                f"The observation has no camera {name!r}; it has {', '.join(known) or 'none'}."
                f"{did_you_mean(name, known)}"
            )
    return tuple(known[name] for name in cameras or known)


def _state(observation: Observation) -> Tensor:
    if STATE_KEY not in observation:
        raise SceneError(f"The observation has no {STATE_KEY}; it has {sorted(observation)}.")
    return observation[STATE_KEY]


def _in_unit_range(picture: Tensor) -> Picture:
    return picture.float() / 255 if picture.dtype == torch.uint8 else picture


def _like(original: Tensor, picture: Picture) -> Tensor:
    """Values in 0..1 in the original's dtype."""
    picture = picture.clamp(0, 1)
    if original.dtype == torch.uint8:
        return (picture * 255).round().to(torch.uint8)
    return picture.to(original.dtype)


def _gaussian(seed: int, key: str, instant: Instant, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers that depend on the arguments alone, in every process alike."""
    entropy = [seed, crc32(key.encode()), instant.episode, instant.control_step + 1]
    rng = np.random.default_rng(entropy)
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
