"""The maps of an episode as a recording for the Rerun viewer (https://rerun.io)."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from actlens.errors import SceneError
from actlens.report.colours import cells
from actlens.report.map_film import MapFilm, MapFrame
from actlens.scene import Scene

_OPACITY = 0.85
"""Of a map where it is largest; the viewer shows pictures in colour, and what is small clear."""


def require_rerun() -> None:
    """Raise before any work if the package is not installed.

    Raises:
        SceneError: naming what to install.
    """
    if find_spec("rerun") is None:
        raise SceneError(
            "A .rrd file needs the package rerun-sdk, which is not installed: "
            "pip install 'hooked-act[rerun]'."
        )


@contextmanager
def rerun_file(path: Path, film: MapFilm) -> Generator[Callable[[MapFrame, Scene], None]]:
    """Gives the function that logs the next moment; the file is there when all are logged.

    On the timelines `frame` and `seconds`: pictures (`camera/NAME`), maps over them
    (`camera/NAME/map`) and as numbers (`tokens/NAME`), bars (`bars/NAME`), and the joints
    (`action/predicted/JOINT`, `action/demonstrated/JOINT`). Interrupted, it leaves nothing.

    Raises:
        SceneError: if the package rerun-sdk is not installed.
    """
    require_rerun()
    import rerun as rr

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with rr.RecordingStream("actlens", send_properties=False) as stream:
            stream.save(unfinished)
            stream.log("about", rr.TextDocument(f"{film.title}\n\n{film.scale}"), static=True)
            yield lambda one, scene: _log(rr, stream, film, one, scene)
            stream.disconnect()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _log(rr, stream, film: MapFilm, one: MapFrame, scene: Scene) -> None:
    stream.set_time("frame", sequence=one.frame)
    stream.set_time("seconds", duration=one.frame / film.fps)
    for camera in film.tokens.config.cameras:
        picture = scene.picture(camera.key)
        values = film.grid(one, camera.name)
        stream.log(f"camera/{camera.name}", rr.Image(picture).compress(jpeg_quality=90))
        stream.log(f"camera/{camera.name}/map", rr.Image(_map(film, values, picture)))
        stream.log(f"tokens/{camera.name}", rr.Tensor(values, dim_names=("row", "column")))
    for name, value in one.bars.items():
        stream.log(["bars", name], rr.Scalars([value]))
    for index, joint in enumerate(film.joint_names):
        stream.log(["action", "predicted", joint], rr.Scalars([float(one.predicted[index])]))
        shown = float(film.demonstrated[one.frame, index])
        stream.log(["action", "demonstrated", joint], rr.Scalars([shown]))


def _map(film: MapFilm, values: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """The map's colours with an opacity, uint8 `(height, width, 4)`."""
    spread = cells(values, film.tokens.stride, picture.shape[:2])
    share = np.abs(film.scale.levels(np.nan_to_num(spread)))
    opacity = np.rint(255 * _OPACITY * share).astype(np.uint8)
    return np.concatenate([film.scale.colours(spread), opacity[..., None]], axis=2)
