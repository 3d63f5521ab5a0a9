"""Decoded chunks carried out in the simulator, side by side, as one film."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from actlens.cameras import PinholeCamera, known_cameras
from actlens.config import IMAGE_PREFIX, Camera
from actlens.errors import SceneError
from actlens.kinematics import SO101_SIMULATED
from actlens.report.film_file import film_file
from actlens.report.path_panels import Decoded, columns_of
from actlens.report.paths import draw_path, tip_pixels
from actlens.report.tiles import Picture, above, caption, framed, grid
from actlens.scene import Scene
from actlens.sim.environment import CAMERAS, FPS, PickCube
from actlens.sim.lens_rollouts import Chunk, Outcome, carry_out, outcome, placed
from actlens.sim.rollout import RolloutResult

EXPERT = "demonstrated"
"""The last tile: the demonstration's own actions, carried out in the same way."""
SLOWER = 2
"""A film takes this many times longer than the arm did."""
_HOLD = FPS
"""How often the last picture is shown, so that the outcomes can be read."""
_SIZE = 13
"""Of letters, in pixels."""
_LEGEND = "half speed; the faint line is the path that the chunk asks for, from violet to yellow"
_FAINT = 0.5
"""Opacity of the path that the chunk asks for."""


def film_layers(
    path: Path,
    chunks: Mapping[str, Chunk],
    scene: Scene,
    *,
    env: PickCube | None = None,
    expert: bool = True,
    advance: Callable[[int], None] = lambda n: None,
) -> dict[str, Outcome]:
    """Carries every chunk out from one scene, open loop, and films all of them at half speed.

    A tile a chunk, with both cameras one above the other and, faintly, the path that the chunk
    asks the gripper's tip to take. `actlens.report.path_panels` draws the same without a simulator.

    Args:
        chunks: by what they were decoded from (`into block 0`, …, `output`), in dataset units.
        scene: of the simulator's recordings, or made by it.
        env: with pictures; one of 240 by 320 pixels if not given.
        expert: whether the demonstrated actions make a last tile, where the scene has some.
        advance: told of every tile that was carried out, for progress bars.

    Returns:
        What came of each chunk, by name.

    Raises:
        SceneError: if the scene cannot be put into the simulator, or a chunk moves other joints.
    """
    where, demonstrated = placed(scene), Decoded(scene, chunks).expert
    shown = dict(chunks)
    if expert and demonstrated is not None:
        shown[EXPERT] = demonstrated
    if not shown:
        raise SceneError("There is no chunk to film.")
    own = env is None
    env = PickCube() if env is None else env
    try:
        results = {}
        for name, chunk in shown.items():
            results[name] = carry_out(env, where, chunk, keep_frames=True)
            advance(1)
    finally:
        if own:
            env.close()
    with film_file(path, fps=FPS / SLOWER) as write:
        for picture in layer_pictures(results, shown):
            write(picture)
    return {name: outcome(result) for name, result in results.items()}


def layer_pictures(
    results: Mapping[str, RolloutResult], chunks: Mapping[str, Chunk]
) -> Iterator[Picture]:
    """The film's pictures: the start, one after each step, and the last one held.

    A chunk that is shorter than the longest stays as it ended.
    """
    tiles = [_Tile(name, result, chunks[name]) for name, result in results.items()]
    steps = max(len(result.actions) for result in results.values())
    for step in range(steps + 1):
        sheet = grid([tile.at(step) for tile in tiles], columns_of(len(tiles)))
        below = caption(sheet.shape[1], ["", _LEGEND], size=_SIZE - 2)
        picture = framed(above(sheet, below))
        yield picture
    for _ in range(_HOLD // SLOWER):
        yield picture


class _Tile:
    """One chunk's cameras below its caption."""

    def __init__(self, name: str, result: RolloutResult, chunk: Chunk):
        if result.frames is None:
            raise SceneError("This rollout kept no pictures: carry_out(…, keep_frames=True).")
        self.name, self.result, self.frames = name, result, result.frames
        self.outcome = outcome(result)
        height, width = self.frames.shape[1], self.frames.shape[2] // len(CAMERAS)
        shapes = [Camera(f"{IMAGE_PREFIX}{name}", height, width) for name in CAMERAS]
        cameras = known_cameras(shapes, SO101_SIMULATED)
        self.traces = [_trace(camera, chunk) for camera in cameras]

    def at(self, step: int) -> Picture:
        last = len(self.frames) - 1
        step = min(step, last)
        state = self.outcome.words if step == last else f"step {step} of {last}"
        views = np.split(self.frames[step], len(CAMERAS), axis=1)
        drawn = [
            np.rint((1 - opacity) * view + faint).astype(np.uint8)
            for view, (faint, opacity) in zip(views, self.traces, strict=True)
        ]
        return above(caption(views[0].shape[1], [self.name, state], size=_SIZE), *drawn, gap=2)


def _trace(
    camera: PinholeCamera, chunk: Chunk
) -> tuple[Float[np.ndarray, "row col 3"], Float[np.ndarray, "row col 1"]]:
    """A path to lay over many pictures: its light, and how much of the picture it hides."""
    points = tip_pixels(camera, SO101_SIMULATED, chunk)
    black, white = (
        draw_path(np.full((camera.height, camera.width, 3), level, np.uint8), points).astype(float)
        for level in (0, 255)
    )
    opacity = 1 - (white - black).mean(2, keepdims=True) / 255
    return _FAINT * black, _FAINT * opacity
