import os

import pytest

from actlens.sim.environment import PickCube
from actlens.sim.graphics import RenderingError


@pytest.fixture(scope="session")
def physics():
    """The environment without pictures: no OpenGL, milliseconds per episode."""
    return PickCube(render=False)


@pytest.fixture(scope="session")
def renderer():
    """Asserts that pictures can be drawn here; asked for by every test that draws."""
    env = PickCube(height=24, width=32)
    try:
        env.reset(seed=0)
    except RenderingError as error:
        if os.environ.get("CI"):
            pytest.fail(f"nothing may be skipped in CI: {error}")
        pytest.skip(str(error))
    finally:
        env.close()
