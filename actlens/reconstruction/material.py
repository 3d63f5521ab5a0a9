"""Scenes read for decoding: what each site holds, the pictures, the state, who belongs to whom."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from actlens.cameras import PinholeCamera, known_cameras
from actlens.config import STATE_KEY
from actlens.errors import SceneError
from actlens.interventions.rest import activations
from actlens.kinematics import known_arm
from actlens.model.act import HookedACT
from actlens.reconstruction.detector import outline
from actlens.reconstruction.options import ReconstructionOptions
from actlens.reconstruction.pictures import Pictures, at_size, small_pictures
from actlens.reconstruction.quantities import Quantity, quantities_of
from actlens.scene import Scene, episode_numbers

VECTOR = "action vector"
VECTORS = "action vectors, all positions"
UNTRAINED = "action vector, untrained"
PIXELS = "pixels"
LABELS = "known scene state"
"""The quantities themselves: how well a decoder could draw what it knew exactly."""
STATE = "joint state"
OUTLINE = "cube's outline in the pictures"
"""Moments of the red spot: what the whole pictures show of the cube, by geometry alone."""
ENCODER = "encoder's output"
DEMONSTRATIONS = "demonstrations"


@dataclass(frozen=True)
class Moment:
    """Scenes of one phase: frame 0, where the arm says nothing of the cube, or a later one."""

    name: str
    demonstrations: Sequence[Scene]
    unseen: Mapping[str, Sequence[Scene]]
    """Set -> scenes of episodes that the policy was not trained on."""

    @property
    def scenes(self) -> list[Scene]:
        """All, the demonstrations first."""
        return [*self.demonstrations, *(s for some in self.unseen.values() for s in some)]


@dataclass(frozen=True)
class Feature:
    """One vector for each scene."""

    name: str
    values: Float[np.ndarray, "scene feature"]
    is_control: bool
    """Whether it is no activation of the policy: the input, the output, an untrained network."""


@dataclass(frozen=True)
class Material:
    """One moment's scenes, read."""

    moment: str
    features: tuple[Feature, ...]
    pictures: Pictures | None
    """None for a policy without cameras."""
    cameras: tuple[PinholeCamera | None, ...]
    quantities: tuple[Quantity, ...]
    places: Float[np.ndarray, "scene 3"] | None
    """The cube's centre in metres, where labels tell it."""
    episodes: Int[np.ndarray, " scene"]
    sets: Mapping[str, Int[np.ndarray, " part"]]
    """Set -> its scenes' numbers, `DEMONSTRATIONS` first."""
    addresses: tuple[str, ...]
    """Of every scene: dataset, episode and frame."""

    def feature(self, name: str) -> Feature:
        """The feature of that name; KeyError if there is none."""
        return {one.name: one for one in self.features}[name]


def read_moment(
    model: HookedACT,
    fresh: HookedACT,
    moment: Moment,
    options: ReconstructionOptions,
    *,
    progress: Callable[[int], None] = lambda n_scenes: None,
) -> Material:
    """Run the policy, and one of random weights, on all scenes of a moment.

    Args:
        fresh: the untrained policy.
        progress: told how many scenes were run, batch by batch; every scene is run twice.

    Raises:
        SceneError: if there are too few demonstrations for the folds, or an unseen episode is a
            demonstration too.
    """
    scenes = moment.scenes
    episodes = episode_numbers(scenes)
    sets, start = {}, 0
    for name, some in {DEMONSTRATIONS: moment.demonstrations, **moment.unseen}.items():
        if len(some):
            sets[name] = np.arange(start, start + len(some))
        start += len(some)
    shown = set(episodes[: len(moment.demonstrations)].tolist())
    if len(shown) < max(options.folds, 3):
        raise SceneError(
            f"{moment.name}: {len(shown)} demonstrations are too few to fit decoders in "
            f"{options.folds} folds."
        )
    if double := shown & set(episodes[len(moment.demonstrations) :].tolist()):
        raise SceneError(f"{moment.name}: episode number {min(double)} is shown and unseen.")
    config = model.config
    pictures = small_pictures(scenes, config.cameras, options.size) if config.cameras else None
    origin = model.checkpoint.source if model.checkpoint is not None else ""
    cameras = known_cameras(config.cameras, known_arm(config.joints, origin))
    quantities = quantities_of(scenes, config.joints)
    features = _features(model, fresh, scenes, pictures, options, progress)
    places = _places(scenes)
    if places is not None and cameras:
        known = {camera.name for camera in cameras}
        keys = [camera.key for camera in config.cameras if camera.name in known]
        features = (_outlines(scenes, keys), *features)
    if quantities:
        exact = np.concatenate([one.values for one in quantities], 1)
        features = (Feature(LABELS, exact.astype(np.float32), is_control=True), *features)
    return Material(
        moment.name,
        features,
        pictures,
        at_size(config.cameras, cameras, options.size),
        quantities,
        places,
        episodes,
        sets,
        tuple(f"{scene.source} {scene.address}" for scene in scenes),
    )


