"""Where pictures come from without a screen: EGL, else OSMesa, chosen before MuJoCo is imported."""

import ctypes
import ctypes.util
import os
import sys

from actlens.errors import ActlensError


class RenderingError(ActlensError, RuntimeError):
    """This machine cannot draw: the OpenGL libraries are missing or do not start."""


def choose_backend() -> None:
    """Sets `MUJOCO_GL` on a Linux machine without a display, unless the user has set it.

    MuJoCo reads the variable once, when it is imported, and a process cannot change its mind later.
    """
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not sys.platform.startswith("linux") or has_display or os.environ.get("MUJOCO_GL"):
        return
    if _egl_devices() > 0 and _has_opengl():
        os.environ["MUJOCO_GL"] = "egl"
    elif ctypes.util.find_library("OSMesa"):
        os.environ["MUJOCO_GL"] = "osmesa"
    else:
        # Physics alone must still import; `missing_libraries` speaks up when a picture is wanted.
        os.environ["MUJOCO_GL"] = "disable"


def missing_libraries(cause: str) -> RenderingError:
    """The error that says how to get a software renderer."""
    return RenderingError(
        f"No renderer starts here (MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r}: {cause}). On "
        "Debian or Ubuntu install the packages libegl1, libgl1-mesa-dri and libopengl0, or "
        "libosmesa6; or use PickCube(render=False), which needs none."
    )


def _has_opengl() -> bool:
    """Whether there are OpenGL's functions beside EGL's: without them PyOpenGL fails on import."""
    return any(ctypes.util.find_library(name) for name in ("OpenGL", "GL"))


def _egl_devices() -> int:
    """How many EGL devices a loadable libEGL reports, software renderers included."""
    name = ctypes.util.find_library("EGL")
    if name is None:
        return 0
    try:
        library = ctypes.CDLL(name)
        library.eglGetProcAddress.restype = ctypes.c_void_p
        address = library.eglGetProcAddress(b"eglQueryDevicesEXT")
        if not address:
            return 0
        signature = ctypes.CFUNCTYPE(
            ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)
        )
        count = ctypes.c_int(0)
        return count.value if signature(address)(0, None, ctypes.byref(count)) else 0
    except (OSError, AttributeError):
        return 0
