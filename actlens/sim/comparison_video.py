"""Two rollouts of one start side by side: left without an intervention, right with it."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from actlens.errors import SceneError
from actlens.model.act import HookedACT
from actlens.sim.conditions import Condition, Start
from actlens.sim.controlled import Episode, roll_out
from actlens.sim.environment import FPS, PickCube
from actlens.sim.video import VideoSettings, encode
from actlens.text import clean_text

PLAYABLE = VideoSettings(crf=20, pixel_format="yuv420p", preset="medium")
"""What every browser and player shows; not meant to be trained on."""

_BACKGROUND, _TEXT, _MARK = (24, 24, 24), (235, 235, 235), (255, 140, 0)
_GAP = 8
"""Pixels between the two rollouts."""
_HOLD = FPS
"""How often the last picture is shown, so that the outcome can be read."""

Pictures = UInt8[np.ndarray, "time height width 3"]


def film(
    path: Path,
    model: HookedACT,
    env: PickCube,
    start: Start,
    condition: Condition,
    *,
    steps: int = 90,
) -> None:
    """Rolls out one start without and under a condition, and writes both as one film.

    Args:
        env: with pictures (`simulator_for`).
    """
    without = roll_out(model, env, start, steps=steps, keep_frames=True)
    under = roll_out(model, env, start, condition, steps=steps, keep_frames=True)
    save_comparison(path, without, under)


def save_comparison(path: Path, without: Episode, under: Episode) -> None:
    """Writes both rollouts as one H.264 film in mp4; folders are made.

    Each side shows its cameras one above the other, the control step, whether the action being
    carried out was decided under the intervention, and in the end the outcome.

    Raises:
        SceneError: if the episodes kept no frames, or are of different starts or lengths.
    """
    pictures = side_by_side(without, under)
    pictures = np.concatenate([pictures, pictures[-1:].repeat(_HOLD, axis=0)])
    path.parent.mkdir(parents=True, exist_ok=True)
    encode(path, pictures, fps=FPS, settings=PLAYABLE)


def side_by_side(without: Episode, under: Episode) -> Pictures:
    """One picture per control step and one for the end, height and width even.

    Raises:
        SceneError: if the episodes kept no frames, or are of different starts or lengths.
    """
    frames = without.result.frames, under.result.frames
    if frames[0] is None or frames[1] is None:
        raise SceneError("These episodes kept no pictures: roll_out(…, keep_frames=True).")
    if without.start != under.start or len(frames[0]) != len(frames[1]):
        raise SceneError(
            f"Episodes to compare start alike and last as long; these start at {without.start} and "
            f"{under.start} and have {len(frames[0])} and {len(frames[1])} pictures."
        )
    left, right = _side(without), _side(under)
    gap = np.full((*left.shape[:2], _GAP, 3), _BACKGROUND, dtype=np.uint8)
    joined = np.concatenate([left, gap, right], axis=2)
    height, width = (size + size % 2 for size in joined.shape[1:3])  # 4:2:0 needs both even
    even = np.full((len(joined), height, width, 3), _BACKGROUND, dtype=np.uint8)
    even[:, : joined.shape[1], : joined.shape[2]] = joined
    return even


def acting(episode: Episode) -> list[bool]:
    """For every control step, whether its action was decided at an inference that was acted on."""
    inferences = {one.control_step: bool(one.receipts) for one in episode.inferences}
    found: list[bool] = []
    for step in range(len(episode.result.actions)):
        found.append(inferences[step] if step in inferences else found[-1])
    return found


def _side(episode: Episode) -> Pictures:
    """A rollout's cameras one above the other, below a caption."""
    frames = episode.result.frames
    assert frames is not None
    acts, steps = acting(episode), len(frames) - 1
    marks = [*acts, False]  # nothing is decided after the last step
    sides = []
    for step, (pair, marked) in enumerate(zip(frames, marks, strict=True)):
        stacked = np.concatenate(np.split(pair, 2, axis=1))
        outcome = _outcome(episode) if step == steps else ""
        caption = _caption(stacked.shape[1], episode.condition, step, steps, outcome, marked=marked)
        sides.append(np.concatenate([caption, stacked]))
    return np.stack(sides)


def _caption(
    width: int, name: str, step: int, steps: int, outcome: str, *, marked: bool
) -> UInt8[np.ndarray, "height width 3"]:
    size = max(8, width // 22)
    height = 2 * (size + 6)
    picture = Image.new("RGB", (width, height), _BACKGROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size)
    draw.text((4, 2), _fitting(name, width - 8, font), _TEXT, font)
    draw.text((4, size + 6), outcome or f"step {step} of {steps}", _TEXT, font)
    if marked:
        mark = "intervention acts"
        draw.text((width - 4 - font.getlength(mark), size + 6), mark, _MARK, font)
        draw.rectangle((0, height - 3, width, height), _MARK)
    return np.asarray(picture)


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """One line of the text, cut where it would leave the picture."""
    kept = clean_text(text)
    while kept and font.getlength(kept) > width:
        kept = kept[:-2].rstrip() + "…"
    return kept


def _outcome(episode: Episode) -> str:
    result = episode.result
    place = (
        f"closed {result.tip_error_mm:.0f} mm from the cube" if result.closed else "never closed"
    )
    return f"{'lifted' if result.success else 'not lifted'}; {place}"
