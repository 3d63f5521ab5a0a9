"""Frames of a video at given times, pixel for pixel as LeRobot's PyAV backend decodes them."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from actlens.errors import SceneError
from actlens.text import clean_text

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

TOLERANCE_S = 1e-4
"""How far a frame's time may lie from the time asked for, in seconds: LeRobot's default."""

_SEEK_GAP_S = 1.0
"""A longer jump forward, in seconds, is made by seeking and not by decoding what lies between."""


def decode_frames(
    path: Path, times: Sequence[float], *, height: int, width: int
) -> Iterator[UInt8[np.ndarray, "3 {height} {width}"]]:
    """The frames at ascending `times` (seconds in the file), one after the other.

    The file is opened once and decoded forwards; only gaps of over a second are jumped. Colours are
    converted as BT.601 in limited range whatever the file is tagged with, because PyAV 15, which
    LeRobot pins, ignores the tags; full-range pixel formats (`yuvj…`) keep their range, as there.

    Raises:
        SceneError: while iterating, if the file cannot be decoded, has frames of another size, or
            has no frame within `TOLERANCE_S` of a time.
    """
    import av
    from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

    if any(after < before for before, after in pairwise(times)):
        raise SceneError(f"{path}: frames must be asked for in ascending order of time.")
    # One converter for all frames: making one per frame costs six times the decoding.
    reformatter = VideoReformatter()
    try:
        # The demuxer is named because FFmpeg would otherwise obey a playlist that poses as a video.
        with av.open(str(path), format="mp4", metadata_errors="ignore") as container:
            for frame in _at_times(container, times, path):
                if (frame.height, frame.width) != (height, width) or frame.is_corrupt:
                    raise SceneError(
                        f"{path}: the frame at {frame.time:.4f} s is {frame.height}x{frame.width}"
                        f"{' and damaged' if frame.is_corrupt else ''}; the dataset promises "
                        f"{height}x{width}."
                    )
                rgb = reformatter.reformat(
                    frame,
                    format="rgb24",
                    src_colorspace=Colorspace.ITU601,
                    src_color_range=ColorRange.MPEG,
                )
                yield rgb.to_ndarray().transpose(2, 0, 1)
    except SceneError:
        raise
    except (av.FFmpegError, OSError, ValueError, IndexError, MemoryError) as problem:
        raise SceneError(
            f"{path} cannot be decoded: {clean_text(problem)}. Is the file whole?"
        ) from problem


def _at_times(
    container: "InputContainer", times: Sequence[float], path: Path
) -> Iterator["VideoFrame"]:
    """The decoded frame at each of the ascending times."""
    stream = next(iter(container.streams.video), None)
    if stream is None or stream.time_base is None:
        raise SceneError(f"{path} holds no video.")
    stream.thread_type = "AUTO"
    decoded: Iterator[VideoFrame] = iter(())
    frame: VideoFrame | None = None
    now = -math.inf
    for n_found, time in enumerate(times):
        if time - now > _SEEK_GAP_S:
            offset = round(max(time, 0.0) / float(stream.time_base))
            container.seek(offset, backward=True, stream=stream)
            decoded, now = container.decode(stream), -math.inf
        while frame is None or now <= time - TOLERANCE_S:
            frame = next(decoded, None)
            if frame is None or frame.time is None:
                raise SceneError(
                    f"{path} ends too early: {len(times)} frames were expected in it, the last at "
                    f"{times[-1]:.4f} s, and {n_found} were found; it has none at {time:.4f} s."
                )
            now = frame.time
        if now >= time + TOLERANCE_S:
            raise SceneError(
                f"{path} has no frame at {time:.4f} s: the next one lies at {now:.4f} s, which "
                f"is off by more than {TOLERANCE_S} s. Does the file have the dataset's frames "
                "per second?"
            )
        yield frame
