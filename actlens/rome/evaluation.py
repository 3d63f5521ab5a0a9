"""What a change of the policy does: in the scene it was asked for, near it, and far from it.

After the metrics of CounterFact (Meng et al. 2022, section 3.4). There an answer is right or wrong;
here it is a chunk of actions, and an effect is a share of the change that was asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from actlens.config import ACTION_KEY
from actlens.interventions.mlp_runs import MLPRuns
from actlens.metrics import project
from actlens.model.units import spread_of
from actlens.rome.cases import Case
from actlens.rome.errors import EditError
from actlens.rome.probes import Role
from actlens.rome.request import JointLimits
from actlens.rome.rivals import Change
from actlens.rome.targets import TargetSet


class Measure(StrEnum):
    """What is measured in every scene, a mean over the scenes of a group."""

    CARRIED = "carried"
    """Share of the asked-for change that came about, along it: <change, asked> / |asked|^2."""
    OVER_HALF = "over_half"
    """Whether more than half of it came about: the counterpart of "the new answer is likelier"."""
    GRANTED = "granted"
    """Whether every action at the asked-for positions is within the tolerance of what is asked."""
    DRIFT = "drift"
    """|change| of the asked-for joints, over |asked|; means over positions and joints."""
    OTHER_JOINTS = "other_joints"
    """|change| of the other joints, over |asked|: in spreads of each joint's data."""
    NOT_ASKED = "not_asked"
    """|change| of the asked-for joints at the other chunk positions, over |asked|."""
    ROUGHNESS = "roughness"
    """Second differences along the chunk, of the asked-for joints: after over before."""
    BEYOND = "beyond"
    """Share of actions beyond the joints' limits, more than before."""


MEASURES = tuple(Measure)
Make = Callable[[Case], Change]
"""Makes the change that is to grant a case's request."""


@dataclass(frozen=True)
class Scale:
    """The units of an evaluation."""

    tolerance: float
    """Dataset units, on every joint."""
    limits: JointLimits | None


def measure(
    case: Case, change: Change, found: TargetSet, scale: Scale
) -> Float[np.ndarray, "group measure"]:
    """A change in all scenes around a case's target; NaN for groups without a scene.

    Shares are of the change that was asked for in the target's own scene, which is what other
    scenes should do on top of their own actions, or should not.
    """
    probes = case.target.probes
    chosen = [i for members in probes for i in members]
    runs = found.runs.of_scenes(chosen)
    values = _in_scenes(case, change(runs), runs, scale)
    table, start = np.full((len(probes), len(MEASURES)), np.nan), 0
    for g, members in enumerate(probes):
        if members:
            table[g] = values[start : start + len(members)].mean(0)
        start += len(members)
    return table


def _in_scenes(
    case: Case, after: Float[Tensor, "scene chunk joint"], runs: MLPRuns, scale: Scale
) -> Float[np.ndarray, "scene measure"]:
    before, after = runs.actions.double(), after.double()
    at, joints = case.positions, case.joints
    others = [j for j in range(before.shape[2]) if j not in joints]
    elsewhere = [k for k in range(before.shape[1]) if k not in at]
    asked = case.asked.double()
    moved = after - before
    carried = project(after[:, at], before[:, at], before[:, at] + asked).share
    unit = spread_of(case.prepared.model, ACTION_KEY, before)
    missed = ((moved[:, at] - asked).abs() * unit).amax((1, 2))
    size = asked[:, joints].abs().mean()
    relative = lambda x: x.abs().mean((1, 2)) / size if x.numel() else _none(x)
    columns = {
        Measure.CARRIED: carried,
        Measure.OVER_HALF: carried > 0.5,
        Measure.GRANTED: missed <= scale.tolerance,
        Measure.DRIFT: relative(moved[:, at][:, :, joints]),
        Measure.OTHER_JOINTS: relative(moved[:, at][:, :, others]),
        Measure.NOT_ASKED: relative(moved[:, elsewhere][:, :, joints]),
        Measure.ROUGHNESS: _rough(after[:, :, joints]) / _rough(before[:, :, joints]),
        Measure.BEYOND: _beyond(case, after, scale) - _beyond(case, before, scale),
    }
    return torch.stack([columns[name].double() for name in MEASURES], 1).numpy()


def _none(like: Tensor) -> Float[Tensor, " scene"]:
    return torch.full((len(like),), torch.nan, dtype=torch.float64)


def _rough(actions: Float[Tensor, "scene chunk joint"]) -> Float[Tensor, " scene"]:
    if actions.shape[1] < 3:
        return _none(actions)
    return actions.diff(dim=1).diff(dim=1).abs().mean((1, 2))


def _beyond(
    case: Case, actions: Float[Tensor, "scene chunk joint"], scale: Scale
) -> Float[Tensor, " scene"]:
    if scale.limits is None:
        return _none(actions)
    units = case.prepared.model.normalizer.unnormalize(ACTION_KEY, actions)
    low, high = (torch.tensor(x).to(units) for x in (scale.limits.low, scale.limits.high))
    slack = 1e-4 * (high - low)
    return ((units < low - slack) | (units > high + slack)).double().mean((1, 2))


@dataclass(frozen=True)
class Evaluated:
    """One way to grant requests, tried on all cases."""

    name: str
    values: Float[np.ndarray, "case group measure"]
    """Means over the scenes of a group; NaN where there is none, zeros where nothing was made."""
    relative_norm: Float[np.ndarray, " case"]
    """|W' - W| / |W|; NaN where no weights change."""
    failures: tuple[str, ...]
    """Why there is no change, by case; empty where there is one."""


def evaluate(
    name: str,
    make: Make,
    cases: Sequence[Case],
    found: TargetSet,
    scale: Scale,
    progress: Callable[[int], None] = lambda n_cases: None,
) -> Evaluated:
    """Make the change of every case, each by itself, and measure it.

    A case for which none can be made counts as one in which nothing changes.
    """
    values, norms, failures = [], [], []
    for case in cases:
        try:
            change, failure = make(case), ""
        except EditError as error:
            change, failure = nothing, str(error)
        values.append(measure(case, change, found, scale))
        norms.append(float(getattr(change, "relative_norm", np.nan)))
        failures.append(failure)
        progress(1)
    return Evaluated(name, np.stack(values), np.array(norms), tuple(failures))


def nothing(runs: MLPRuns) -> Float[Tensor, "scene chunk joint"]:
    """The policy as it is: a change that changes nothing."""
    return runs.actions


def noise_drift(cases: Sequence[Case], found: TargetSet) -> Float[np.ndarray, " case"]:
    """The null of drift: how far sensor noise alone moves the unedited policy, as a share."""
    own, noisy = 0, next(i for i, g in enumerate(found.groups) if g.role is Role.VIEW)
    rows = []
    for case in cases:
        at, joints = case.positions, case.joints
        first, second = (
            found.runs.actions[list(case.target.probes[g])][:, at][:, :, joints]
            for g in (own, noisy)
        )
        rows.append(float((second - first).abs().mean() / case.asked[:, joints].abs().mean()))
    return np.array(rows)
