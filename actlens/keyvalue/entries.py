"""What an MLP reads over a dataset, episode by episode, with what is known of every moment."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from actlens.config import STATE_KEY
from actlens.errors import SceneError
from actlens.keyvalue.traits import scene_actions, scene_states, trait_names, trait_values
from actlens.model.act import HookedACT
from actlens.model.mlp_site import MLPSite
from actlens.scene import Scene, stack
from actlens.sites import Where
from actlens.store import ActivationStore

EpisodeName = tuple[str, int]
"""A dataset's name and the number of an episode in it."""


@dataclass(frozen=True)
class Entries:
    """Some frames of one episode at one MLP. An entry is a frame and a position.

    Positions are those of the action chunk in a decoder, tokens in the encoder. Geva et al.'s
    (2020) counterpart is the prefix of a sentence.
    """

    episode: EpisodeName
    frames: Int[np.ndarray, " frame"]
    positions: Int[np.ndarray, " position"]
    inputs: Float[Tensor, "frame position d_model"]
    """What the MLP reads."""
    counted: Bool[Tensor, "frame position"]
    """False where a chunk position lies behind the episode's end: nothing was learnt there."""
    trait_names: tuple[str, ...]
    traits: Float[np.ndarray, "frame position trait"]
    """What is known of the moment; NaN where something is not."""


@torch.no_grad()
def run_entries(
    model: HookedACT,
    scenes: Iterable[Scene],
    block: str,
    *,
    batch_size: int = 8,
    progress: Callable[[int], None] = lambda n_scenes: None,
) -> Iterator[Entries]:
    """Run the policy over scenes and give what one MLP read; nothing of it is kept.

    Args:
        scenes: episode by episode, as `Dataset.scenes` gives them.
        block: `decoder.0`, `encoder.2`, ….
        progress: told how many scenes were run, batch by batch.

    Raises:
        HookNameError: if the policy has no such block.
        SceneError: if a scene does not fit the policy, or the model is in training mode.
    """
    site = MLPSite.of(model, block)
    if model.training:
        raise SceneError("The model is in training mode, where dropout is random: call `eval()`.")
    names: tuple[str, ...] | None = None
    stream = iter(scenes)
    while batch := list(islice(stream, batch_size)):
        read = model.run_with_cache(stack(batch), names_filter=site.inputs)[1][site.inputs]
        names = names or trait_names(
            site,
            model.config,
            tuple(batch[0].labels),
            has_state=STATE_KEY in batch[0].observation,
            has_action=batch[0].action is not None,
        )
        numbered = enumerate(batch)
        for episode, members in groupby(numbered, key=lambda it: (it[1].source, it[1].episode)):
            rows, shown = zip(*members, strict=True)
            yield _of_scenes(model, site, episode, shown, read[list(rows)], names)
        progress(len(batch))


def _of_scenes(
    model: HookedACT,
    site: MLPSite,
    episode: EpisodeName,
    scenes: Sequence[Scene],
    inputs: Float[Tensor, "frame position d_model"],
    names: tuple[str, ...],
) -> Entries:
    n_positions = inputs.shape[1]
    counted = torch.ones(inputs.shape[:2], dtype=torch.bool)
    for row, scene in enumerate(scenes):
        if site.in_decoder and scene.action_is_pad is not None:
            counted[row] = ~scene.action_is_pad[:n_positions].cpu()
    frames, positions = np.array([scene.frame for scene in scenes]), np.arange(n_positions)
    traits = trait_values(
        model.config,
        model.tokens,
        site,
        names,
        positions=positions,
        frames=frames,
        labels={
            name: np.array([scene.labels.get(name, np.nan) for scene in scenes])
            for name in scenes[0].labels
        },
        states=scene_states(scenes),
        actions=scene_actions(scenes),
    )
    return Entries(episode, frames, positions, inputs, counted, names, traits)


def stored_entries(store: ActivationStore, block: str) -> Iterator[Entries]:
    """What one MLP read in the scenes of a store, which holds its inputs, whole or in part.

    For a decoder that is `decoder.0.hook_action_vector` or some of its queries
    (`…[query=0]`), for the encoder `encoder.2.hook_normalized_resid_mid`.

    Raises:
        SceneError: if the store does not hold these inputs, or holds them in more than one part.
        StoreError: if a file of it is damaged.
    """
    site = MLPSite(block)
    held = [one for one in store.manifest.sites if one.name == site.inputs]
    if len(held) != 1:
        raise SceneError(
            f"The store holds {site.inputs} in {len(held)} parts; it takes one. It has "
            f"{', '.join(store.sites)}."
        )
    axis, size = held[0].axes[1], held[0].sizes[0]
    positions = _positions(held[0].where, axis, size)
    config, table = store.manifest.config, store.labels
    labels = [name for name in table.columns if name not in ("source", "episode", "frame")]
    has_action = store.manifest.action_shape is not None
    names = trait_names(site, config, labels, has_state=False, has_action=has_action)
    for rows, values in store.by_episode(held[0].address):
        inputs = values[:, None] if values.ndim == 2 else values
        counted = torch.ones(inputs.shape[:2], dtype=torch.bool)
        if site.in_decoder and has_action:
            counted = ~store.action_is_pad[rows][:, positions]
        of = table.iloc[list(rows)]
        frames = np.array(of["frame"])
        traits = trait_values(
            config,
            store.tokens,
            site,
            names,
            positions=positions,
            frames=frames,
            labels={name: np.array(of[name]) for name in labels},
            actions=store.actions[rows].numpy() if site.in_decoder and has_action else None,
        )
        episode = (str(of["source"].iloc[0]), int(of["episode"].iloc[0]))
        yield Entries(episode, frames, positions, inputs, counted, names, traits)


def _positions(where: Where, axis: str, size: int) -> Int[np.ndarray, " position"]:
    chosen = where.get(axis, slice(None))
    if isinstance(chosen, slice):
        return np.arange(size)[chosen]
    return np.arange(size)[np.atleast_1d(chosen)]
