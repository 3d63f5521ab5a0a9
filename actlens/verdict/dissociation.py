"""Does the policy know where the object is, and does it act on it? Two errors, one tolerance.

The hypothesis of a decoder that memorises says: at unseen places the action vector still holds the
place (a linear probe reads it), and the action is wrong all the same. So every unseen scene falls
into one of four cells: probe good or bad, action good or bad. Both errors are distances in mm, of
the place that is read and of the place that the gripper is sent to, and share one tolerance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from actlens.errors import SceneError
from actlens.kinematics import Arm
from actlens.probing import Fold, baselines, grouped_folds, predictions
from actlens.retrieval import Demonstrations
from actlens.statistics import Interval, pooled_ratio, wilson

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 20.0
"""mm: how far off the gripper of the simulated arm may close and still hold the cube."""

_GOOD = {"good": True, "bad": False}


@dataclass(frozen=True)
class Dissociation:
    """Scenes by cell; shares have intervals by episode, Wilson's where all or none are in one."""

    probe_good: Bool[np.ndarray, " scene"]
    guess_good: Bool[np.ndarray, " scene"]
    """Whether a constant would do, the mean place of the demonstrations, or of the other unseen
    scenes for a taught probe: what a probe must beat."""
    action_good: Bool[np.ndarray, " scene"]
    episodes: Int[np.ndarray, " scene"]
    tolerance: float
    seed: int = 0
    """Of the bootstrap."""

    @property
    def read(self) -> Interval:
        """Of all scenes, those whose place is read well."""
        return self._ratio(self.probe_good, np.ones(len(self.episodes), bool))

    @property
    def guessed(self) -> float:
        """Of all scenes, those for which a mean place would do."""
        return float(self.guess_good.mean())

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
        share, low, high = found.estimate[0], found.low[0], found.high[0]
        if np.isfinite(low) and share in (0.0, 1.0):  # a bootstrap of all or none has no width
            n = len(np.unique(self.episodes[of]))
            low, high = wilson(n if share else 0, n)
        return Interval(*(np.asarray(x) for x in (share, low, high)))


def dissociation(
    demonstrations: Demonstrations,
    unseen: Demonstrations | None,
    arm: Arm,
    *,
    place: Sequence[str] = ("cube_x", "cube_y"),
    site: str = "action vector",
    position: int = -1,
    taught: bool = False,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> Dissociation:
    """Read the object's place off the vector that one action is made from, and look at that action.

    Args:
        demonstrations: of one frame; the probe is fitted on them.
        unseen: other scenes; None for the demonstrations themselves, each read by a probe of other
            episodes. Scenes whose episode has ended at the position are left out.
        arm: puts the gripper where the action asks for it.
        place: labels of the object's place, metres.
        site: key of the vectors, which has one for each position of the chunk.
        position: of the chunk; the last by default, as far as one inference looks ahead.
        taught: let the probe learn from other unseen episodes as well. Whether the vector holds the
            place is one question, whether the demonstrations' own read-out finds it there another:
            a policy's head cannot be taught.

    Raises:
        SceneError: if labels are missing, or no scene is left.
    """
    asked = demonstrations if unseen is None else unseen
    parts = [_still_counted(one, position, place) for one in (demonstrations, asked)]
    known, new = parts
    if not len(known) or not len(new):
        raise SceneError("No scene is left whose episode goes on that long.")
    where = lambda scenes: 1000 * np.stack([scenes.labels[name] for name in place], 1)
    vectors = lambda scenes: scenes.keys[site][:, position]
    if unseen is None:
        x, y, groups = vectors(known), where(known), known.episodes
        folds = list(grouped_folds(groups))
        read, guess = predictions(x, y, groups, folds), baselines(y, folds)
    else:
        x = np.concatenate([vectors(known), vectors(new)])
        y = np.concatenate([where(known), where(new)])
        groups = np.concatenate([known.episodes, new.episodes + known.episodes.max() + 1])
        own, rest = np.arange(len(known)), np.arange(len(known), len(y))
        folds = middle = [Fold(own, rest)]
        if taught:
            parts = list(grouped_folds(new.episodes))
            middle = [Fold(rest[part.train], rest[part.test]) for part in parts]
            folds = [Fold(np.concatenate([own, part.train]), part.test) for part in middle]
        read = predictions(x, y, groups, folds)[len(known) :]
        guess = baselines(y, middle)[len(known) :]
    off = lambda found: np.linalg.norm(found - where(new), axis=1)
    tips = [arm.tip(chunk[:, position]) for chunk in (new.predicted, new.actions)]
    missed = 1000 * np.linalg.norm(tips[0] - tips[1], axis=1)
    return Dissociation(
        off(read) <= tolerance,
        off(guess) <= tolerance,
        missed <= tolerance,
        new.episodes,
        tolerance,
        seed,
    )


def _still_counted(scenes: Demonstrations, position: int, place: Sequence[str]) -> Demonstrations:
    if missing := [name for name in place if name not in scenes.labels]:
        known = ", ".join(scenes.labels) or "none"
        raise SceneError(f"Scenes have no label {missing[0]!r}; they have {known}.")
    return scenes.at(np.flatnonzero(scenes.counted[:, position]))


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
        cells["read"] = table.read
        cells |= {f"wrong_with_{read}_probe": table.wrong(probe=_GOOD[read]) for read in _GOOD}
        row["guessed"] = table.guessed
        for cell, found in cells.items():
            row |= {
                cell: float(found.estimate),
                f"{cell}_low": float(found.low),
                f"{cell}_high": float(found.high),
            }
        rows.append(row)
    return pd.DataFrame(rows)
