"""An episode's actions as small curves: what was demonstrated, and what the policy gives so far."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from actlens.report.tiles import BACKGROUND, GAP, QUIET, TEXT, Colour, Picture, fitting, font

_DEMONSTRATED: Colour = (165, 165, 165)
_PREDICTED: Colour = (86, 180, 233)
_NOW: Colour = (90, 90, 90)
_HEIGHT = 64
"""Pixels of a curve."""


class Moment(Protocol):
    """A moment at which the policy gave an action."""

    @property
    def frame(self) -> int:
        """Its number in the episode."""
        ...

    @property
    def predicted(self) -> Float[np.ndarray, " joint"]:
        """In dataset units."""
        ...


@dataclass(frozen=True, eq=False)
class ActionStrip:
    """The demonstrated actions of an episode, with each joint's range for the whole film."""

    demonstrated: Float[np.ndarray, "frame joint"]
    low: Float[np.ndarray, " joint"]
    high: Float[np.ndarray, " joint"]
    words: str = "demonstrated"
    """What the recorded actions are called."""

    @classmethod
    def of(
        cls,
        demonstrated: Float[np.ndarray, "frame joint"],
        predicted: Sequence[Float[np.ndarray, " joint"]],
        words: str = "demonstrated",
    ) -> "ActionStrip":
        """With ranges that hold all demonstrated and predicted actions."""
        every = np.concatenate([demonstrated, np.stack(predicted)]).astype(np.float64)
        low, high = every.min(0), every.max(0)
        spare = np.maximum(0.05 * (high - low), 1e-6)
        return cls(demonstrated, low - spare, high + spare, words)

    def points(self, joint: int, frames, values, width: int) -> list[tuple[float, float]]:
        """Columns and rows of a joint's values in a curve that is `width` pixels wide."""
        last = max(1, len(self.demonstrated) - 1)
        across = np.asarray(frames) / last * (width - 1)
        share = (np.asarray(values) - self.low[joint]) / (self.high[joint] - self.low[joint])
        return list(zip(across.tolist(), ((1 - share) * (_HEIGHT - 1)).tolist(), strict=True))

    def picture(
        self, joints: Sequence[str], moments: Sequence[Moment], width: int, *, size: int
    ) -> Picture:
        """One curve a joint, seven at most in a row; what is predicted up to the last moment."""
        n = self.demonstrated.shape[1]
        columns = -(-n // -(-n // 7))
        each = (width - GAP * (columns - 1)) // columns
        step = _HEIGHT + size + 8
        rows = -(-n // columns)
        sheet = Image.new("RGB", (width, rows * step + size + 6), BACKGROUND)
        draw, letters = ImageDraw.Draw(sheet), font(size)
        x = 0.0
        for words, colour in (
            (self.words, _DEMONSTRATED), ("the policy's action for this frame", _PREDICTED),
        ):  # fmt: skip
            draw.line((x, size / 2 + 2, x + 22, size / 2 + 2), colour, 3)
            draw.text((x + 28, 0), words, TEXT, letters)
            x += 52 + letters.getlength(words)
        frames = [moment.frame for moment in moments]
        for joint in range(n):
            left, top = joint % columns * (each + GAP), joint // columns * step + size + 8
            now = moments[-1].predicted[joint]
            text = fitting(joints[joint], each - letters.getlength("-000.0") - 6, size)
            draw.text((left, top), text, QUIET, letters)
            number = f"{now:.1f}" if abs(self.high[joint]) > 10 else f"{now:.3g}"
            draw.text((left + each - letters.getlength(number), top), number, _PREDICTED, letters)
            curve = Image.new("RGB", (each, _HEIGHT), (36, 36, 36))
            lines = ImageDraw.Draw(curve)
            at = self.points(joint, frames[-1:], [now], each)[0][0]
            lines.line((at, 0, at, _HEIGHT), _NOW)
            whole = self.demonstrated[:, joint]
            lines.line(self.points(joint, range(len(whole)), whole, each), _DEMONSTRATED, 1)
            given = [moment.predicted[joint] for moment in moments]
            done = self.points(joint, frames, given, each)
            lines.line(done, _PREDICTED, 2)
            x, y = done[-1]
            lines.ellipse((x - 3, y - 3, x + 3, y + 3), _PREDICTED)
            sheet.paste(curve, (left, top + size + 4))
        return np.asarray(sheet)
