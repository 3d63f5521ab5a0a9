"""What do hook points cost: idle, caching everything, and against a network without any?

    python -m benchmarks.hooks
    python -m benchmarks.hooks --height 240 --width 320 --rounds 20 --json

The variants run in turn within each round, so that all of them meet the same machine; what counts
are the medians over rounds and their ratios to the network of `nn.MultiheadAttention` modules.
Freed memory is kept, as in the experiments: with glibc's own setting (`--no-keep-memory`) every
buffer of a cache costs fresh page faults.
"""

import dataclasses
import json
import os
import statistics
import sys
import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from actlens.allocator import keep_freed_memory
from actlens.config import STATE_KEY, ACTConfig, Camera
from actlens.hooks import HookPoint
from actlens.model.act import HookedACT
from actlens.model.lerobot_names import from_lerobot
from tests.referees.reference_act import ReferenceACT

REFERENCE, PLAIN, FUSED, CACHED = "reference", "plain", "fused attention", "cache of everything"


@dataclass(frozen=True)
class Sizes:
    """The network and the machine's share; defaults are a 3-layer ACT with two 480x640 cameras."""

    height: int = 480
    width: int = 640
    cameras: int = 2
    encoder_layers: int = 3
    rounds: int = 7
    """Timed runs of each variant, after one that is not."""
    threads: int = 1
    keep_memory: bool = True
    """Let freed memory be used again, as the experiments do."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class Figures:
    """What was measured: microseconds per idle call, median seconds per run, cache size in MiB."""

    idle_hook_us: float
    hook_points: int
    wall: dict[str, float]
    cpu: dict[str, float]
    cache_mib: float
    load_average: float


def idle_hook_microseconds(calls: int = 10_000, repeats: int = 200) -> float:
    """The price of one call of a hook point nobody watches, the least of several repeats."""
    names = {"point": HookPoint("batch"), "x": torch.zeros(1)}
    clock = time.process_time
    call = timeit.Timer("point(x)", globals=names, timer=clock).repeat(repeats, calls)
    empty = timeit.Timer("x", globals=names, timer=clock).repeat(repeats, calls)
    return (min(call) - min(empty)) / calls * 1e6


def build(sizes: Sizes) -> tuple[dict[str, Callable[[], Any]], HookedACT]:
    """The variants to time, all with the same weights and the same observation."""
    cameras = tuple(
        Camera(f"observation.images.camera{i}", sizes.height, sizes.width)
        for i in range(sizes.cameras)
    )
    config = ACTConfig(
        cameras=cameras,
        action_dim=6,
        state_dim=6,
        n_encoder_layers=sizes.encoder_layers,
        use_vae=False,
    )
    torch.manual_seed(0)
    reference = ReferenceACT(config).eval()
    weights = {from_lerobot(name): tensor for name, tensor in reference.state_dict().items()}
    models = {name: HookedACT(config).eval() for name in (PLAIN, FUSED)}
    for model in models.values():
        model.load_state_dict(weights)
    models[FUSED].fused_attention = True
    images = [torch.rand(1, 3, sizes.height, sizes.width) for _ in cameras]
    state = torch.randn(1, 6)
    keys = [camera.key for camera in cameras]
    observation = dict(zip(keys, images, strict=True)) | {STATE_KEY: state}
    variants = {
        REFERENCE: lambda: reference(images, state),
        PLAIN: lambda: models[PLAIN](observation),
        FUSED: lambda: models[FUSED](observation),
        CACHED: lambda: models[PLAIN].run_with_cache(observation),
    }
    return variants, models[PLAIN]


@torch.no_grad()
def measure(sizes: Sizes) -> Figures:
    """Time every variant in turn, round by round."""
    torch.set_num_threads(sizes.threads)
    if sizes.keep_memory:
        keep_freed_memory()
    variants, model = build(sizes)
    equal = torch.equal(variants[REFERENCE](), variants[PLAIN]())
    if not equal:
        raise SystemExit("The reference and HookedACT disagree: the times would mean nothing.")
    _, cache = variants[CACHED]()
    cache_mib = cache.nbytes / 2**20
    del cache
    wall: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    variants[FUSED]()
    for _ in range(sizes.rounds):
        for name, run in variants.items():
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            run()
            cpu[name].append(time.process_time() - cpu_start)
            wall[name].append(time.perf_counter() - wall_start)
    return Figures(
        idle_hook_microseconds(),
        len(model.hook_dict),
        {name: statistics.median(times) for name, times in wall.items()},
        {name: statistics.median(times) for name, times in cpu.items()},
        cache_mib,
        os.getloadavg()[0],
    )


def main(sizes: Sizes) -> None:
    """Measure, and print a table or JSON."""
    figures = measure(sizes)
    console = Console()
    if sizes.json:
        report = {"sizes": dataclasses.asdict(sizes), "figures": dataclasses.asdict(figures)}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
        return
    table = Table("", "CPU s", "ratio", "wall s", "ratio", title="One forward, medians")
    for name in figures.cpu:
        cells = [
            text
            for times in (figures.cpu, figures.wall)
            for text in (f"{times[name]:.3f}", f"{times[name] / times[REFERENCE]:.3f}")
        ]
        table.add_row(name, *cells)
    console.print(table)
    console.print(
        f"An idle hook point costs {figures.idle_hook_us:.3f} µs a call; {figures.hook_points} of "
        f"them. A cache of everything holds {figures.cache_mib:.0f} MiB. "
        f"Load average of the machine: {figures.load_average:.1f}; threads: {sizes.threads}."
    )


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Sizes], description=__doc__))
