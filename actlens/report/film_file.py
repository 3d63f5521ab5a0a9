"""A film written picture by picture: every browser plays it, and it is whole or not there."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from actlens.report.tiles import Picture

_TICKS = 512
"""Ticks of the container's clock per frame, so that every frame time is exact."""
_OPTIONS = {
    "crf": "23",
    "preset": "medium",
    "threads": "1",  # x264's output depends on the number of threads
    # A keyframe every two seconds or so, to jump to; the same bytes on every processor.
    "x264-params": "keyint=50:cpu-independent=1:colormatrix=smpte170m:range=tv",
}


@contextmanager
def film_file(path: Path, *, fps: float) -> Generator[Callable[[Picture], None]]:
    """Gives the function that takes the film's next picture; the file is there when all are.

    H.264 in mp4, 4:2:0, its index at the front so that it plays while it loads. One picture is in
    memory at a time. Whatever stops the writing, an interrupt too, leaves neither a file nor a
    part of one, and an earlier file as it was. Folders are made.

    Raises:
        ValueError: for a picture of odd or of another size than the first, or if there is none.
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    try:
        with av.open(str(unfinished), "w", format="mp4", options=options) as container:
            rate = Fraction(fps).limit_denominator(1001)
            stream: Any = container.add_stream("libx264", rate=rate, options=_OPTIONS)
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = 1 / rate
            stream.time_base = 1 / (rate * _TICKS)
            written = 0

            def write(picture: Picture) -> None:
                nonlocal written
                height, width, _ = picture.shape
                if not written:
                    stream.width, stream.height = width, height
                if height % 2 or width % 2 or (stream.height, stream.width) != (height, width):
                    raise ValueError(
                        f"Pictures of a film have one size, even both ways; this one is "
                        f"{height}x{width}, the film {stream.height}x{stream.width}."
                    )
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = written, 1 / rate
                container.mux(stream.encode(frame))
                written += 1

            yield write
            if not written:
                raise ValueError("A film has at least one picture.")
            container.mux(stream.encode(None))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
