"""The bundled policies' own material: where they were never shown, and where they were."""

from collections.abc import Iterable, Sequence
from math import dist

from actlens.finetuning.errors import FinetuningError
from actlens.finetuning.study import Material
from actlens.model.act import HookedACT
from actlens.scene import Scene
from actlens.scenes.dataset import Dataset, open_dataset
from actlens.scenes.episode import Episode

ANYWHERE, FIVE_PLACES, UNSEEN = (
    "so101-pick-cube",
    "so101-pick-cube-5pos",
    "so101-pick-cube-unseen",
)
FAR = 0.05
"""Metres from all of the five places: a new place for the policy that knows these."""
EVERY = 10
"""Frames between scenes at new places: the bundled policies look again after as many."""


def bundled_material(
    model: HookedACT, policy: str, *, n_new: int = 30, n_elsewhere: int = 10, every: int = EVERY
) -> Material:
    """Scenes for the two bundled policies.

    `so101-pick-cube` adapts to the strip of the table that no demonstration touches, the policy of
    five places to demonstrations of the other dataset that are farther than 5 cm from all of these.
    Old places are every other demonstration of its own, those between are rehearsed.

    Args:
        n_new: episodes at new places, half of which are trained on.
        n_elsewhere: episodes of every other kind.
        every: frames between scenes; twice as many where nothing is trained.

    Raises:
        FinetuningError: for another policy.
    """
    own = open_dataset(policy) if policy in (ANYWHERE, FIVE_PLACES) else None
    if own is None:
        raise FinetuningError(
            f"There is no material for {policy}: the bundled policies are {ANYWHERE} and "
            f"{FIVE_PLACES}. Give demonstrations at new places and its own."
        )
    chunk = model.config.chunk
    sparse = lambda dataset, episodes: scenes_of(
        dataset, evenly(episodes, n_elsewhere), chunk, 2 * every
    )
    if policy == ANYWHERE:
        unseen = open_dataset(UNSEEN)
        by_region = lambda region: [e for e in unseen.episodes if e.labels["region"] == region]
        new, source = by_region("strip"), unseen
        elsewhere = {
            "new places in demonstrated cells": sparse(unseen, by_region("train")),
            "cells between demonstrated ones": sparse(unseen, by_region("held_out")),
        }
    else:
        source = open_dataset(ANYWHERE)
        known = [place_of(own, episode) for episode in own.episodes]
        far, near = [], []
        for episode in source.episodes:
            apart = min(dist(place_of(source, episode), place) for place in known)
            (far if apart > FAR else near).append(episode)
        new, elsewhere = far, {f"within {100 * FAR:g} cm of old places": sparse(source, near)}
    return Material(
        scenes_of(source, evenly(new, n_new), chunk, every),
        {"old places": sparse(own, own.episodes[::2])} | elsewhere,
        sparse(own, own.episodes[1::2]),
    )


def scenes_of(dataset: Dataset, episodes: Iterable[Episode], chunk: int, every: int) -> list[Scene]:
    """Scenes of some episodes, a number of frames apart."""
    chosen = [episode.index for episode in episodes]
    return list(dataset.scenes(chunk=chunk, episodes=chosen, frames=slice(None, None, every)))


def evenly(episodes: Sequence[Episode], n: int) -> list[Episode]:
    """At most n of them, evenly."""
    if len(episodes) <= n:
        return list(episodes)
    return [episodes[i * len(episodes) // n] for i in range(n)]


def place_of(dataset: Dataset, episode: Episode) -> tuple[float, float]:
    """Where the cube stands at the episode's start, metres."""
    labels = dataset.labels(episode.index)
    return float(labels["cube_x"][0]), float(labels["cube_y"][0])
