"""Where a scene's chunk looks, drawn over what the cameras saw, beside what each token is worth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from actlens.attention import AttentionAnalysis
from actlens.config import ACTConfig


def save_attention_maps(
    result: AttentionAnalysis, config: ACTConfig, path: Path, *, positions: Sequence[int]
) -> None:
    """One PNG: a row a camera (the picture, attention at some chunk positions, its mean, its mean
    by norm, the exact effect of leaving a token out), and below the tokens that are no pixels.

    Every map has its own scale, from 0 to its largest pixel token.

    Args:
        positions: of the chunk.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    effects = result.effects.scenes[0]
    reading = effects.reading
    maps = {f"attention at {position}": reading.attention[position] for position in positions}
    maps |= {
        "attention, mean": reading.averaged(reading.attention),
        "by norm, mean": reading.averaged(reading.norm),
        "effect of leaving out": effects.averaged,
    }
    n_cameras = len(config.cameras)
    figure = Figure(figsize=(2.3 * (len(maps) + 1), 1.9 * n_cameras + 2.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(n_cameras + 1, len(maps) + 1, squeeze=False)
    for row, camera in zip(axes, config.cameras, strict=False):
        picture = result.shown.picture(camera.key)
        row[0].imshow(picture)
        row[0].set_title(camera.name, fontsize=9)
        pixels, grid = result.tokens.camera(camera.name), result.tokens.grid(camera.name)
        for axis, values in zip(row[1:], maps.values(), strict=True):
            largest = max(1e-12, float(values[config.n_vector_tokens :].max()))
            _draw(axis, picture, values[pixels].reshape(grid) / largest)
    for axis, title in zip(axes[0][1:], maps, strict=True):
        axis.set_title(title, fontsize=9)
    for axis in axes[:-1].flat:
        axis.set_axis_off()
    axes[-1][0].set_axis_off()
    names = result.tokens.names[: config.n_vector_tokens]
    for axis, (title, values) in zip(axes[-1][1:], maps.items(), strict=True):
        largest = values[config.n_vector_tokens :].max(initial=0.0)
        shown = [*values[: config.n_vector_tokens], largest]
        axis.barh(range(len(shown)), shown, color=["#542788"] * len(names) + ["#b35806"])
        axis.set_yticks(range(len(shown)), [*names, "largest pixel"], fontsize=7)
        axis.invert_yaxis()
        axis.tick_params(axis="x", labelsize=7)
        unit = "dataset units" if title.startswith("effect") else "share"
        axis.set_xlabel(unit, fontsize=7)
    figure.suptitle(
        f"episode {reading.episode[1]}, frame {reading.frame}: what the queries attend to, "
        "and what the action loses without each token",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)


def _draw(axis, picture: np.ndarray, values: Float[np.ndarray, "row col"]) -> None:
    """A map over the grey picture; values from 0 to 1."""
    grey = np.repeat(picture.mean(2, keepdims=True), 3, 2).astype(np.uint8)
    axis.imshow(grey, alpha=0.55)
    axis.imshow(
        values,
        cmap="magma",
        vmin=0,
        vmax=1,
        alpha=0.25 + 0.65 * np.clip(values, 0, 1),
        extent=(0, grey.shape[1], grey.shape[0], 0),
        interpolation="nearest",
    )
