"""Errors of a policy at scenes with expert actions, beside the nearest demonstration's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Bool

from actlens.kinematics import SO101_SIMULATED
from actlens.model.act import HookedACT
from actlens.notebook import DrawnAsTables
from actlens.retrieval import (
    ALL_JOINTS,
    TIP,
    Demonstrations,
    Errors,
    TaskState,
    Yardstick,
    distance_to_demonstrations,
    function_axis,
    generalisation,
    generalisation_frame,
    run_demonstrations,
    snap_frame,
)
from actlens.retrieval import Observation as State
from actlens.retrieval.function_axis import FunctionAxis
from actlens.retrieval.jackknife import Value
from actlens.scene import Scene, episode_numbers
from actlens.scenes.dataset import Dataset
from actlens.sim.regions import Region, region_of
from actlens.sim.series.pictures import dataset_seen_by
from actlens.statistics import Interval

DEGREES = "arm, degrees"
"""Mean over the joints but the gripper."""
MEASURES = (DEGREES, TIP, ALL_JOINTS)
REGIONS = {
    Region.TRAIN: "new places",
    Region.HELD_OUT: "held-out cells",
    Region.STRIP: "strip",
}
"""Where unseen scenes are, and what tables call it."""
BETWEEN = "between"
"""New places and held-out cells together: between demonstrations that cover the table."""
FIRST, ALL = "frame 0", "all frames"


@dataclass(frozen=True)
class Reference:
    """What all policies are measured with, fitted on all demonstrations of the table.

    With few demonstrations a policy's own would make a poor oracle, and any policy look general.
    """

    yardstick: Yardstick
    task: TaskState

    @classmethod
    def of(cls, scenes: Sequence[Scene]) -> "Reference":
        """From demonstrations that cover the table; their pictures are not looked at."""
        actions = np.stack([s.action.numpy() for s in scenes if s.action is not None])
        padded = np.stack([s.action_is_pad.numpy() for s in scenes if s.action_is_pad is not None])
        labels = {n: np.array([s.labels[n] for s in scenes]) for n in scenes[0].labels}
        frames = np.array([s.frame for s in scenes])
        demonstrations = Demonstrations(
            {}, actions, actions, ~padded, episode_numbers(scenes), frames, labels
        )
        joints = SO101_SIMULATED.joints
        yardstick = Yardstick.of(
            demonstrations.actions, demonstrations.counted, joints=joints, arm=SO101_SIMULATED
        )
        return cls(yardstick, TaskState.of(demonstrations, yardstick))


def reference_of(demonstrations: Dataset, chunk: int, frames: Sequence[int]) -> Reference:
    """From some frames of all episodes; no video is decoded."""
    blind = replace(demonstrations, cameras=())
    return Reference.of(list(blind.scenes(chunk=chunk, frames=list(frames))))


@dataclass(frozen=True)
class Offline(DrawnAsTables):
    """A policy at the scenes it was trained on and at others."""

    trained: Demonstrations
    unseen: Demonstrations
    reference: Reference

    @cached_property
    def axes(self) -> dict[tuple[str, str], FunctionAxis]:
        """(region, frames) -> the function axis; regions also together, as `BETWEEN` and `all`."""
        yardstick, task = self.reference.yardstick, self.reference.task
        return {
            where: function_axis(trained, unseen, yardstick, task)
            for where, (trained, unseen) in self._parts().items()
        }

    def frames(self) -> dict[str, pd.DataFrame]:
        """Tables by name; each with the columns `region` and `frames`.

        `indices`: errors of the policy and of the nearest demonstration, and the generalisation
        index; `snaps`: drawn to the nearest demonstrations; `rest`: other statistics of the
        function axis.
        """
        indices, snaps, rest = [], [], []
        for (region, frames), (trained, unseen) in self._parts().items():
            where = {"region": region, "frames": frames}
            axis = self.axes[region, frames]
            found = _indices(axis, trained, unseen, self.reference.yardstick)
            indices.append(found.assign(**where))
            snaps.append(snap_frame(axis.snaps).assign(**where))
            rest += [where | row for row in _rest(axis)]
        return {
            "indices": pd.concat(indices, ignore_index=True),
            "snaps": pd.concat(snaps, ignore_index=True),
            "rest": pd.DataFrame(rest),
        }

    def _parts(self) -> dict[tuple[str, str], tuple[Demonstrations, Demonstrations]]:
        regions = regions_of(self.unseen)
        strip = regions == REGIONS[Region.STRIP]
        together = {BETWEEN: ~strip, "all": np.ones(len(strip), dtype=bool)}
        chosen = {name: regions == name for name in REGIONS.values()} | together
        found = {}
        for frames, upto in ((FIRST, 0), (ALL, np.inf)):
            known = self.trained.at(self.trained.frames <= upto)
            for name, here in chosen.items():
                rows = here & (self.unseen.frames <= upto)
                if rows.any():
                    found[name, frames] = (known, self.unseen.at(rows))
        return found

    def episodes(self) -> pd.DataFrame:
        """One row per unseen episode: its place, its distance, errors at frame 0 and at all."""
        rows = _by_episode(self.unseen, self.reference.yardstick)
        distance = 1000 * distance_to_demonstrations(self.trained, self.unseen)
        first = np.unique(self.unseen.episodes, return_index=True)[1]
        return rows.assign(distance_mm=distance[first].tolist())

    def demonstrated(self) -> pd.DataFrame:
        """The same of the episodes that it was trained on, without distances."""
        return _by_episode(self.trained, self.reference.yardstick)


def offline(
    model: HookedACT,
    demonstrations: Dataset,
    episodes: Sequence[int],
    unseen: Dataset,
    reference: Reference,
    *,
    frames: Sequence[int],
    progress: Callable[[int], None] = lambda n_scenes: None,
) -> Offline:
    """Run a policy at some frames of what it was trained on and of what it was not.

    Args:
        episodes: of `demonstrations`, those that it was trained on.
        frames: of every episode; the first must be 0.

    Raises:
        SceneError: if a dataset has no such episode or frame, or does not fit the policy.
        RetrievalError: if too few episodes were demonstrated for an axis.
    """
    every = [episode.index for episode in unseen.episodes]
    run = lambda dataset, some: run_demonstrations(
        model, dataset_seen_by(model, dataset, some, frames), (State(),), progress=progress
    )
    return Offline(run(demonstrations, episodes), run(unseen, every), reference)


def regions_of(scenes: Demonstrations) -> np.ndarray:
    """The name of the region where each scene's episode starts."""
    names = np.empty(len(scenes), dtype=object)
    for episode in np.unique(scenes.episodes):
        here = np.flatnonzero(scenes.episodes == episode)
        start = here[scenes.frames[here].argmin()]
        place = scenes.labels["cube_x"][start], scenes.labels["cube_y"][start]
        names[here] = REGIONS.get(region_of(*place), "off the table")
    return names


