"""Activations at the sites on a policy's way, one vector a scene, and what any probe must beat."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from actlens.config import STATE_KEY
from actlens.model.act import HookedACT
from actlens.scene import Scene, stack

_BATCH = 8
_PICTURE = (15, 20)
"""Rows and columns that pictures are shrunk to, as an input baseline."""


@dataclass(frozen=True)
class Feature:
    """One vector for each scene."""

    name: str
    values: Float[np.ndarray, "scene feature"]
    is_baseline: bool = False
    """Whether it is not an activation: the input, the output, an untrained network."""


@torch.no_grad()
def site_features(
    model: HookedACT,
    scenes: Sequence[Scene],
    *,
    query: int = 0,
    progress: Callable[[int], None] = lambda n_scenes: None,
) -> tuple[Feature, ...]:
    """What a policy holds of some scenes, from the backbone to the last decoder MLP, in order.

    Each camera's feature map and pixel tokens flattened, the state token, the encoder's output
    flattened, and the action vector, the MLP's coefficients and the chunk of one query.

    Args:
        query: the chunk position that is read in the decoder; 0 is the next action.
        progress: told how many scenes were run, batch by batch.

    Raises:
        SceneError: if there is no scene, or one does not fit the policy.
    """
    block = f"decoder.{model.config.n_decoder_layers - 1}"
    cameras = [camera.name for camera in model.config.cameras]
    of_query = lambda x: x[:, query]
    whole = lambda x: x.flatten(1)
    reads: dict[str, tuple[list[str], Callable[[Tensor], Tensor]]] = {}
    if cameras:
        reads["ResNet features"] = ([f"embed.{c}.hook_layer4" for c in cameras], whole)
    reads["tokens into the encoder"] = (["encoder.0.hook_resid_pre"], whole)
    for layer in range(1, model.config.n_encoder_layers):
        reads[f"tokens into block {layer}"] = ([f"encoder.{layer}.hook_resid_pre"], whole)
    reads["encoder's output"] = (["encoder.hook_out"], whole)
    reads["action vector"] = ([f"{block}.hook_normalized_resid_mid_cross"], of_query)
    reads["MLP coefficients"] = ([f"{block}.mlp.hook_post"], of_query)
    reads["stream behind the MLP"] = ([f"{block}.hook_resid_post"], of_query)
    names = [name for hooks, _ in reads.values() for name in hooks]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*reads, "predicted chunk")}
    for start in range(0, len(scenes), _BATCH):
        batch = scenes[start : start + _BATCH]
        actions, cache = model.run_with_cache(stack(batch), names_filter=names)
        for name, (hooks, read) in reads.items():
            values = torch.cat([read(cache[hook]) for hook in hooks], 1)
            parts[name].append(values.float().cpu().numpy())
        parts["predicted chunk"].append(whole(actions).float().cpu().numpy())
        progress(len(batch))
    return tuple(
        Feature(name, np.concatenate(found), name == "predicted chunk")
        for name, found in parts.items()
    )


def input_features(model: HookedACT, scenes: Sequence[Scene]) -> tuple[Feature, ...]:
    """What any probe must beat: shrunk pictures, and the state."""
    found = []
    if model.config.cameras:
        pictures = []
        for scene in scenes:
            shrunk = [
                F.adaptive_avg_pool2d(scene.observation[camera.key].float(), _PICTURE).flatten()
                for camera in model.config.cameras
            ]
            pictures.append(torch.cat(shrunk).numpy())
        found.append(Feature("pixels", np.stack(pictures), is_baseline=True))
    if all(STATE_KEY in scene.observation for scene in scenes):
        states = torch.stack([scene.observation[STATE_KEY] for scene in scenes])
        found.append(Feature("state", states.float().numpy(), is_baseline=True))
    return tuple(found)


def untrained(model: HookedACT, *, seed: int = 0) -> HookedACT:
    """A policy of the same shape with random weights; the same normalisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = HookedACT(model.config, model.normalizer)
    return fresh.to(model.action_head.weight).eval().requires_grad_(requires_grad=False)
