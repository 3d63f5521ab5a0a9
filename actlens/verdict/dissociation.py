"""Does the policy know where the object is, and does it act on it? Two errors, one tolerance.

The hypothesis of a decoder that memorises says: at unseen places the action vector still holds the
place (a linear probe reads it), and the action is wrong all the same. So every unseen scene falls
into one of four cells: probe good or bad, action good or bad. Both errors are distances in mm, of
the place that is read and of the place that the gripper is sent to, and share one tolerance.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from actlens.errors import SceneError
from actlens.statistics import Interval, pooled_ratio

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 20.0
"""mm: how far off the gripper of the simulated arm may close and still hold the cube."""

_GOOD = {"good": True, "bad": False}


@dataclass(frozen=True)
class Dissociation:
    """Scenes by cell; shares have intervals by episode."""

    probe_good: Bool[np.ndarray, " scene"]
    action_good: Bool[np.ndarray, " scene"]
    episodes: Int[np.ndarray, " scene"]
    tolerance: float
    seed: int = 0
    """Of the bootstrap."""

    def share(self, *, probe: bool, action: bool) -> Interval:
        """Of all scenes, those in one cell."""
        return self._ratio(
            self._cell(probe=probe, action=action), np.ones(len(self.episodes), bool)
        )

    def wrong(self, *, probe: bool) -> Interval:
        """Of the scenes whose place is read well (or badly), those that are acted on badly."""
        return self._ratio(self._cell(probe=probe, action=False), self.probe_good == probe)

    def _cell(self, *, probe: bool, action: bool) -> Bool[np.ndarray, " scene"]:
        return (self.probe_good == probe) & (self.action_good == action)

    def _ratio(self, some: Bool[np.ndarray, " scene"], of: Bool[np.ndarray, " scene"]) -> Interval:
        found = pooled_ratio(
            some[None].astype(float), of[None].astype(float), clusters=self.episodes, seed=self.seed
        )
        return Interval(found.estimate[0], found.low[0], found.high[0])


def dissociation(
    probe_error: Float[np.ndarray, " scene"],
    action_error: Float[np.ndarray, " scene"],
    episodes: Int[np.ndarray, " scene"],
    *,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> Dissociation:
    """The table of unseen scenes.

    Args:
        probe_error: of the object's place as read off the action vector by a probe that was fitted
            on demonstrations, mm.
        action_error: between where the policy and where the expert would put the gripper, mm.

    Raises:
        SceneError: if there is no scene, or not one of each for every scene.
    """
    shapes = {len(probe_error), len(action_error), len(episodes)}
    if len(shapes) > 1 or not len(episodes):
        raise SceneError(
            f"{len(probe_error)} probe errors, {len(action_error)} action errors and "
            f"{len(episodes)} episodes must be of the same scenes, one at least."
        )
    return Dissociation(
        np.asarray(probe_error) <= tolerance,
        np.asarray(action_error) <= tolerance,
        np.asarray(episodes),
        tolerance,
        seed,
    )


def dissociation_frame(tables: Mapping[str, Dissociation]) -> "pd.DataFrame":
    """One row a set of scenes: the four shares with intervals, and the wrong ones by probe."""
    import pandas as pd

    rows = []
    for name, table in tables.items():
        row: dict[str, object] = {
            "scenes": name,
            "n_scenes": len(table.episodes),
            "n_episodes": len(np.unique(table.episodes)),
            "tolerance_mm": table.tolerance,
        }
        cells = {
            f"{read}_probe_{acted}_action": table.share(probe=_GOOD[read], action=_GOOD[acted])
            for read in _GOOD
            for acted in _GOOD
        }
        cells |= {f"wrong_with_{read}_probe": table.wrong(probe=_GOOD[read]) for read in _GOOD}
        for cell, found in cells.items():
            row |= {
                cell: float(found.estimate),
                f"{cell}_low": float(found.low),
                f"{cell}_high": float(found.high),
            }
        rows.append(row)
    return pd.DataFrame(rows)
