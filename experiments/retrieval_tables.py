"""Tables of the battery: retrieval, function, a table's size, a monitor."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool

from actlens.mechanism import some_executed
from actlens.model.act import HookedACT
from actlens.retrieval import (
    ALL_JOINTS,
    TIP,
    Demonstrations,
    FunctionAxis,
    Kernel,
    Metric,
    Retrieval,
    Ridge,
    TaskState,
    Yardstick,
    by_episode_mean,
    climb,
    function_axis,
    large_errors,
    table_size,
    warned,
    warned_frame,
)
from actlens.scenes.dataset import Dataset
from experiments.retrieval_scenes import BETWEEN, BEYOND, Known

DEMONSTRATIONS, UNSEEN = "demonstrations", "all unseen"
AT_FRAME_0 = "{}, frame 0"
_POSITIONS = 10
"""Of a chunk, about so many are answered by the ladder: neighbouring ones hardly differ."""
_NEIGHBOURS = 10
_COUNTED = 20_000
"""Demonstrated actions whose cells are counted, at most."""
WATCHED = ("pixels", "state", "environment", "encoder output, mean", "action vector")
"""Sites of a monitor, as far as a policy has them."""


@dataclass(frozen=True)
class Options:
    """What is measured, and how."""

    place: tuple[str, ...]
    tolerances: tuple[float, ...]
    false_alarms: float
    quick: bool
    seed: int


@dataclass(frozen=True)
class Unseen:
    """Scenes of episodes that were not demonstrated."""

    known: Known
    regions: dict[str, Bool[np.ndarray, " scene"]]
    beyond: Bool[np.ndarray, " scene"]


def ladder_table(
    ran: Demonstrations,
    unseen: Unseen | None,
    yardstick: Yardstick,
    task: TaskState | None,
    options: Options,
) -> pd.DataFrame:
    """Retrieval at every site and its rivals, across episodes and at unseen scenes."""
    chunk = ran.actions.shape[1]
    at = range(0, chunk, max(1, chunk // _POSITIONS))
    thin = ran.at_positions(at)
    k = _neighbours(thin)
    estimators = (Retrieval(1), Retrieval(k, soft=True), Kernel(), Ridge())
    metrics = (Metric.STANDARDISED,) if options.quick else (Metric.STANDARDISED, Metric.COSINE)
    asked: dict[str, Demonstrations | None] = {DEMONSTRATIONS: None}
    if unseen is not None:
        asked[UNSEEN] = unseen.known.ran.at_positions(at)
    found = []
    for name, scenes in asked.items():
        ladder = climb(thin, yardstick, scenes, estimators=estimators, metrics=metrics, task=task)
        table = ladder.frame()
        found.append(table.assign(scenes=name)[["scenes", *table.columns]])
    return pd.concat(found, ignore_index=True)


def _neighbours(ran: Demonstrations) -> int:
    """As many as there are in other episodes at every position, ten at most."""
    left = []
    for column in ran.counted.T:
        _, of_episode = np.unique(ran.episodes[column], return_counts=True)
        if len(of_episode):
            left.append(int(of_episode.sum() - of_episode.max()))
    return max(1, min(_NEIGHBOURS, *left))


def function_axes(
    ran: Demonstrations, unseen: Unseen, yardstick: Yardstick, options: Options
) -> dict[str, FunctionAxis]:
    """By the name of the scenes."""
    every = np.ones(len(unseen.beyond), dtype=bool)
    sets = {UNSEEN: every, BETWEEN: ~unseen.beyond, BEYOND: unseen.beyond}
    for name, rows in unseen.regions.items():
        if not any((rows == other).all() for other in sets.values()):
            sets[name] = rows
    frames = np.unique(unseen.known.ran.frames)
    axes = {}
    for name, rows in sets.items():
        for frame in (None, *frames[:1]) if len(frames) > 1 else (None,):
            here = rows if frame is None else rows & (unseen.known.ran.frames == frame)
            if not here.any():
                continue
            shown = ran if frame is None else ran.at(ran.frames == frame)
            axes[name if frame is None else AT_FRAME_0.format(name)] = function_axis(
                shown,
                unseen.known.ran.at(here),
                yardstick,
                TaskState.of(shown, yardstick),
                position=options.place,
            )
    return axes


def scene_table(unseen: Unseen, axis: FunctionAxis, place: Sequence[str]) -> pd.DataFrame:
    """One row an unseen scene: where it is and what the policy and retrieval make of it."""
    ran = unseen.known.ran
    names = np.full(len(ran), "", dtype=object)
    for name, rows in unseen.regions.items():
        names[rows] = name
    table = pd.DataFrame(
        {
            "scenes": names,
            "episode": [scene.episode for scene in unseen.known.scenes],
            "frame": ran.frames,
            **{label: ran.labels[label] for label in place},
            "distance": axis.distance,
        }
    )
    for who, errors in (("policy", axis.policy), ("nearest", axis.retrieval)):
        for measure in (m for m in (ALL_JOINTS, TIP) if m in errors.measures):
            mean = errors.of(measure) / np.maximum(errors.n, 1)
            table[f"{who}, {measure}"] = np.where(errors.n > 0, mean, np.nan).tolist()
    return table


def capacity_table(model: HookedACT, dataset: Dataset, tolerances: Sequence[float]) -> pd.DataFrame:
    """Cells that a table of the demonstrated actions would need."""
    actions = np.concatenate([dataset.actions(episode.index) for episode in dataset.episodes])
    spread = float(np.median(actions.std(0)))
    actions = actions[:: -(-len(actions) // _COUNTED)]
    rows = []
    for tolerance in tolerances:
        size = table_size(actions, tolerance, model.config.d_mlp)
        fits = {True: "yes", False: "no", None: "perhaps"}[size.fits]
        rows.append(
            {
                "tolerance": tolerance,
                "spreads": tolerance / spread if spread else np.nan,
                "actions": size.actions,
                "cells": size.cells,
                "at_least": size.at_least,
                "neurons": size.neurons,
                "fits": fits,
            }
        )
    return pd.DataFrame(rows)


def monitor_table(
    model: HookedACT,
    ran: Demonstrations,
    unseen: Unseen,
    yardstick: Yardstick,
    options: Options,
) -> pd.DataFrame:
    """When a monitor at some sites would warn of unseen scenes."""
    errors = lambda d: by_episode_mean(
        yardstick.errors(d.predicted, d.actions, d.counted), d.episodes
    )
    found = warned(
        ran,
        unseen.known.ran,
        large_errors(errors(ran), errors(unseen.known.ran)),
        unseen.regions,
        sites=[site for site in WATCHED if site in ran.keys],
        positions=some_executed(model),
        false_alarms=options.false_alarms,
    )
    return warned_frame(found)
