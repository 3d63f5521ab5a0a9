"""What a shard says of its scenes: where they come from, labels, demonstrated actions."""

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from actlens.scene import Scene
from actlens.store.errors import StoreError
from actlens.store.shard_file import Entry, bytes_of

EPISODE, FRAME, SOURCE = "scene.episode", "scene.frame", "scene.source"
ACTION, ACTION_IS_PAD = "scene.action", "scene.action_is_pad"
LABEL_PREFIX = "label."

ActionShape = tuple[int, int] | None
"""Of a demonstrated chunk, `chunk joint`; None where scenes have none."""


def action_shape(scene: Scene) -> ActionShape:
    """Of the scene's demonstrated chunk.

    Raises:
        StoreError: if the chunk is not `chunk joint`, or its padding not `chunk`.
    """
    if scene.action is None:
        return None
    shape = tuple(scene.action.shape)
    pad = None if scene.action_is_pad is None else tuple(scene.action_is_pad.shape)
    if len(shape) != 2 or pad not in (None, shape[:1]):
        raise StoreError(
            f"Scene {scene.address} has actions of shape {shape} with padding of shape {pad}; "
            "they must be (chunk, joint) and (chunk,)."
        )
    return shape[0], shape[1]


def sources(scenes: Sequence[Scene]) -> list[str]:
    """Where the scenes come from, each source once."""
    return list(dict.fromkeys(scene.source for scene in scenes))


def scene_entries(n_scenes: int, actions: ActionShape) -> list[Entry]:
    """What every shard says of its scenes; labels come on top."""
    entries = [Entry(name, torch.int64, (n_scenes,)) for name in (EPISODE, FRAME, SOURCE)]
    if actions is not None:
        entries.append(Entry(ACTION, torch.float32, (n_scenes, *actions)))
        entries.append(Entry(ACTION_IS_PAD, torch.bool, (n_scenes, actions[0])))
    return entries


def scene_tensors(scenes: Sequence[Scene], actions: ActionShape) -> dict[str, Tensor]:
    """Scenes as tensors with the scene as first axis: all of them but the observations.

    `scene.source` counts in `sources(scenes)`; labels that a scene does not have are NaN.

    Raises:
        StoreError: if a scene's action chunk is not of the shape `actions`.
    """
    for scene in scenes:
        if (shape := action_shape(scene)) != actions:
            raise StoreError(
                f"Scene {scene.address} has {_shown(shape)}; this store's scenes have "
                f"{_shown(actions)}. Give all scenes the same chunk length (`chunk=`), or write "
                "two stores."
            )
    known = sources(scenes)
    tensors = {
        EPISODE: torch.tensor([scene.episode for scene in scenes]),
        FRAME: torch.tensor([scene.frame for scene in scenes]),
        SOURCE: torch.tensor([known.index(scene.source) for scene in scenes]),
    }
    for name in sorted({name for scene in scenes for name in scene.labels}):
        values = [float(scene.labels.get(name, float("nan"))) for scene in scenes]
        tensors[LABEL_PREFIX + name] = torch.tensor(values, dtype=torch.float64)
    if actions is not None:
        tensors[ACTION] = torch.stack(
            [s.action.float().cpu() for s in scenes if s.action is not None]
        )
        never = torch.zeros(actions[0], dtype=torch.bool)
        pads = (never if s.action_is_pad is None else s.action_is_pad.cpu() for s in scenes)
        tensors[ACTION_IS_PAD] = torch.stack(list(pads))
    return tensors


def _shown(shape: ActionShape) -> str:
    return "no demonstrated actions" if shape is None else f"actions of shape {shape}"


def scenes_sha256(scenes: Sequence[Scene]) -> str:
    """The SHA-256 of scenes, in order: of all that is known of each, observations included."""
    digest = hashlib.sha256()
    for scene in scenes:
        tensors = {f"observation {key}": value for key, value in scene.observation.items()}
        tensors |= {
            name: value
            for name, value in (("action", scene.action), ("is_pad", scene.action_is_pad))
            if value is not None
        }
        said = {
            "scene": [scene.source, scene.episode, scene.frame],
            "labels": {name: float(value) for name, value in scene.labels.items()},
            "tensors": [
                [k, str(tensors[k].dtype), list(tensors[k].shape)] for k in sorted(tensors)
            ],
        }
        digest.update(json.dumps(said, sort_keys=True).encode())
        for name in sorted(tensors):
            digest.update(bytes_of(tensors[name]))
    return digest.hexdigest()
