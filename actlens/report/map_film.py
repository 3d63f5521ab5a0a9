"""What the policy makes of each token, over the camera pictures of an episode, as a film."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from actlens.errors import SceneError
from actlens.report.action_strip import ActionStrip
from actlens.report.colours import Scale, legend, overlaid
from actlens.report.film_file import film_file
from actlens.report.tiles import (
    BACKGROUND,
    GAP,
    QUIET,
    TEXT,
    Colour,
    Picture,
    above,
    beside,
    caption,
    fitting,
    font,
    framed,
    resized,
)
from actlens.scene import Scene
from actlens.tokens import TokenMap

_SIZE = 14
"""Of letters, in pixels."""
_WIDEST, _TALLEST = 1280, 360
"""Pixels of a row of cameras, and of one camera."""
_BEYOND = 0.005
"""Share of the pixel tokens that may be beyond the scale's end."""
_BAR: Colour = (230, 159, 0)
_NEGATIVE: Colour = (86, 180, 233)
"""Of bars right and left of 0: orange and sky blue of Okabe and Ito, as the diverging map."""


@dataclass(frozen=True, eq=False)
class MapFrame:
    """The map of one moment of an episode."""

    frame: int
    values: Float[np.ndarray, " token"]
    """What is drawn over each token's cell; NaN where it is undefined."""
    bars: Mapping[str, float]
    """What is drawn as bars: tokens that are no pixels, and whole cameras."""
    predicted: Float[np.ndarray, " joint"]
    """The action that the policy gives for this moment, in dataset units."""
    note: str = ""
    """A few words for the caption, such as why a map is undefined."""


@dataclass(frozen=True, eq=False)
class MapFilm:
    """The maps of an episode, and what a reader needs to be told about them."""

    title: str
    """What is shown, of what: `cross-attention, mean over 8 heads, chunk positions 0-9`."""
    label: str
    """Of the scale, with its unit: `share of the attention`."""
    frames: tuple[MapFrame, ...]
    """Ascending; not every moment needs one."""
    tokens: TokenMap
    demonstrated: Float[np.ndarray, "frame joint"]
    """The episode's recorded actions, in dataset units."""
    joints: Sequence[str]
    fps: float
    """Of the recording."""
    diverging: bool = False
    """Whether values below 0 mean something."""
    recorded_words: str = "demonstrated"
    """What the recorded actions are: in a rollout, `carried out`."""
    bars_label: str = ""
    """What the bars say, if not the same as the map."""
    scale: Scale = field(init=False)
    """One for the whole film, to the largest pixel token but for one in two hundred."""

    def __post_init__(self) -> None:
        if not self.frames:
            raise SceneError("A film of maps has at least one frame.")
        first = self.tokens.camera(self.tokens.cameras[0]).start if self.tokens.cameras else 0
        pixels = np.abs(np.concatenate([one.values[first:] for one in self.frames]))
        known = pixels[~np.isnan(pixels)]
        limit = float(np.quantile(known, 1 - _BEYOND)) if len(known) else 0.0
        object.__setattr__(self, "scale", Scale(limit or 1.0, self.label, self.diverging))

    @property
    def largest_bar(self) -> float:
        """At which bars end, in all frames."""
        every = [abs(value) for one in self.frames for value in one.bars.values()]
        return max((value for value in every if not np.isnan(value)), default=1.0) or 1.0

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Of the action's dimensions; numbers where nobody named them."""
        n = self.demonstrated.shape[1]
        named = len(self.joints) == n
        return tuple(self.joints) if named else tuple(f"joint {i}" for i in range(n))

    def grid(self, one: MapFrame, camera: str) -> Float[np.ndarray, "row col"]:
        """The values of one camera's tokens."""
        return one.values[self.tokens.camera(camera)].reshape(self.tokens.grid(camera))

    @property
    def seconds_apart(self) -> float:
        """Seconds of the episode from one picture of the film to the next."""
        steps = np.diff([one.frame for one in self.frames])
        return float(np.median(steps)) / self.fps if len(steps) else 1 / self.fps