def _features(
    model: HookedACT,
    fresh: HookedACT,
    scenes: Sequence[Scene],
    pictures: Pictures | None,
    options: ReconstructionOptions,
    progress: Callable[[int], None],
) -> tuple[Feature, ...]:
    """From the input to the output, in the order of the network."""
    q, whole = options.query, lambda x: x.flatten(1)
    block = f"decoder.{model.config.n_decoder_layers - 1}"
    vector, behind = f"{block}.hook_normalized_resid_mid_cross", f"{block}.hook_resid_post"
    maps = [f"embed.{camera.name}.hook_layer4" for camera in model.config.cameras]
    names = [*maps, "encoder.hook_out", vector, behind, "hook_actions_normalized"]
    held = activations(model, scenes, names, progress=progress)
    random = activations(fresh, scenes, [vector], progress=progress)[vector]
    found: list[tuple[str, Tensor, bool]] = []
    if pictures is not None:
        found.append((PIXELS, whole(torch.from_numpy(pictures)), True))
    if all(STATE_KEY in scene.observation for scene in scenes):
        states = torch.stack([scene.observation[STATE_KEY] for scene in scenes])
        found.append((STATE, states, True))
    if maps:
        found.append(("ResNet features", torch.cat([whole(held[m]) for m in maps], 1), False))
    found += [
        (ENCODER, whole(held["encoder.hook_out"]), False),
        ("encoder's mean token", held["encoder.hook_out"].mean(1), False),
        (VECTOR, held[vector][:, q], False),
        (VECTORS, whole(held[vector]), False),
        ("stream behind the MLP", held[behind][:, q], False),
        ("predicted chunk", whole(held["hook_actions_normalized"]), True),
        (UNTRAINED, random[:, q], True),
    ]
    return tuple(Feature(name, x.float().cpu().numpy(), out) for name, x, out in found)


def _outlines(scenes: Sequence[Scene], keys: Sequence[str]) -> Feature:
    """The cube as the whole pictures show it, to cameras whose pictures have known colours."""
    found = []
    for scene in scenes:
        pictures = [scene.observation[key] for key in keys]
        scales = [1.0 if picture.dtype.is_floating_point else 255.0 for picture in pictures]
        moments = [
            outline((picture.float() / scale).cpu().numpy())
            for picture, scale in zip(pictures, scales, strict=True)
        ]
        found.append(np.concatenate(moments))
    return Feature(OUTLINE, np.stack(found).astype(np.float32), is_control=True)


def _places(scenes: Sequence[Scene]) -> Float[np.ndarray, "scene 3"] | None:
    names = ("cube_x", "cube_y", "cube_z")
    if not all(name in scene.labels for scene in scenes for name in names):
        return None
    return np.array([[scene.labels[name] for name in names] for scene in scenes])
