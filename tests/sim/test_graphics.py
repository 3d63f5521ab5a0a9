"""Choosing a renderer, and saying what to install when there is none."""

import os
import subprocess
import sys

import pytest

from actlens.sim import graphics

VARIABLES = ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")


@pytest.fixture(autouse=True)
def no_display(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    for variable in VARIABLES:
        # Set first, so that what choose_backend sets is undone after the test.
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)


@pytest.mark.parametrize(
    ("devices", "libraries", "chosen"),
    [
        (1, {"OpenGL"}, "egl"),
        (1, {"GL"}, "egl"),
        (2, {"OpenGL", "OSMesa"}, "egl"),
        (0, {"OpenGL", "OSMesa"}, "osmesa"),
        # libegl1 and libgl1-mesa-dri alone, on a bare Debian 12: EGL without OpenGL's functions.
        (1, {"OSMesa"}, "osmesa"),
        (1, set(), "disable"),
    ],
)
def test_egl_is_preferred_to_osmesa_where_it_is_whole(monkeypatch, devices, libraries, chosen):
    find = lambda name: f"lib{name}.so" if name in libraries else None
    monkeypatch.setattr(graphics, "_egl_devices", lambda: devices)
    monkeypatch.setattr(graphics.ctypes.util, "find_library", find)
    graphics.choose_backend()
    assert os.environ["MUJOCO_GL"] == chosen


def test_without_a_library_physics_still_imports(monkeypatch):
    monkeypatch.setattr(graphics, "_egl_devices", lambda: 0)
    monkeypatch.setattr(graphics.ctypes.util, "find_library", lambda _: None)
    graphics.choose_backend()
    assert os.environ["MUJOCO_GL"] == "disable"


@pytest.mark.parametrize(
    ("variable", "value"), [("MUJOCO_GL", "osmesa"), ("DISPLAY", ":0"), ("WAYLAND_DISPLAY", "w")]
)
def test_the_users_choice_and_a_display_are_respected(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(graphics, "_egl_devices", lambda: 1)
    graphics.choose_backend()
    assert os.environ.get("MUJOCO_GL") == (value if variable == "MUJOCO_GL" else None)


def test_without_opengl_physics_runs_and_pictures_name_the_packages():
    script = """
from actlens.sim.environment import PickCube
from actlens.sim.graphics import RenderingError
PickCube(render=False).reset(seed=0)
try:
    PickCube().reset(seed=0)
except RenderingError as error:
    assert "libegl1, libgl1-mesa-dri and libopengl0, or libosmesa6" in str(error), error
else:
    raise AssertionError("no error")
"""
    environment = os.environ | {"MUJOCO_GL": "disable", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
