import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent


@pytest.fixture(scope="session")
def lerobot_python():
    """LeRobot's own interpreter: a second environment, since its pins contradict ours."""
    python = Path(os.environ.get("ACTLENS_LEROBOT_PYTHON", ROOT / ".venv-lerobot/bin/python"))
    if not python.exists():
        reason = f"{python} does not exist; .ci/lerobot-environment makes LeRobot's environment"
        if os.environ.get("CI"):
            pytest.fail(f"nothing may be skipped in CI: {reason}")
        pytest.skip(reason)
    return python


@pytest.fixture(scope="session")
def run_lerobot(lerobot_python):
    """Run one of this folder's scripts with LeRobot's interpreter, offline."""

    def run(script, *arguments):
        done = subprocess.run(
            [lerobot_python, SCRIPTS / script, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run
