"""Restored shares of tokens, drawn over what the cameras saw."""

from pathlib import Path

import numpy as np

from actlens.config import ACTConfig
from actlens.patching import Direction, PatchingResult

_COLOURS = "PuOr_r"  # diverging, safe for colour-blind readers


def _depth_title(hook: str) -> str:
    if hook == "encoder.hook_out":
        return "encoder's output"
    layer = hook.split(".")[1]
    return "tokens (into block 0)" if layer == "0" else f"into block {layer}"


def save_heatmaps(
    result: PatchingResult,
    config: ACTConfig,
    path: Path,
    *,
    direction: Direction = Direction.DENOISE,
    pair: int | None = 0,
) -> None:
    """One PNG: a row a camera; the clean and the corrupt image, then one map for each depth.

    Args:
        pair: the pair whose maps are drawn over its own images; None pools all pairs, over the
            first pair's images.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    hooks = list(dict.fromkeys(part.hook for part in result.parts if part.token is not None))
    shown = result.pairs[pair or 0]
    maps = {
        (camera.name, hook): result.heatmap(camera.name, hook, direction, pair)
        for camera in config.cameras
        for hook in hooks
    }
    limit = max(0.05, max(float(np.abs(values).max()) for values in maps.values()))
    norm = Normalize(-limit, limit)
    size = (2.5 * (len(hooks) + 2) + 0.8, 2.1 * len(config.cameras) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(config.cameras), len(hooks) + 2, squeeze=False)
    drawn = None
    for row, camera in zip(axes, config.cameras, strict=True):
        clean, corrupt = (s.picture(camera.key) for s in (shown.clean, shown.corrupt))
        for axis, title, picture in ((row[0], "clean", clean), (row[1], "corrupt", corrupt)):
            axis.imshow(picture)
            axis.set_title(f"{camera.name}: {title}", fontsize=9)
        grey = np.repeat(clean.mean(2, keepdims=True), 3, 2).astype(np.uint8)
        for axis, hook in zip(row[2:], hooks, strict=True):
            values = maps[camera.name, hook]
            axis.imshow(grey, alpha=0.55)
            drawn = axis.imshow(
                values,
                cmap=_COLOURS,
                norm=norm,
                alpha=np.clip(0.15 + np.abs(values) / limit, 0, 0.9),
                extent=(0, grey.shape[1], grey.shape[0], 0),
                interpolation="nearest",
            )
            axis.set_title(_depth_title(hook), fontsize=9)
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
    verb = {
        Direction.DENOISE: "restored by putting one clean token into the corrupt run",
        Direction.NOISE: "destroyed by putting one corrupt token into the clean run",
    }[direction]
    what = (
        f"pair {shown.clean.address} / {shown.corrupt.address}"
        if pair is not None
        else (f"pooled over {len(result.pairs)} pairs (images of the first)")
    )
    figure.suptitle(f"share of the action difference {verb}; {what}", fontsize=10)
    if drawn is not None:
        figure.colorbar(drawn, ax=axes[:, 2:], shrink=0.8, label="share (0 nothing, 1 all)")
    figure.savefig(path, dpi=110)
