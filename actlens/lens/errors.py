"""How far decoded chunks are from the policy's and from the expert's, with intervals by episode."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from actlens.kinematics import Arm
from actlens.lens.decodings import Decodings, State
from actlens.lens.places import Variant
from actlens.statistics import Interval, pooled_ratio

if TYPE_CHECKING:
    import pandas as pd


class Against(StrEnum):
    """What a decoded chunk is compared with."""

    POLICY = "policy"
    EXPERT = "expert"


@dataclass(frozen=True)
class Scale:
    """In which units distances between chunks are told."""

    spread: Float[np.ndarray, " joint"]
    """One normalised unit of each joint, in dataset units."""
    arm: Arm | None
    """Whose gripper's way is measured; None if it is not known."""
    seed: int = 0
    """Of bootstraps."""

    @property
    def moving(self) -> Float[np.ndarray, " joint"]:
        """The spread; infinite for joints that the demonstrations never move."""
        return np.where(self.spread > 0, self.spread, np.inf)


Sums = Float[np.ndarray, "state scene"]


def squared(chunks: np.ndarray, other: np.ndarray, weights: np.ndarray) -> Sums:
    """Weighted sums over positions of the joints' mean squared difference."""
    off = np.square(chunks.astype(np.float64) - other).mean(-1)
    return (off * weights).sum(-1)


def tip_apart(arm: Arm, chunks: np.ndarray, other: np.ndarray, weights: np.ndarray) -> Sums:
    """Weighted sums over positions of the distance between gripper tips, in mm."""
    apart = np.linalg.norm(arm.tip(chunks) - arm.tip(other), axis=-1)
    return 1000 * (apart * weights).sum(-1)


def error_rows(all_of: Sequence[Decodings], scale: Scale) -> list[dict]:
    """One row per set, moment, state and what it is compared with.

    `rms` is the root mean square over positions and joints in dataset units (degrees, and percent
    of the gripper), `normalised` the same in units of the demonstrations' spread, `tip_mm` the mean
    distance of the gripper's tip at the same position of the chunk.
    """
    rows = []
    for part in all_of:
        for against, other in ((Against.POLICY, part.policy), (Against.EXPERT, part.expert)):
            found = _measures(part, other, scale)
            rows += [
                labels(part, state)
                | {"against": against}
                | {key: value[i] for key, value in found.items()}
                for i, state in enumerate(part.states)
            ]
    return rows


def labels(part: Decodings, state: State) -> dict:
    """What every table says of a row: the scenes, and the state."""
    place = asdict(state.place) | {"place": state.place.name, "variant": state.variant}
    n_episodes = len(np.unique(part.episodes))
    sizes = {"scenes": part.policy.shape[0], "episodes": n_episodes}
    return {"set": part.name, "when": part.when} | place | sizes


def overstatement_rows(all_of: Sequence[Decodings], scale: Scale) -> list[dict]:
    """By how much the raw lens' error is larger than the tuned one's, against the policy."""
    rows = []
    for part in all_of:
        for state in part.states:
            raw = State(state.place, Variant.RAW)
            if state.variant is Variant.TUNED and raw in part.states:
                ratio = error_ratio(part, raw, state, scale)
                rows.append(labels(part, state) | _columns("factor", ratio))
    return rows


def error_ratio(part: Decodings, above: State, below: State, scale: Scale) -> Interval:
    """One state's error over another's, against the policy, in units of each joint's spread."""
    above_, below_ = (
        squared(part.chunks[i] / scale.moving, part.policy / scale.moving, part.weights)
        for i in (part.states.index(above), part.states.index(below))
    )
    return _root(_pooled(above_, below_, part, scale))


def _measures(part: Decodings, other: np.ndarray, scale: Scale) -> dict[str, np.ndarray]:
    n = part.weights.sum(1)
    plain = squared(part.chunks, other, part.weights)
    normal = squared(part.chunks / scale.moving, other / scale.moving, part.weights)
    found = _columns("rms", _root(_pooled(plain, n, part, scale)))
    found |= _columns("normalised", _root(_pooled(normal, n, part, scale)))
    if scale.arm is not None:
        tips = tip_apart(scale.arm, part.chunks, other, part.weights)
        found |= _columns("tip_mm", _pooled(tips, n, part, scale))
    return found


def _pooled(above: np.ndarray, below: np.ndarray, part: Decodings, scale: Scale) -> Interval:
    return pooled_ratio(above, below, clusters=part.episodes, seed=scale.seed)


def _root(squares: Interval) -> Interval:
    return Interval(*(np.sqrt(x) for x in (squares.estimate, squares.low, squares.high)))


def _columns(name: str, found: Interval) -> dict[str, np.ndarray]:
    return {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}


def frame_of(rows: Sequence[dict]) -> "pd.DataFrame":
    """Rows as a table; enums as their words."""
    import pandas as pd

    plain = [
        {key: str(value) if isinstance(value, StrEnum) else value for key, value in row.items()}
        for row in rows
    ]
    return pd.DataFrame(plain)