def with_degrees(errors: Errors) -> Errors:
    """The same with the mean of the arm's joints, in degrees, as one more measure."""
    arm = [i for i, name in enumerate(errors.measures) if name in SO101_SIMULATED.joints[:-1]]
    sums = np.concatenate([errors.sums, errors.sums[arm].mean(0, keepdims=True)])
    return replace(errors, measures=(*errors.measures, DEGREES), sums=sums)


def _by_episode(scenes: Demonstrations, yardstick: Yardstick) -> pd.DataFrame:
    errors = with_degrees(yardstick.errors(scenes.predicted, scenes.actions, scenes.counted))
    rows, regions = [], regions_of(scenes)
    for episode in np.unique(scenes.episodes):
        here = scenes.episodes == episode
        first = here & (scenes.frames == 0)
        start = int(np.flatnonzero(here)[0])
        row = {
            "x": float(scenes.labels["cube_x"][start]),
            "y": float(scenes.labels["cube_y"][start]),
            "region": str(regions[start]),
        }
        for measure in (DEGREES, TIP):
            row[measure] = _mean(errors, measure, here)
            row[f"{measure}, {FIRST}"] = _mean(errors, measure, first)
        rows.append(row)
    return pd.DataFrame(rows)


def _indices(
    axis: FunctionAxis, trained: Demonstrations, unseen: Demonstrations, yardstick: Yardstick
) -> pd.DataFrame:
    known = with_degrees(yardstick.errors(trained.predicted, trained.actions, trained.counted))
    found = generalisation(
        known,
        with_degrees(axis.policy),
        with_degrees(axis.retrieval),
        trained_episodes=trained.episodes,
        unseen_episodes=unseen.episodes,
        measures=MEASURES,
    )
    intervals = [
        {
            f"{name}{end}": float(getattr(value, bound))
            for name, value in (("policy_trained", one.trained), ("policy_unseen", one.unseen))
            for end, bound in (("_low", "low"), ("_high", "high"))
        }
        for one in found
    ]
    table = pd.concat([generalisation_frame(found), pd.DataFrame(intervals)], axis=1)
    return table.assign(episodes=unseen.n_episodes)


def _rest(axis: FunctionAxis) -> list[dict]:
    similarity = axis.similarity
    values = {
        "growth of policy": axis.growth_of_policy,
        "growth of retrieval": axis.growth_of_retrieval,
        "lookup similarity": similarity.policy,
        "lookup similarity of expert": similarity.expert,
        "lookup similarity, excess": similarity.excess,
        "novelty": similarity.novelty,
    }
    return [{"statistic": name, **_numbers(value)} for name, value in values.items()]


def _numbers(value: Value) -> dict:
    if isinstance(value, Interval):
        return {
            "value": float(value.estimate),
            "low": float(value.low),
            "high": float(value.high),
            "undefined": "",
        }
    return {"value": np.nan, "low": np.nan, "high": np.nan, "undefined": value.reason}


def _mean(errors: Errors, measure: str, here: Bool[np.ndarray, " scene"]) -> float:
    return float(errors.of(measure)[here].sum() / max(1, errors.n[here].sum()))