def map_pictures(film: MapFilm, scenes: Iterable[Scene]) -> Iterable[Picture]:
    """The film's pictures, one a frame; one scene at a time is in memory.

    Args:
        scenes: of the film's frames, in their order; read once more for their pictures.

    Raises:
        SceneError: if the scenes are of other frames than the maps.
    """
    predicted = [one.predicted for one in film.frames]
    strip = ActionStrip.of(film.demonstrated, predicted, film.recorded_words)
    seen: list[MapFrame] = []
    for one, scene in zip(film.frames, scenes, strict=True):
        if one.frame != scene.frame:
            raise SceneError(f"The map of frame {one.frame} is not of scene {scene.address}.")
        seen.append(one)
        yield _picture(film, one, scene, strip, seen)


def save_map_film(
    path: Path,
    film: MapFilm,
    scenes: Iterable[Scene],
    *,
    slower: float = 1.0,
    advance: Callable[[int], None] = lambda n: None,
) -> None:
    """Writes the film as H.264 in mp4 (`film_file`); an interrupt leaves nothing.

    Args:
        scenes: as `map_pictures` takes them.
        slower: how many times longer than the episode the film lasts.
        advance: told of every picture written, for progress bars.
    """
    with film_file(path, fps=1 / film.seconds_apart / slower) as write:
        for picture in map_pictures(film, scenes):
            write(picture)
            advance(1)


def _picture(
    film: MapFilm, one: MapFrame, scene: Scene, strip: ActionStrip, seen: Sequence[MapFrame]
) -> Picture:
    views = [_view(film, one, scene, name) for name in film.tokens.cameras]
    cameras = beside(*views) if views else caption(640, ["no camera"], size=_SIZE)
    width = max(cameras.shape[1], 560)
    length = len(film.demonstrated)
    where = f"frame {one.frame} of {length}, {one.frame / film.fps:.2f} s"
    title = caption(width, [film.title, f"{where}; {one.note}" if one.note else where], size=_SIZE)
    third = (width - GAP) * 2 // 5
    key = legend(film.scale, third, size=_SIZE - 1)
    bars = _bars(film, one, width - GAP - third)
    curves = strip.picture(film.joint_names, seen, width, size=_SIZE - 3)
    return framed(above(title, cameras, beside(key, bars), curves, gap=GAP))


def _view(film: MapFilm, one: MapFrame, scene: Scene, name: str) -> Picture:
    """One camera, its map over it, its name above."""
    camera = next(c for c in film.tokens.config.cameras if c.name == name)
    seen = scene.picture(camera.key)
    drawn = overlaid(seen, film.grid(one, name), film.scale, film.tokens.stride)
    widest = (_WIDEST - GAP * (len(film.tokens.cameras) - 1)) // len(film.tokens.cameras)
    zoom = min(_TALLEST / camera.height, widest / camera.width)
    size = round(camera.height * zoom), round(camera.width * zoom)
    return above(caption(size[1], [name], size=_SIZE - 1), resized(drawn, *size))


def _bars(film: MapFilm, one: MapFrame, width: int) -> Picture:
    """The tokens that are no pixels, and whole cameras, as bars on a scale of their own."""
    size, largest = _SIZE - 1, film.largest_bar
    step = size + 7
    picture = Image.new("RGB", (width, step * (len(one.bars) + 1)), BACKGROUND)
    draw, letters = ImageDraw.Draw(picture), font(size)
    label = film.bars_label or film.label
    draw.text((0, 0), fitting(f"{label}; bars end at {largest:.2g}", width, size), TEXT, letters)
    names = min(width // 3, 20 + max(round(letters.getlength(name)) for name in one.bars))
    numbers = round(letters.getlength("-0.0000")) + 8
    room = width - names - numbers
    left = any(v < -0.01 * largest for f in film.frames for v in f.bars.values())
    zero = names + room // 2 if left else names
    reach = room // 2 if left else room
    for row, (name, value) in enumerate(one.bars.items(), 1):
        top = row * step
        draw.text((0, top), fitting(name, names - 6, size), QUIET, letters)
        if np.isnan(value):
            draw.text((zero + 4, top), "undefined", QUIET, letters)
            continue
        end = zero + round(reach * value / largest)
        low, high = min(zero, end), max(zero, end)
        draw.rectangle((low, top + 2, high, top + size), _NEGATIVE if value < 0 else _BAR)
        draw.text((names + room + 8, top), f"{round(value, 3) + 0.0:.3f}", QUIET, letters)
    draw.line((zero, step, zero, step * (len(one.bars) + 1)), QUIET)
    return np.asarray(picture)
