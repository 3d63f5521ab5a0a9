"""A run that is killed at any moment goes on to the very same files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("needs a system that can fork")
    done = subprocess.run(
        [sys.executable, HERE / "victim.py", tmp_path_factory.mktemp("runs")],
        capture_output=True, text=True, check=False, cwd=HERE.parents[1],
        env=os.environ | {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parents[1]}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_killed_at_every_step_of_writing_it_resumes_to_the_same_bytes(found):
    # For run.json: flush, link, remove the passing name. For each unit: flush, replace.
    assert len(found["steps"]) >= 3 + 2 * found["units"]
    assert all(found["steps"])


def test_killed_again_and_again_at_any_time_it_resumes_to_the_same_bytes(found):
    assert sum(trial["killed"] for trial in found["kills"]) >= 20, "the kills came too late"
    assert all(trial["same"] for trial in found["kills"])
