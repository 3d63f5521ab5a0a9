"""Neurons drawn: what triggers them, where these entries look, when they speak, what they add."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from actlens.keyvalue import KeyValueAnalysis, ShownNeuron, ShownTrigger
from actlens.model.act import HookedACT
from actlens.report.keyvalue import describe_region
from actlens.report.plain import plain

_ADDS, _SPEAKS = "#b35806", "#542788"  # the ends of PuOr, safe for colour-blind readers
_ARROW = {
    "arrowstyle": "-|>",
    "color": "#0050ff",
    "linewidth": 1.2,
    "mutation_scale": 6,
    "shrinkA": 0,
    "shrinkB": 0,
}


def save_memories(
    result: KeyValueAnalysis,
    neurons: pd.DataFrame,
    shown: Sequence[ShownNeuron],
    model: HookedACT,
    path: Path,
) -> None:
    """One PNG: a row a neuron. Its triggers with the window where they look and an arrow for what
    the neuron adds; its mean coefficient along the chunk or the tokens; what it adds by joint.

    Args:
        neurons: `result.neurons()`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_triggers = max(len(one.triggers) for one in shown)
    cameras = model.config.cameras
    figure = Figure(figsize=(2.1 * n_triggers + 5.6, 1.35 * len(cameras) * len(shown) + 0.9))
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    rows = figure.subfigures(len(shown), 1, squeeze=False)[:, 0]
    for row, one in zip(rows, shown, strict=True):
        facts = neurons[neurons.neuron == one.neuron].iloc[0]
        row.suptitle(
            plain(f"neuron {one.neuron}: {describe_region(facts)}"), fontsize=9, x=0.01, ha="left"
        )
        left, right = row.subfigures(1, 2, width_ratios=(2.1 * n_triggers, 5.4))
        axes = left.subplots(max(1, len(cameras)), n_triggers, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for i, trigger in enumerate(one.triggers):
            for j, camera in enumerate(cameras):
                _trigger(axes[j, i], trigger, camera.key, camera.name)
            title = f"{trigger.scene.address} at {trigger.position}: {trigger.coefficient:.2f}"
            axes[0, i].set_title(title, fontsize=7)
        profile, joints = right.subplots(1, 2)
        _profile(profile, result, one.neuron)
        _joints(joints, one, model.config.joints)
    factors = {a.factor for one in shown for t in one.triggers for a in t.arrows}
    arrow = f"; arrow: what the neuron adds, {factors.pop():g} times" if factors else ""
    figure.suptitle(
        f"{result.own.reading.site.block}.mlp: triggers (episode:frame at position: coefficient; "
        f"box: where it looks{arrow})",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)


def _trigger(axis, trigger: ShownTrigger, key: str, name: str) -> None:
    from matplotlib.patches import Rectangle

    image = trigger.scene.observation[key]
    image = (image * 255).round() if image.is_floating_point() else image
    picture = image.cpu().numpy().astype(np.uint8).transpose(1, 2, 0)
    axis.imshow(picture)
    for crop in trigger.crops:
        if crop.rect.camera == name:
            corner = (crop.rect.left, crop.rect.top)
            size = (crop.rect.right - crop.rect.left, crop.rect.bottom - crop.rect.top)
            axis.add_patch(Rectangle(corner, *size, fill=False, color="white", linewidth=0.8))
    for arrow in trigger.arrows:
        if arrow.camera == name:
            axis.annotate("", arrow.end, arrow.start, arrowprops=_ARROW, annotation_clip=True)
    axis.set_xlim(-0.5, picture.shape[1] - 0.5)
    axis.set_ylim(picture.shape[0] - 0.5, -0.5)


def _profile(axis, result: KeyValueAnalysis, neuron: int) -> None:
    reading = result.own.reading
    axis.plot(reading.positions, reading.activity.by_position[neuron], color=_SPEAKS, linewidth=1)
    axis.set_ylim(bottom=0)
    what = "chunk position" if reading.site.in_decoder else "token"
    axis.set_xlabel(what, fontsize=7)
    axis.set_ylabel("mean coefficient", fontsize=7)
    axis.tick_params(labelsize=6)


def _joints(axis, one: ShownNeuron, joints: Sequence[str]) -> None:
    every = np.stack([trigger.adds.cpu().numpy() for trigger in one.triggers])
    places = np.arange(len(joints))
    axis.barh(places, every.mean(0), color=_ADDS, alpha=0.6)
    for values in every:
        axis.plot(values, places, ".", color="black", markersize=3)
    axis.axvline(0, color="grey", linewidth=0.6)
    axis.set_yticks(places, [plain(joint.removesuffix(".pos")) for joint in joints], fontsize=6)
    axis.invert_yaxis()
    axis.tick_params(axis="x", labelsize=6)
    axis.set_xlabel("adds at these triggers, units", fontsize=7)
