import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "av",
    "h5py",
    "lerobot",
    "matplotlib",
    "mujoco",
    "nnsight",
    "pandas",
    "pyarrow",
    "rich",
    "scipy",
    "sklearn",
    "torchvision",
    "transformers",
    "tyro",
)

# CPU time of this process, not of the clock on the wall: a busy machine makes no difference to it.
MEASURE = """
import json, resource, sys
import torch
before, start = set(sys.modules), resource.getrusage(resource.RUSAGE_SELF)
{statement}
end = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({{
    "seconds": end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime,
    "imported": sorted({{name.split(".")[0] for name in set(sys.modules) - before}}),
}}))
"""


def measure(statement):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", MEASURE.format(statement=statement)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("statement", ["import actlens", "from actlens import HookedACT"])
def test_importing_loads_no_heavy_package(statement):
    imported = measure(statement)["imported"]
    assert [name for name in HEAVY if name in imported] == []


def test_importing_takes_under_three_tenths_of_a_second_on_top_of_torch():
    # The best of three: the first import after an installation writes bytecode.
    seconds = [measure("from actlens import HookedACT")["seconds"] for _ in range(3)]
    assert min(seconds) < 0.3, seconds


def test_importing_prints_nothing_and_defines_names_only():
    statement = "import warnings; hooks = warnings.showwarning, sys.excepthook; import actlens; "
    statement += "assert hooks == (warnings.showwarning, sys.excepthook)"
    measure(statement)  # its output must be JSON and nothing else


def test_the_commands_let_threads_sleep_while_they_wait():
    code = "import experiments, os, sys; assert 'torch' not in sys.modules; "
    code += "print(os.environ['OMP_WAIT_POLICY'])"
    keep = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    run = lambda env: subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env, cwd=ROOT
    ).stdout.strip()
    assert run(keep) == "PASSIVE"
    assert run(keep | {"OMP_WAIT_POLICY": "ACTIVE"}) == "ACTIVE"  # who asks for it gets it
