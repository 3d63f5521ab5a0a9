"""How fast is exact search, next to scikit-learn's comparison with all keys?

    python -m benchmarks.search
    python -m benchmarks.search --keys 200000 --dims 512 --k 1 --rounds 9 --json

Both answer the same queries in turn within each round, on as many threads; what counts is the
median over rounds of the ratio. Every round compares what both found. scikit-learn reads the keys
as they are; the index's reduced copy is made once, and its time stands beside: so many batches of
queries must come until it has paid for itself.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, TypeVar

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from sklearn.neighbors import NearestNeighbors as BruteForce
from threadpoolctl import threadpool_limits

from actlens.retrieval.search import NearestNeighbours, fastest_dtype

Result = TypeVar("Result")


class World(Enum):
    """What keys look like."""

    NOISE = "noise"
    """Independent in every dimension: no key is much nearer than another, the hardest case."""
    PATHS = "paths"
    """Frames of smooth paths through 16 dimensions, as recorded scenes are, plus noise."""
    CLUSTERS = "clusters"
    """A thousand places, whose keys differ by less than the reduced precision resolves."""


@dataclass(frozen=True)
class Sizes:
    """What is searched."""

    keys: int = 1_000_000
    dims: int = 256
    queries: int = 100
    k: int = 10
    rounds: int = 5
    threads: int = 1
    seed: int = 0
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class Figures:
    """Medians over rounds, for one kind of keys."""

    keys: str
    dtype: str
    build_s: float
    reduced_mb: float
    search_s: float
    brute_force_s: float
    ratio: float
    """Brute force / search, the median of the rounds' ratios."""
    smallest_ratio: float
    examined: float
    """Keys compared in float64, of a query on average."""
    same_neighbours: bool
    """In all rounds, in the same order."""
    smallest_margin: float
    load_average: float


def drawn(world: World, sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Keys and queries, float32."""
    rng = np.random.default_rng(sizes.seed)
    noise = lambda n: rng.standard_normal((n, sizes.dims), dtype=np.float32)
    if world is World.NOISE:
        return noise(sizes.keys), noise(sizes.queries)
    if world is World.CLUSTERS:
        places = noise(1000)
        near = lambda n: places[rng.integers(0, 1000, n)] + 1e-3 * noise(n)
        return near(sizes.keys), near(sizes.queries)
    spread = rng.standard_normal((16, sizes.dims), dtype=np.float32)
    starts = rng.standard_normal((-(-sizes.keys // 100), 1, 16), dtype=np.float32)
    steps = 0.05 * rng.standard_normal((len(starts), 100, 16), dtype=np.float32)
    path = (starts + steps.cumsum(1)).reshape(-1, 16)[: sizes.keys]
    asked = rng.standard_normal((sizes.queries, 16), dtype=np.float32)
    return path @ spread + 0.3 * noise(sizes.keys), asked @ spread + 0.3 * noise(sizes.queries)


def measure(world: World, sizes: Sizes, dtype: torch.dtype) -> Figures:
    """Search and brute force in turn."""
    keys, queries = drawn(world, sizes)
    index, build = timed(lambda: NearestNeighbours.of(keys, dtype=dtype))
    other: Any = BruteForce(n_neighbors=sizes.k, algorithm="brute")
    other.fit(keys)
    rounds = []
    for _ in range(sizes.rounds + 1):
        found, ours = timed(lambda: index.search(queries, sizes.k))
        indices, theirs = timed(lambda: other.kneighbors(queries, return_distance=False))
        rounds.append((ours, theirs, np.array_equal(found.indices, indices)))
    rounds = rounds[1:]  # the first warms both up
    ratios = [theirs / ours for ours, theirs, _ in rounds]
    return Figures(
        world.value,
        str(dtype).removeprefix("torch."),
        build,
        index.reduced.values.nbytes / 1e6,
        statistics.median(ours for ours, _, _ in rounds),
        statistics.median(theirs for _, theirs, _ in rounds),
        statistics.median(ratios),
        min(ratios),
        float(found.examined.mean()),
        all(same for _, _, same in rounds),
        float(found.margin.min()),
        os.getloadavg()[0],
    )


def timed(call: Callable[[], Result]) -> tuple[Result, float]:
    """What a call gives, and its seconds."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def table(sizes: Sizes, figures: list[Figures]) -> Table:
    """One row a kind of keys."""
    title = (
        f"{sizes.queries} queries among {sizes.keys:,} keys of {sizes.dims} dimensions, "
        f"k = {sizes.k}, threads: {sizes.threads}"
    )
    columns = ("keys", "reduced", "index made s", "MB", "search s", "scikit-learn s", "ratio")
    more = ("worst round", "examined", "same neighbours", "load")
    shown = Table(*columns, *more, title=title)
    for f in figures:
        shown.add_row(
            f.keys,
            f.dtype,
            f"{f.build_s:.1f}",
            f"{f.reduced_mb:.0f}",
            f"{f.search_s:.3f}",
            f"{f.brute_force_s:.3f}",
            f"{f.ratio:.1f}",
            f"{f.smallest_ratio:.1f}",
            f"{f.examined:.0f}",
            "yes" if f.same_neighbours else "NO",
            f"{f.load_average:.1f}",
        )
    return shown


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    sizes = tyro.cli(Sizes, prog="python -m benchmarks.search", description=__doc__, args=argv)
    torch.set_num_threads(sizes.threads)
    with threadpool_limits(sizes.threads):
        dtype = fastest_dtype()
        figures = [measure(world, sizes, dtype) for world in World]
    if sizes.json:
        sys.stdout.write(json.dumps([asdict(f) for f in figures], indent=1) + "\n")
    else:
        Console(width=140).print(table(sizes, figures))
    return 0 if all(f.same_neighbours for f in figures) else 1


if __name__ == "__main__":
    raise SystemExit(main())
