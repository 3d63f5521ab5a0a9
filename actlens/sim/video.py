"""Episodes as H.264 video: each one a closed group of pictures, joined without re-encoding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_TICKS = 512
"""Ticks of the container's clock per frame, so that every frame time is exact."""


@dataclass(frozen=True)
class VideoSettings:
    """How pictures are compressed; the defaults were chosen by measuring harm around the cube."""

    crf: int = 27
    """Constant rate factor of x264: smaller is better and larger."""
    pixel_format: str = "yuv444p"
    """`yuv444p` halves the error around a small red cube at the same size; `yuv420p` plays in every
    browser and player, too."""
    preset: str = "veryslow"

    def options(self) -> dict[str, str]:
        """x264's options; one thread, since its output depends on the number of threads."""
        return {
            "crf": str(self.crf),
            "preset": self.preset,
            "threads": "1",
            # Without psychovisual tricks, which spend bits on looking sharp instead of being right;
            # and the same bytes on every processor: x264's fastest code for AVX-512 differs from
            # run to run, about once in two hundred.
            "x264-params": "no-psy=1:cpu-independent=1:keyint=infinite:scenecut=0:open-gop=0"
            ":colormatrix=smpte170m:range=tv",
        }


def encode(path: Path, pictures: np.ndarray, *, fps: int, settings: VideoSettings) -> None:
    """Writes one episode's pictures, uint8 `(time, height, width, 3)`, with one keyframe."""
    _, height, width, _ = pictures.shape
    # Without `bitexact` the muxer would stamp its library's version into the file.
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=settings.options())
        stream.width, stream.height = width, height
        stream.pix_fmt = settings.pixel_format
        stream.codec_context.time_base = Fraction(1, fps)
        stream.time_base = Fraction(1, fps * _TICKS)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def join(path: Path, parts: Sequence[Path], *, lengths: Sequence[int], fps: int) -> None:
    """Copies the packets of `parts` one after another into a single file.

    Args:
        path: the file to write.
        parts: files written by `encode` with the same settings and picture size.
        lengths: frames in each part.
        fps: frames per second of all parts.
    """
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = None
        start = 0
        for part, length in zip(parts, lengths, strict=True):
            with av.open(str(part)) as source:
                track = source.streams.video[0]
                if stream is None:
                    stream = container.add_stream_from_template(track)
                    stream.time_base = track.time_base
                assert track.time_base is not None  # every mp4 that `encode` wrote has one
                offset = round(start / (fps * track.time_base))
                for packet in source.demux(track):
                    if packet.dts is None or packet.pts is None:
                        continue
                    packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                    packet.stream = stream
                    container.mux(packet)
            start += length


def decode(path: Path) -> Iterator[np.ndarray]:
    """The pictures of a file in order, uint8 `(height, width, 3)` each."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")
