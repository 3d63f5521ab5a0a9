"""What is logged for Rerun: by a stand-in that keeps every call, and by Rerun where it is there."""

import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import pytest

from actlens.errors import SceneError
from actlens.report.map_film import MapFilm, MapFrame
from actlens.report.map_rerun import require_rerun, rerun_file
from actlens.scene import Scene

FRAMES = (0, 4)


@pytest.fixture
def film(model):
    values = np.linspace(0, 0.2, len(model.tokens))
    maps = tuple(
        MapFrame(frame, values + frame, {"state": 0.1 + frame}, np.arange(3.0) + frame)
        for frame in FRAMES
    )
    demonstrated = np.arange(30.0).reshape(10, 3)
    return MapFilm(
        "a title", "share", maps, model.tokens, demonstrated, model.config.joints, fps=20.0
    )


@pytest.fixture
def scenes(model, observe):
    batch = observe(model, rows=2)
    return [Scene({k: v[i] for k, v in batch.items()}, frame=f) for i, f in enumerate(FRAMES)]


class Kept:
    """An archetype: what it was made of."""

    def __init__(self, *given, **options):
        self.given, self.options = given, options

    def compress(self, **options):
        self.options |= options
        return self


class Stream:
    """Keeps everything that is logged, at the time at which it is."""

    def __init__(self, application, **options):
        self.times, self.logged, self.path = {}, [], None

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        return None

    def save(self, path):
        self.path = path
        path.write_bytes(b"begun")

    def set_time(self, timeline, *, sequence=None, duration=None):
        self.times[timeline] = sequence if duration is None else duration

    def log(self, entity, what, *, static=False):
        name = entity if isinstance(entity, str) else "/".join(entity)
        self.logged.append((None if static else dict(self.times), name, what))

    def disconnect(self):
        self.path.write_bytes(b"whole")


@pytest.fixture
def streams(monkeypatch):
    """Rerun's place taken by the stand-in; gives every stream that was made."""
    made = []
    module = ModuleType("rerun")
    module.__spec__ = ModuleSpec("rerun", None)
    module.RecordingStream = lambda *given, **options: made.append(Stream(*given)) or made[-1]
    for name in ("Image", "Tensor", "Scalars", "TextDocument"):
        setattr(module, name, type(name, (Kept,), {}))
    monkeypatch.setitem(sys.modules, "rerun", module)
    return made


def test_every_moment_is_logged_at_its_time_with_its_own_numbers(film, scenes, streams, tmp_path):
    with rerun_file(tmp_path / "maps.rrd", film) as log:
        for one, scene in zip(film.frames, scenes, strict=True):
            log(one, scene)
    (stream,) = streams
    assert (tmp_path / "maps.rrd").read_bytes() == b"whole"
    assert stream.logged[0][0] is None
    for index, frame in enumerate(FRAMES):
        found = {
            name: what
            for times, name, what in stream.logged
            if times == {"frame": frame, "seconds": frame / 20}
        }
        cameras = {f"camera/{name}{end}" for name in ("top", "side") for end in ("", "/map")}
        joints = {
            f"action/{kind}/{joint}"
            for kind in ("predicted", "demonstrated")
            for joint in ("pan", "lift", "gripper")
        }
        assert set(found) == cameras | joints | {"tokens/top", "tokens/side", "bars/state"}
        assert found["action/predicted/gripper"].given == ([2.0 + frame],)
        assert found["action/demonstrated/lift"].given == ([3.0 * frame + 1],)
        assert found["bars/state"].given == ([0.1 + frame],)
        picture = scenes[index].observation["observation.images.top"].numpy()
        np.testing.assert_array_equal(found["camera/top"].given[0].transpose(2, 0, 1), picture)
        grid = film.grid(film.frames[index], "top")
        np.testing.assert_array_equal(found["tokens/top"].given[0], grid)
        (shown,) = found["camera/top/map"].given
        assert shown.shape == (32, 64, 4)
        np.testing.assert_array_equal(shown[0, 40, :3], film.scale.colours(grid)[0, 1])


def test_larger_values_hide_more_of_the_picture(film, scenes, streams, tmp_path):
    with rerun_file(tmp_path / "maps.rrd", film) as log:
        log(film.frames[0], scenes[0])
    (shown,) = [w.given[0] for _, name, w in streams[0].logged if name == "camera/side/map"]
    opacity = shown[16::32, 16, 3].astype(int)
    assert (np.diff(opacity) > 0).all()
    assert opacity.max() <= 0.86 * 255


def test_an_interrupt_leaves_nothing(film, scenes, streams, tmp_path):
    def interrupted():
        with rerun_file(tmp_path / "maps.rrd", film) as log:
            log(film.frames[0], scenes[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("actlens.report.map_rerun.find_spec", lambda name: None)
    with pytest.raises(SceneError, match=r"pip install 'hooked-act\[rerun\]'"):
        require_rerun()


@pytest.mark.skipif(find_spec("rerun") is None, reason="rerun-sdk is not installed")
def test_rerun_itself_finds_the_file_whole(film, scenes, tmp_path):
    path = tmp_path / "maps.rrd"
    with rerun_file(path, film) as log:
        for one, scene in zip(film.frames, scenes, strict=True):
            log(one, scene)
    words = [sys.executable, "-m", "rerun_cli", "rrd"]
    subprocess.run([*words, "verify", str(path)], check=True, capture_output=True)
    shown = subprocess.run([*words, "print", str(path)], check=True, capture_output=True, text=True)
    assert "/camera/top/map" in shown.stdout
    assert "/action/predicted/gripper" in shown.stdout
