"""Decoded chunks side by side: what each layer would have the arm do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from actlens.cameras import PinholeCamera, known_cameras
from actlens.config import ACTConfig
from actlens.kinematics import Arm
from actlens.report.paths import (
    EVERY,
    draw_dashed,
    draw_path,
    draw_place,
    point_pixels,
    time_colours,
    tip_pixels,
)
from actlens.report.tiles import (
    BACKGROUND,
    GAP,
    QUIET,
    TEXT,
    Picture,
    above,
    beside,
    caption,
    font,
    framed,
    resized,
)
from actlens.scene import Scene
from actlens.text import clean_text

Chunk = Float[np.ndarray, "chunk joint"]
"""Joint positions in dataset units."""

_TILE = 320
"""Pixels that a camera's picture is wide in a panel."""
_SIZE = 13
"""Of letters, in pixels."""
_DIM = 0.75
"""Brightness of the pictures under the paths."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """Chunks that one scene was decoded into, by what they were decoded from, and the scene."""

    scene: Scene
    chunks: Mapping[str, Chunk]
    """In the order of panels: `into block 0`, …, `output`."""
    notes: Mapping[str, str] | None = None
    """A second line for a panel's caption, by the chunk's name."""

    @property
    def expert(self) -> Chunk | None:
        """What was demonstrated, up to the episode's end."""
        action, padded = self.scene.action, self.scene.action_is_pad
        if action is None:
            return None
        kept = action if padded is None else action[~padded]
        return kept.numpy(force=True) if len(kept) else None

    @property
    def cube(self) -> list[float] | None:
        """Where the scene's cube is, in metres, if the dataset says it."""
        known = self.scene.labels
        names = [f"cube_{axis}" for axis in "xyz"]
        return [known[name] for name in names] if all(name in known for name in names) else None


def draw_decoded(decoded: Decoded, config: ACTConfig, arm: Arm | None) -> Picture:
    """One panel a chunk: over the camera pictures, or in plain axes.

    Over the pictures of the cameras whose poses are known; without any, from above and from the
    side, in the arm's own coordinates; of an unknown arm, the joints' curves.

    Args:
        arm: whose joints the chunks are (`known_arm`).
    """
    cameras = known_cameras(config.cameras, arm)
    if arm is None:
        return _joint_curves(decoded, config.joints)
    if not cameras:
        return _plain_axes(decoded, arm)
    return _over_cameras(decoded, cameras, config, arm)


def path_tile(
    picture: Picture, camera: PinholeCamera, arm: Arm, chunk: Chunk, decoded: Decoded
) -> Picture:
    """One camera's picture with a chunk's path, the demonstrated one and the cube's place.

    Args:
        picture: the camera's, of any size of its shape.
    """
    zoom = picture.shape[1] / camera.width
    drawn = np.rint(_DIM * picture).astype(np.uint8)
    if decoded.cube is not None:
        drawn = draw_place(drawn, point_pixels(camera, decoded.cube), zoom=zoom)
    drawn = draw_path(drawn, tip_pixels(camera, arm, chunk), zoom=zoom)
    if decoded.expert is not None:
        drawn = draw_dashed(drawn, tip_pixels(camera, arm, decoded.expert), zoom=zoom)
    return drawn


