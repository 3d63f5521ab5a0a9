"""How fast is the activation store, next to plain files of the same bytes on the same disk?

    python -m benchmarks.store
    python -m benchmarks.store --folder /data/tmp --scenes 2048 --rounds 9 --json

Writing and plain writing take turns within each round, in files of the same size, each synced to
the disk (fsync); what counts are medians over rounds and their ratios. The store's times contain
its checksums and its list of shards, the last line's also the cast from float32. "Cold" means that
the system was asked to drop the files from memory; a virtual machine's disk may still have them.
As in the experiments, freed memory is kept (`--no-keep-memory`: glibc's own setting, with which
every tensor that is read into costs fresh page faults).
"""

import dataclasses
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from actlens.allocator import keep_freed_memory
from actlens.config import ACTConfig
from actlens.store.appending import Content, append_shards
from actlens.store.manifest import Manifest, write_manifest
from actlens.store.reading import open_activations
from actlens.store.scene_tensors import EPISODE, FRAME, SOURCE
from actlens.store.shard_file import bytes_of
from actlens.store.sites import StoredSite

ADDRESS = "encoder.hook_out"
RAW, STORED, CAST = "plain files", "store", "store, cast from float32"
WHOLE, MAPPED, FLOAT32 = "plain files", "store, stored dtype", "store, as float32"
BATCH = 8
"""Scenes that are handed to the store at a time, as a forward does."""


@dataclass(frozen=True)
class Sizes:
    """What is written; defaults are the encoder output of a policy with two 480x640 cameras."""

    scenes: int = 512
    tokens: int = 602
    d_model: int = 512
    scenes_per_shard: int = 64
    rounds: int = 5
    random_scenes: int = 200
    """Scenes read alone, at random."""
    folder: Path | None = None
    """On which disk; the system's place for temporary files if not given."""
    keep_memory: bool = True
    """Let freed memory be used again, as the experiments do."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class Figures:
    """Median MB/s by variant, ratios to plain files (medians over rounds), milliseconds a scene."""

    megabytes: float
    write: dict[str, float]
    write_ratio: dict[str, float]
    read_cold: dict[str, float]
    read_warm: dict[str, float]
    read_cold_ratio: dict[str, float]
    read_warm_ratio: dict[str, float]
    random_cold_ms: float
    random_warm_ms: float
    load_average: float


def manifest(sizes: Sizes) -> Manifest:
    """The description of a store that no policy made."""
    config = ACTConfig((), action_dim=1, state_dim=None, env_state_dim=1, d_model=sizes.d_model)
    axes = ("batch", "token", "d_model")
    return Manifest(
        config=config,
        weights_sha256="0" * 64,
        checkpoint_sha256="",
        policy="",
        sites=(StoredSite(ADDRESS, axes, (sizes.tokens, sizes.d_model), {}),),
        aliases={},
        dtype=torch.bfloat16,
        action_shape=None,
        scenes_per_shard=sizes.scenes_per_shard,
        scenes_per_forward=BATCH,
        actlens="benchmark",
        environment={},
    )


def shards(values: Tensor, sizes: Sizes) -> Iterator[tuple[int, Tensor]]:
    """The values shard by shard, each with its number."""
    return enumerate(values.split(sizes.scenes_per_shard))


def write_raw(folder: Path, values: Tensor, sizes: Sizes) -> None:
    """As many plain files of the same bytes, each written at once and synced."""
    folder.mkdir()
    for index, part in shards(values, sizes):
        with (folder / f"{index}.raw").open("wb", buffering=0) as file:
            file.write(bytes_of(part))
            os.fsync(file.fileno())


def write_store(folder: Path, values: Tensor, sizes: Sizes) -> None:
    """A store of the values, written as `write_activations` writes."""
    folder.mkdir()
    described = manifest(sizes)
    write_manifest(folder, described)
    append_shards(folder, described, (), contents(values, sizes))


def contents(values: Tensor, sizes: Sizes) -> Iterator[Content]:
    """What the store's shards will hold."""
    for index, part in shards(values, sizes):
        n = len(part)
        yield Content(
            addresses=[(index, frame) for frame in range(n)],
            scenes_sha256="0" * 64,
            sources=[""],
            about={
                EPISODE: torch.full((n,), index),
                FRAME: torch.arange(n),
                SOURCE: torch.zeros(n, dtype=torch.int64),
            },
            values=(
                (ADDRESS, first, part[first : first + BATCH].bfloat16())
                for first in range(0, n, BATCH)
            ),
        )


def read_raw(folder: Path) -> None:
    """Every byte of the plain files into memory."""
    for path in sorted((folder / "raw").iterdir()):
        np.fromfile(path, np.uint8)


