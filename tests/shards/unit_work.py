"""Small units of work for the tests, importable by other processes."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actlens.errors import SceneError
from actlens.shards import Plan, encode


@dataclass(frozen=True)
class Numbers:
    unit: int
    values: np.ndarray
    total: float


def plan_of(n, **asked):
    return Plan.of({"work": "numbers"} | asked, ((f"unit {i}", {"i": i}) for i in range(n)))


def numbers(i, size=100):
    values = np.random.default_rng(i).normal(size=size)
    return Numbers(i, values, float(values.sum()) if i % 3 else float("nan"))


def compute(unit):
    return encode(numbers(unit.what["i"]), key=unit.key)


def slowly(unit):
    time.sleep(0.002)
    return compute(unit)


def refuse_the_third(unit):
    if unit.what["i"] == 2:
        raise SceneError("the scene is black")
    return compute(unit)


@dataclass(frozen=True)
class Deadly:
    """Ends its process at some units, each as often as the scratch folder does not yet say."""

    scratch: Path
    times: tuple[tuple[int, int], ...]

    def __call__(self, unit):
        i = unit.what["i"]
        died = self.scratch / f"died-{i}"
        before = died.stat().st_size if died.exists() else 0
        if before < dict(self.times).get(i, 0):
            with died.open("ab") as file:
                file.write(b".")
            os._exit(9)
        return compute(unit)


def contents(run):
    """The bytes of every finished unit, by key."""
    return {path.stem: path.read_bytes() for path in run.folder.glob("units/*/*.safetensors")}
