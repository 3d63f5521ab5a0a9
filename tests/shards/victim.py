"""Runs that are killed, each in a forked child of this one process (importing torch takes long).

Prints as JSON what was found; `test_killed_runs.py` judges it.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from unit_work import contents, plan_of, slowly

from actlens.shards import Threads, begin, complete, read_all

UNITS = 6
PLAN = plan_of(UNITS)
KILLS = 24
"""At random times, over as many runs as it takes."""


def in_child(work):
    """Fork, run, and end without cleaning up; the child's process id."""
    child = os.fork()
    if child:
        return child
    work()
    os._exit(0)


def run(folder):
    found = begin(folder, PLAN, settle=lambda: {"tolerance": 0.5})
    complete(found, PLAN.units, slowly, Threads(2))
    return found


def killed_at(folder, step):
    """A run whose process is dead at its n-th step of writing; whether it came that far."""
    left = step

    def dying(call):
        def counted(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counted

    def work():
        # Before a file is flushed it is empty or in part there; before a link or a replacement it
        # is whole under a passing name.
        os.fsync, os.link = dying(os.fsync), dying(os.link)
        Path.replace, Path.unlink = dying(Path.replace), dying(Path.unlink)
        run(folder)

    _, status = os.waitpid(in_child(work), 0)
    return os.WIFSIGNALED(status)


def killed_after(folder, seconds):
    child = in_child(lambda: run(folder))
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def result(folder):
    """What a folder holds after a whole run of a child: read in this process."""
    os.waitpid(in_child(lambda: run(folder)), 0)
    found = begin(folder, PLAN)
    values = [record.values.tobytes().hex() for record in read_all([found], _numbers())]
    return {key: content.hex() for key, content in contents(found).items()}, values


def _numbers():
    from unit_work import Numbers

    return Numbers


def main(root):
    expected = result(root / "undisturbed")
    steps, step = [], 0
    while killed_at(folder := root / f"step-{step}", step):
        steps.append(result(folder) == expected)
        step += 1
    kills, clock = [], random.Random(0)
    # On a busy machine many runs are over before they are killed: go on until enough were not.
    while sum(trial["killed"] for trial in kills) < KILLS and len(kills) < 10 * KILLS:
        folder = root / f"trial-{len(kills)}"
        killed = sum(killed_after(folder, clock.uniform(0, 0.02)) for _ in range(3))
        kills.append({"killed": killed, "same": result(folder) == expected})
    json.dump({"steps": steps, "kills": kills, "units": len(expected[0])}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