def read_mapped(folder: Path) -> None:
    """Every byte of the store's values into memory, in the stored dtype."""
    for _, part in open_activations(folder / "store")[ADDRESS].mapped():
        part.clone()


def read_float32(folder: Path) -> None:
    """Every value, a shard at a time, as an analysis gets it."""
    store = open_activations(folder / "store")
    for _ in store.iterate(ADDRESS, store.manifest.scenes_per_shard):
        pass


READERS = {WHOLE: read_raw, MAPPED: read_mapped, FLOAT32: read_float32}


def drop_from_memory(folder: Path) -> None:
    """Ask the system to forget what it holds of the files."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def seconds(run: Callable[[], object]) -> float:
    """Wall time of a call: disks are waited for."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def random_access(folder: Path, sizes: Sizes, *, cold: bool) -> float:
    """Milliseconds for one scene at random, as float32."""
    chosen = np.random.default_rng(0).integers(0, sizes.scenes, sizes.random_scenes)
    values = open_activations(folder)[ADDRESS]
    taken = []
    if not cold:
        _ = values[chosen]
    for scene in chosen:
        if cold:
            drop_from_memory(folder)
            values = open_activations(folder)[ADDRESS]
        taken.append(seconds(lambda s=int(scene), v=values: v[s]))
    return statistics.median(taken) * 1e3


@contextmanager
def scratch(parent: Path | None) -> Iterator[Path]:
    """An empty folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=parent, prefix="actlens-store-") as folder:
        yield Path(folder)


def measure(sizes: Sizes) -> Figures:
    """Write, then read, all variants in turn in every round."""
    if sizes.keep_memory:
        keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    float32 = torch.randn(sizes.scenes, sizes.tokens, sizes.d_model, generator=generator)
    bfloat16 = float32.bfloat16()
    megabytes = bfloat16.nbytes / 1e6
    written: dict[str, list[float]] = {name: [] for name in (RAW, STORED, CAST)}
    read = {(name, cold): [] for name in READERS for cold in (True, False)}
    with scratch(sizes.folder) as folder:
        writers = {
            RAW: lambda: write_raw(folder / "raw", bfloat16, sizes),
            STORED: lambda: write_store(folder / "store", bfloat16, sizes),
            CAST: lambda: write_store(folder / "store", float32, sizes),
        }
        for turn in range(sizes.rounds):
            order = [*writers, *writers][turn % len(writers) :][: len(writers)]
            for name in order:
                shutil.rmtree(folder / ("raw" if name == RAW else "store"), ignore_errors=True)
                os.sync()  # nobody pays for what another left to be done
                written[name].append(seconds(writers[name]))
            for (name, cold), times in read.items():
                if cold:
                    drop_from_memory(folder / "raw")
                    drop_from_memory(folder / "store")
                times.append(seconds(partial(READERS[name], folder)))
        random_cold = random_access(folder / "store", sizes, cold=True)
        random_warm = random_access(folder / "store", sizes, cold=False)
    cold, warm = ({n: read[n, c] for n in (WHOLE, MAPPED, FLOAT32)} for c in (True, False))
    speed = lambda times: {n: megabytes / statistics.median(t) for n, t in times.items()}
    return Figures(
        megabytes,
        speed(written),
        ratios(written, RAW),
        speed(cold),
        speed(warm),
        ratios(cold, WHOLE),
        ratios(warm, WHOLE),
        random_cold,
        random_warm,
        os.getloadavg()[0],
    )


def ratios(times: dict[str, list[float]], baseline: str) -> dict[str, float]:
    """Speed as a share of the baseline's: the median over rounds of the rounds' ratios."""
    return {
        name: statistics.median(b / t for b, t in zip(times[baseline], taken, strict=True))
        for name, taken in times.items()
    }


def main(sizes: Sizes) -> None:
    """Measure, and print a table or JSON."""
    figures = measure(sizes)
    if sizes.json:
        chosen = dataclasses.asdict(sizes) | {"folder": None}
        report = {"sizes": chosen, "figures": dataclasses.asdict(figures)}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
        return
    table = Table("", "MB/s", "ratio", title=f"{figures.megabytes:.0f} MB of bfloat16, medians")
    for what, speed, ratio in (
        ("write", figures.write, figures.write_ratio),
        ("read, cold", figures.read_cold, figures.read_cold_ratio),
        ("read, warm", figures.read_warm, figures.read_warm_ratio),
    ):
        for name in speed:
            table.add_row(f"{what}: {name}", f"{speed[name]:.0f}", f"{ratio[name]:.2f}")
    console = Console()
    console.print(table)
    console.print(
        f"One scene at random: {figures.random_cold_ms:.2f} ms cold, "
        f"{figures.random_warm_ms:.2f} ms warm. Load average of the machine: "
        f"{figures.load_average:.1f}."
    )


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Sizes], description=__doc__))
