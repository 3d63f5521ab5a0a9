"""Does the distance to the demonstrations warn of rollouts that will fail?

Every site's monitor is calibrated on the demonstrations alone; failures only judge it. Two times of
looking: the first inference, and the farthest of those until the gripper closes. A monitor that
sees no more than that the cube stands where nobody demonstrated is no news about the policy: the
cube's distance from the nearest demonstrated start is the rival. Pooled over regions, any score
that tells regions apart looks good where their failure rates differ; areas within regions do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Bool, Float

from actlens.retrieval import (
    Demonstrations,
    Metric,
    Monitor,
    RetrievalError,
)
from actlens.retrieval.sites import Pixels
from actlens.sim.kept_rollouts import KeptRollout
from actlens.sim.kinematics import JOINTS
from actlens.sim.rollout import HALF_CLOSED
from actlens.sim.substitution import flat_keys

ORACLE_DISTANCE = "cube from demonstrated starts (oracle)"
CONSTANT = "constant"
_METRICS = {Pixels().name: Metric.PLAIN}
"""Demonstrations were compressed as films and a live picture is not: where only that noise varies,
a square of the picture must not be measured in its spread."""
_STATE = "state"
_GRIPPER = JOINTS.index("gripper.pos")


class When(StrEnum):
    """The inferences of a rollout that a score is made of."""

    FIRST = "first inference"
    UNTIL_CLOSED = "farthest until closing"


@dataclass(frozen=True)
class Score:
    """One monitor's verdict on every rollout: the farther, the more suspicious."""

    site: str
    when: When
    values: Float[np.ndarray, " rollout"]
    threshold: float
    """Of the demonstrations alone: so many false alarms as are promised, on new ones like them."""


def scores(
    rollouts: Sequence[KeptRollout],
    demonstrations: Demonstrations,
    positions: tuple[int, ...],
    every: int,
    *,
    false_alarms: float = 0.05,
) -> tuple[Score, ...]:
    """Distances to the nearest demonstration at every watched site, and two baselines.

    Args:
        rollouts: watched ones of the undisturbed policy.
        demonstrations: with keys of the same sites, labels `cube_x` and `cube_y`, and `state` among
            the keys if it is to be known when demonstrations close the gripper.
        positions: of the chunk, that make the key of a site with one for every position.
        every: control steps between two inferences.
        false_alarms: promised share of rollouts like the demonstrations.

    Raises:
        RetrievalError: if a rollout was not watched, or demonstrations are too few for the promise.
    """
    if not rollouts or not all(one.keys for one in rollouts):
        raise RetrievalError("Scores are of watched rollouts; there is none, or one without keys.")
    first = demonstrations.frames == 0
    early = (demonstrations.frames % every == 0) & _until_closed(demonstrations)
    rows = {When.FIRST: first, When.UNTIL_CLOSED: early}
    made = []
    for site in rollouts[0].keys:
        keys = flat_keys(demonstrations, site, positions)
        for when, at in rows.items():
            monitor = Monitor.of(
                keys[at], demonstrations.episodes[at], false_alarms=false_alarms,
                metric=_METRICS.get(site, Metric.STANDARDISED),
            )  # fmt: skip
            far = [monitor.distances(_asked(one, site, when, every)).max() for one in rollouts]
            made.append(Score(site, when, np.array(far), monitor.threshold))
    starts = np.stack([demonstrations.labels[name][first] for name in ("cube_x", "cube_y")], 1)
    oracle = Monitor.of(
        starts, demonstrations.episodes[first], false_alarms=false_alarms, metric=Metric.PLAIN
    )
    places = np.array([one.cube_xy for one in rollouts])
    made.append(Score(ORACLE_DISTANCE, When.FIRST, oracle.distances(places), oracle.threshold))
    made.append(Score(CONSTANT, When.FIRST, np.zeros(len(rollouts)), 0.0))
    return tuple(made)


def _asked(one: KeptRollout, site: str, when: When, every: int) -> Float[np.ndarray, "inference d"]:
    """Its keys at the inferences that count; the first always does."""
    n = 1 if when is When.FIRST else max(1, -(-one.closing_step // every))
    return one.keys[site][:n]


def _until_closed(demonstrations: Demonstrations) -> Bool[np.ndarray, " scene"]:
    """Which scenes come before their episode closes the gripper; all if nothing tells."""
    if _STATE not in demonstrations.keys:
        return np.ones(len(demonstrations), dtype=bool)
    gripper = demonstrations.keys[_STATE][:, _GRIPPER]
    before = np.zeros(len(demonstrations), dtype=bool)
    for episode in np.unique(demonstrations.episodes):
        rows = np.flatnonzero(demonstrations.episodes == episode)
        rows = rows[np.argsort(demonstrations.frames[rows])]
        opened = np.maximum.accumulate(gripper[rows]) > HALF_CLOSED
        closing = np.flatnonzero(opened & (gripper[rows] <= HALF_CLOSED))
        before[rows[: closing[0] if len(closing) else None]] = True
    return before
