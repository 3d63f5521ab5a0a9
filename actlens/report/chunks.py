"""Action chunks before and after an edit, joint by joint."""

from pathlib import Path

import torch

from actlens.config import ACTION_KEY
from actlens.rome.cases import Case
from actlens.rome.probes import Role
from actlens.rome.rivals import Change
from actlens.rome.targets import TargetSet

_BEFORE, _AFTER, _ASKED = "#4477aa", "#ee6677", "#228833"  # safe for colour-blind readers


def save_chunks(path: Path, case: Case, change: Change, found: TargetSet) -> None:
    """One PNG: a column for the edited scene, one near and one far, a row for each joint.

    What is asked for is drawn in the edited scene; the chunk positions it is asked for are shaded.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    model = case.prepared.model
    shown = [(role, _first(case, found, role)) for role in (Role.OWN, Role.NEAR, Role.FAR)]
    shown = [(role, at) for role, at in shown if at is not None]
    runs = found.runs.of_scenes([at[1] for _, at in shown])
    units = lambda actions: model.normalizer.unnormalize(ACTION_KEY, actions).double().cpu()
    before, after = units(runs.actions), units(change(runs))
    asked = units(case.prepared.resolved[0].target)
    joints = model.config.joints
    figure = Figure(figsize=(3.4 * len(shown), 1.6 * len(joints) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(joints), len(shown), squeeze=False, sharex=True, sharey="row")
    steps = torch.arange(before.shape[1])
    at = case.positions
    for column, (role, (group, _)) in enumerate(shown):
        axes[0][column].set_title(found.groups[group].name, fontsize=9)
        for row, joint in enumerate(joints):
            axis = axes[row][column]
            axis.axvspan(min(at) - 0.5, max(at) + 0.5, color="0.93", lw=0)
            axis.plot(steps, before[column, :, row], color=_BEFORE, lw=1.5, label="before")
            axis.plot(steps, after[column, :, row], color=_AFTER, lw=1.5, label="after")
            if role is Role.OWN:
                axis.plot(at, asked[:, row], ":", color=_ASKED, lw=2.5, label="asked for")
            if column == 0:
                axis.set_ylabel(joint.removesuffix(".pos"), fontsize=8)
            axis.tick_params(labelsize=7)
    axes[0][0].legend(fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("chunk position", fontsize=8)
    figure.savefig(path, dpi=130)


def _first(case: Case, found: TargetSet, role: Role) -> tuple[int, int] | None:
    """Group and number of the first scene of a role; of near ones the farthest group."""
    groups = [
        g for g, group in enumerate(found.groups) if group.role is role and case.target.probes[g]
    ]
    if not groups:
        return None
    return groups[-1], case.target.probes[groups[-1]][0]
