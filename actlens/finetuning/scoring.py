"""How far a policy is from the expert in kept scenes, before and after training."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from actlens.config import ACTION_KEY
from actlens.finetuning.kept import Behind, KeptScenes
from actlens.finetuning.tuned import TunedPart
from actlens.kinematics import Arm
from actlens.metrics import executed_positions
from actlens.model.act import HookedACT
from actlens.statistics import Interval, pooled_ratio, sign_flip_p

DEGREES = "joints, degrees"
"""Mean absolute error of the arm's joints; the gripper's percent are left out."""
UNITS = "joints, dataset units"
"""Mean absolute error of all joints, where the arm is not known."""
TIP = "tip, mm"
"""Distance between the points between the jaws that the commands ask for."""
_BATCH = 32


@dataclass(frozen=True)
class Errors:
    """Sums over the demonstrated positions that are carried out, by scene."""

    measures: tuple[str, ...]
    sums: Float[np.ndarray, "measure scene"]
    n: Int[np.ndarray, " scene"]
    episodes: Int[np.ndarray, " scene"]

    def mean(self) -> Interval:
        """By measure, with an interval by episode."""
        return pooled_ratio(self.sums, self.n.astype(float), clusters=self.episodes)

    def minus(self, other: "Errors") -> Interval:
        """Mean difference from another on the same scenes."""
        return pooled_ratio(self.sums - other.sums, self.n.astype(float), clusters=self.episodes)

    def cut(self, before: "Errors") -> Interval:
        """1 - this / before: 1 if no error is left, 0 as before, negative if it grew."""
        return pooled_ratio(before.sums - self.sums, before.sums, clusters=self.episodes)

    def differs_p(self, other: "Errors") -> Float[np.ndarray, " measure"]:
        """That episodes' errors differ from another's by chance: signs flipped by episode."""
        return sign_flip_p(self.sums - other.sums, clusters=self.episodes)

    def of_episodes(self, chosen: Int[np.ndarray, " episode"]) -> "Errors":
        """Those of some episodes."""
        rows = np.isin(self.episodes, chosen)
        return Errors(self.measures, self.sums[:, rows], self.n[rows], self.episodes[rows])


@torch.no_grad()
def errors(model: HookedACT, kept: KeptScenes, tuned: TunedPart, arm: Arm | None) -> Errors:
    """The errors with a part's trained weights.

    Args:
        arm: in whose joints and millimetres; dataset units if it is not known.
    """
    behind, at = Behind(model, tuned.part), list(executed_positions(model.config))
    unnormalize = lambda x: model.normalizer.unnormalize(ACTION_KEY, x)[:, at]
    sums, counts = [], []
    for part in kept.batches(_BATCH):
        answered = unnormalize(behind.with_weights(tuned.after, part.activations))
        expert, counted = unnormalize(part.target), part.counted[:, at]
        off = (answered - expert).abs().double()
        if arm is None:
            columns = [off.mean(-1)]
        else:
            apart = (arm.tip(answered) - arm.tip(expert)).norm(dim=-1)
            columns = [off[..., :-1].mean(-1), 1000 * apart]  # the gripper is the last
        sums.append((torch.stack(columns) * counted).sum(-1))
        counts.append(counted.sum(-1))
    return Errors(
        (UNITS,) if arm is None else (DEGREES, TIP),
        torch.cat(sums, -1).cpu().numpy(),
        torch.cat(counts).cpu().numpy(),
        kept.episodes,
    )


def averaged(parts: list[Errors]) -> Errors:
    """The mean of the errors of several trainings on the same scenes."""
    first = parts[0]
    sums = np.mean([part.sums for part in parts], axis=0)
    return Errors(first.measures, sums, first.n, first.episodes)


def joined(parts: list[Errors]) -> Errors:
    """Errors on different scenes, one after the other."""
    return Errors(
        parts[0].measures,
        np.concatenate([part.sums for part in parts], axis=1),
        np.concatenate([part.n for part in parts]),
        np.concatenate([part.episodes for part in parts]),
    )