def columns_of(n: int) -> int:
    """In how many columns `n` tiles stand: at most five, rows as even as they come."""
    rows = -(-n // 5)
    return -(-n // rows)


def _over_cameras(
    decoded: Decoded, cameras: Sequence[PinholeCamera], config: ACTConfig, arm: Arm
) -> Picture:
    keys = {camera.name: camera.key for camera in config.cameras}
    seen = {
        camera.name: resized(
            decoded.scene.picture(keys[camera.name]),
            round(_TILE * camera.height / camera.width),
            _TILE,
        )
        for camera in cameras
    }
    panels = []
    for name, chunk in decoded.chunks.items():
        note = (decoded.notes or {}).get(name)
        lines = [name] if decoded.notes is None else [name, note or ""]
        tiles = [path_tile(seen[c.name], c, arm, chunk, decoded) for c in cameras]
        panels.append(above(caption(_TILE, lines, size=_SIZE), *tiles, gap=2))
    columns = columns_of(len(panels))
    rows = [beside(*panels[at : at + columns]) for at in range(0, len(panels), columns)]
    length = len(next(iter(decoded.chunks.values())))
    key = path_legend(length, decoded, width=max(rows[0].shape[1], 420))
    return framed(above(*rows, key, gap=GAP))


def path_legend(length: int, decoded: Decoded, *, width: int) -> Picture:
    """What the colours, the dots, the dashes and the ring mean."""
    picture = Image.new("RGB", (width, 2 * _SIZE + 10), BACKGROUND)
    draw, letters, top = ImageDraw.Draw(picture), font(_SIZE), 2
    bar = time_colours(length)[None].repeat(_SIZE, 0)
    picture.paste(Image.fromarray(resized(bar, _SIZE, 120)), (4, top))
    draw.text((130, top - 1), f"the chunk's {length} steps; a dot every {EVERY}", TEXT, letters)
    below = top + _SIZE + 7
    x = 4.0
    if decoded.expert is not None:
        for start in range(4, 44, 12):
            draw.line((start, below + 7, start + 7, below + 7), (255, 255, 255), 2)
        draw.text((52, below - 1), "demonstrated", QUIET, letters)
        x = 70 + letters.getlength("demonstrated")
    if decoded.cube is not None:
        draw.ellipse((x, below, x + 14, below + 14), outline=(255, 255, 255), width=2)
        draw.text((x + 20, below - 1), "the cube", QUIET, letters)
    return np.asarray(picture)


def _plain_axes(decoded: Decoded, arm: Arm) -> Picture:
    """From above (left is the arm's left) and from the side, in centimetres."""
    names = list(decoded.chunks)
    figure, axes = _figure(2, len(names), each=(2.4, 2.3))
    tips = {name: 100 * arm.tip(chunk) for name, chunk in decoded.chunks.items()}
    expert = None if decoded.expert is None else 100 * arm.tip(decoded.expert)
    cube = None if decoded.cube is None else 100 * np.array(decoded.cube)
    views = (("from above", (1, 0)), ("from the side", (0, 2)))
    words = ("x forward, cm", "y left, cm", "z up, cm")
    every = np.concatenate([*tips.values(), *([] if expert is None else [expert])])
    for row, (view, (across, up)) in zip(axes, views, strict=True):
        for axis, name in zip(row, names, strict=True):
            path = tips[name]
            colours = time_colours(len(path)) / 255
            axis.plot(path[:, across], path[:, up], color="0.6", linewidth=1, zorder=1)
            axis.scatter(path[:, across], path[:, up], c=colours, s=14, zorder=2)
            if expert is not None:
                axis.plot(expert[:, across], expert[:, up], "k--", linewidth=1, zorder=3)
            if cube is not None:
                axis.plot(cube[across], cube[up], "ko", markersize=9, fillstyle="none")
            axis.set_title(f"{clean_text(name)}\n{view}", fontsize=8, parse_math=False)
            for limits, coordinate in ((axis.set_xlim, across), (axis.set_ylim, up)):
                low, high = every[:, coordinate].min(), every[:, coordinate].max()
                limits(low - 3, high + 3)
            if across == 1:
                axis.invert_xaxis()  # what is to the arm's left is on the left
            axis.set_xlabel(words[across], fontsize=7)
            axis.set_ylabel(words[up], fontsize=7)
            axis.tick_params(labelsize=7)
    figure.suptitle("the gripper's path, violet to yellow; dashed: demonstrated", fontsize=9)
    return _pixels(figure)


def _joint_curves(decoded: Decoded, joints: Sequence[str]) -> Picture:
    """One axis a joint, one line a chunk, from violet (the first) to yellow."""
    n = next(iter(decoded.chunks.values())).shape[1]
    names = list(joints) or [f"joint {i}" for i in range(n)]
    columns = columns_of(n)
    figure, axes = _figure(-(-n // columns), columns, each=(2.6, 1.9))
    colours = time_colours(len(decoded.chunks)) / 255 * 0.92  # yellow is pale on white
    for index, axis in enumerate(axes.flat):
        if index >= n:
            axis.set_axis_off()
            continue
        for colour, (name, chunk) in zip(colours, decoded.chunks.items(), strict=True):
            axis.plot(chunk[:, index], color=colour, label=name, linewidth=1.5)
        if decoded.expert is not None:
            axis.plot(decoded.expert[:, index], "k--", linewidth=1, label="demonstrated")
        axis.set_title(clean_text(names[index]), fontsize=8, parse_math=False)
        axis.tick_params(labelsize=7)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), fontsize=7, loc="outside lower left",
                  ncols=4)  # fmt: skip
    return _pixels(figure)


def _figure(rows: int, columns: int, *, each: tuple[float, float]):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (each[0] * columns, each[1] * rows + 0.5)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _pixels(figure) -> Picture:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
