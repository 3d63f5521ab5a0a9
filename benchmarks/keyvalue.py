"""How fast do triggers stream, and what memory does a large dataset take?

    python -m benchmarks.keyvalue
    python -m benchmarks.keyvalue --frames 1000000 --positions 1 --json

The MLP's inputs are random numbers in bfloat16, made anew episode by episode, as a store would give
them; making them is not timed. Times stand beside the bare matrix product that no reading of keys
can do without, in turn with it. Memory is the process's largest, above what it held before.
"""

import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from actlens.allocator import keep_freed_memory
from actlens.config import Activation
from actlens.keyvalue import Entries, Keys, read_memories
from actlens.model.mlp_site import MLPSite

TRAITS = ("frame", "cube_x", "cube_y", "cube_z", "cube_yaw", "position", "frame + position")


@dataclass(frozen=True)
class Sizes:
    """What streams by; defaults are the first query of a policy of the original size."""

    frames: int = 10_000
    frames_per_episode: int = 500
    positions: int = 1
    """Chunk positions of every frame."""
    neurons: int = 3200
    d_model: int = 512
    top: int = 25
    threads: int = 2
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class Figures:
    """Seconds, their ratio, and GiB."""

    reading: float
    product: float
    ratio: float
    memory: float
    process: float
    """The process's largest in all, the interpreter and torch among it."""
    load_average: float


class Stream:
    """Random entries, and how long the products with the keys take on their own."""

    def __init__(self, sizes: Sizes, keys: Keys):
        self.sizes, self.keys = sizes, keys
        self.product, self.making = 0.0, 0.0

    def __iter__(self) -> Iterator[Entries]:
        sizes = self.sizes
        rng = np.random.default_rng(0)
        generator = torch.Generator().manual_seed(0)
        for episode in range(-(-sizes.frames // sizes.frames_per_episode)):
            began = time.perf_counter()
            n = min(sizes.frames_per_episode, sizes.frames - episode * sizes.frames_per_episode)
            shape = (n, sizes.positions)
            inputs = torch.randn(*shape, sizes.d_model, generator=generator).bfloat16()
            some = Entries(
                ("random", episode),
                np.arange(n),
                np.arange(sizes.positions),
                inputs,
                torch.ones(shape, dtype=torch.bool),
                TRAITS,
                rng.random((*shape, len(TRAITS)), dtype=np.float32),
            )
            made = time.perf_counter()
            self.keys.coefficients(inputs.flatten(0, 1).float())
            self.making += made - began
            self.product += time.perf_counter() - made
            yield some


def measure(sizes: Sizes) -> Figures:
    """Read once."""
    keep_freed_memory()
    torch.set_num_threads(sizes.threads)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(sizes.neurons, sizes.d_model, generator=generator)
    bias = torch.full((sizes.neurons,), -1.3 * sizes.d_model**0.5)  # a tenth is active
    keys = Keys(MLPSite("decoder.0"), weight, bias, Activation.RELU)
    keys.coefficients(torch.zeros(8, sizes.d_model))
    before = _peak()
    stream = Stream(sizes, keys)
    began = time.perf_counter()
    (reading,) = read_memories([keys], stream, top=sizes.top)
    took = time.perf_counter() - began - stream.making - stream.product
    assert reading.n_frames == sizes.frames
    peak = _peak()
    return Figures(
        took, stream.product, took / stream.product, peak - before, peak, os.getloadavg()[0]
    )


def _peak() -> float:
    """The process's largest resident memory so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> int:
    """Parse, measure, show."""
    sizes = tyro.cli(Sizes, prog="python -m benchmarks.keyvalue", description=__doc__)
    found = measure(sizes)
    if sizes.json:
        sys.stdout.write(json.dumps(dataclasses.asdict(sizes) | dataclasses.asdict(found)) + "\n")
        return 0
    table = Table(
        title=f"{sizes.neurons:,} neurons, {sizes.frames:,} frames x {sizes.positions} positions"
    )
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("triggers, activity, background", f"{found.reading:.2f} s")
    table.add_row("the products alone", f"{found.product:.2f} s")
    table.add_row("ratio", f"{found.ratio:.2f}")
    table.add_row("memory above the start", f"{found.memory:.2f} GiB")
    table.add_row("whole process, largest", f"{found.process:.2f} GiB")
    table.add_row("load average", f"{found.load_average:.1f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
