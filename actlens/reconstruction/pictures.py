"""Camera pictures shrunk for decoding, and how far a drawn one is from the real one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32

from actlens.cameras import PinholeCamera
from actlens.config import Camera
from actlens.reconstruction.detector import find_red, place_of
from actlens.scene import Scene

CHANGED = 0.15
"""A pixel differs from another if one of its colours does by this much, of 1."""

Pictures = Float32[np.ndarray, "scene camera 3 h w"]


def small_pictures(
    scenes: Sequence[Scene], cameras: Sequence[Camera], size: tuple[int, int]
) -> Pictures:
    """RGB from 0 to 1, all cameras at one size (rows, columns), by means over areas."""
    found = np.empty((len(scenes), len(cameras), 3, *size), np.float32)
    for i, scene in enumerate(scenes):
        for j, camera in enumerate(cameras):
            picture = scene.observation[camera.key]
            whole = picture.float() / (1.0 if picture.dtype.is_floating_point else 255.0)
            found[i, j] = F.adaptive_avg_pool2d(whole, size).numpy()
    return found


@dataclass(frozen=True)
class Errors:
    """Of drawn pictures, one number a scene, so that scenes can be pooled by episode."""

    squared: Float[np.ndarray, " scene"]
    """Summed over all pixels, colours and cameras."""
    changed: Float[np.ndarray, " scene"]
    """The same over pixels in which the real picture differs from the usual one."""
    overlap: Float[np.ndarray, " scene"]
    """Pixels that differ from the usual picture in the real and in the drawn one."""
    union: Float[np.ndarray, " scene"]
    """Pixels that do in one of them."""
    off: Float[np.ndarray, "scene camera"]
    """Millimetres between the cube and where the drawn picture shows it; infinite where it shows
    none; NaN where the real picture hides it, or the camera is not known."""


@dataclass(frozen=True)
class Judge:
    """The real pictures of some scenes, and what is usual, to hold drawn ones against."""

    real: Pictures
    usual: Float[np.ndarray, "camera 3 h w"]
    """The median of the fitted scenes."""
    cameras: tuple[PinholeCamera | None, ...]
    """Of the pictures' size; None where a camera's pose is not known."""
    places: Float[np.ndarray, "scene 3"] | None
    """The cube's centre in metres."""

    @property
    def silhouette(self) -> Bool[np.ndarray, "scene camera h w"]:
        """Where the real pictures differ from the usual one: the arm, and the cube."""
        return differs(self.real, self.usual)

    @property
    def n_changed(self) -> Float[np.ndarray, " scene"]:
        """Numbers that `Errors.changed` is summed over."""
        return 3.0 * self.silhouette.sum((1, 2, 3))

    def errors(self, drawn: Pictures) -> Errors:
        """How far pictures of the same scenes are off."""
        squares = (drawn - self.real).astype(np.float64) ** 2
        silhouette, other = self.silhouette, differs(drawn, self.usual)
        return Errors(
            squares.sum((1, 2, 3, 4)),
            (squares * silhouette[:, :, None]).sum((1, 2, 3, 4)),
            (silhouette & other).sum((1, 2, 3)).astype(float),
            (silhouette | other).sum((1, 2, 3)).astype(float),
            self._off(drawn),
        )

    def _off(self, drawn: Pictures) -> Float[np.ndarray, "scene camera"]:
        found = np.full(drawn.shape[:2], np.nan)
        if self.places is None:
            return found
        for i, place in enumerate(self.places):
            for j, camera in enumerate(self.cameras):
                if camera is None or find_red(self.real[i, j]) is None:
                    continue
                spot = find_red(drawn[i, j])
                found[i, j] = np.inf
                if spot is not None:
                    there = place_of(spot, camera, float(place[2]))
                    apart = float(np.linalg.norm(there - place[:2]))
                    found[i, j] = 1000 * apart if np.isfinite(apart) else np.inf
        return found


def differs(
    pictures: Float[np.ndarray, "scene camera 3 h w"], usual: Float[np.ndarray, "camera 3 h w"]
) -> Bool[np.ndarray, "scene camera h w"]:
    """Where pictures are not the usual one."""
    return np.asarray((np.abs(pictures - usual) > CHANGED).any(2))


def at_size(
    cameras: Sequence[Camera], known: Sequence[PinholeCamera], size: tuple[int, int]
) -> tuple[PinholeCamera | None, ...]:
    """Known cameras as they are in pictures shrunk to a size, in the order of a policy's cameras.

    None where the shape of the picture changes: pixels are then not square any more.
    """
    by_name = {camera.name: camera for camera in known}
    found = []
    for camera in cameras:
        one = by_name.get(camera.name)
        same_shape = camera.height * size[1] == camera.width * size[0]
        small = replace(one, height=size[0], width=size[1]) if one and same_shape else None
        found.append(small)
    return tuple(found)


@dataclass(frozen=True)
class Components:
    """Principal components of fitted pictures: all that a mixture of them can draw."""

    mean: Float[np.ndarray, " pixel"]
    axes: Float[np.ndarray, "component pixel"]

    @classmethod
    def of(cls, fitted: Pictures) -> "Components":
        """All components of the fitted pictures."""
        flat = torch.from_numpy(fitted.reshape(len(fitted), -1))
        mean = flat.mean(0)
        _, sizes, axes = torch.linalg.svd(flat - mean, full_matrices=False)
        kept = sizes > 1e-5 * sizes[:1].clamp(min=1e-12)
        return cls(mean.numpy(), axes[kept].numpy())

    def redrawn(self, pictures: Pictures) -> Pictures:
        """Each picture's nearest among the mixtures of the fitted ones."""
        flat = pictures.reshape(len(pictures), -1) - self.mean
        return ((flat @ self.axes.T) @ self.axes + self.mean).reshape(pictures.shape)
