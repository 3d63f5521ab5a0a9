"""What does the intervention engine gain over one whole forward for every patch?

    python -m benchmarks.patching
    python -m benchmarks.patching --every 10 --json     # a tenth of the tokens, scaled up

All figures come from one run, on the same weights (random ones, of the seed's size: two 480x640
cameras, 602 tokens) and one thread. The baselines are the loops that people write: TransformerLens'
`generic_activation_patch` and a loop of nnsight traces, timed on some patches and scaled to all.
Times are CPU seconds, so that other work on the machine disturbs them little. What leaves tokens
out gains on trained policies only: it is timed on a trained one, against the same loop there.
"""

import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from actlens.allocator import keep_freed_memory
from actlens.attribution.cost import cost_in_forwards
from actlens.attribution.cuts import START, cuts_of
from actlens.attribution.estimates import attribute
from actlens.config import STATE_KEY, ACTConfig, Camera
from actlens.interventions import (
    Constant,
    Effects,
    FromScene,
    Intervention,
    Precision,
    SceneRun,
    each_neuron_alone,
    run,
    run_scene,
    run_within,
)
from actlens.interventions.closed_form import last_neurons
from actlens.interventions.network import TOKEN_POS
from actlens.matmul import fastest_float32_matmul
from actlens.model.act import HookedACT
from actlens.scene import Observation
from actlens.scenes.bundled import load_pairs
from actlens.sites import Site


@dataclass(frozen=True)
class Sizes:
    """The network and how much of the work is really done."""

    height: int = 480
    width: int = 640
    d_model: int = 512
    d_mlp: int = 3200
    encoder_layers: int = 3
    chunk: int = 100
    every: int = 1
    """Patch every so many tokens, and scale the times."""
    naive: int = 8
    """Patches of each naive loop that are timed."""
    trained: str = "so101-pick-cube"
    """The trained policy on which tokens are left out."""
    max_error: float = 0.002
    """Allowed there, as a share of the action chunk's norm."""
    only_sweep: bool = False
    """Nothing but the exact sweep, and the memory it took."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class Case:
    """A policy with a corrupt and a clean scene, and the sweep over its tokens."""

    model: HookedACT
    corrupt: Observation
    clean: Observation
    every: int = 1
    runs: tuple[SceneRun, SceneRun] = field(init=False)

    def __post_init__(self) -> None:
        found = run_scene(self.model, self.corrupt), run_scene(self.model, self.clean)
        object.__setattr__(self, "runs", found)

    @property
    def streams(self) -> list[str]:
        """What enters each encoder block, and what leaves the last."""
        n_layers = self.model.config.n_encoder_layers
        return [*(f"encoder.{i}.hook_resid_pre" for i in range(n_layers)), "encoder.hook_out"]

    def patches(self, stream: str) -> list[Intervention]:
        """One for every token (or every so many) of a stream."""
        tokens = range(0, len(self.model.tokens), self.every)
        return [Intervention.at(Site(stream, {"token": t}), FromScene("clean")) for t in tokens]

    @property
    def sweep(self) -> list[Intervention]:
        """The patches of all streams."""
        return [patch for stream in self.streams for patch in self.patches(stream)]

    @property
    def donors(self) -> dict[str, SceneRun]:
        """The clean run, by its role."""
        return {"clean": self.runs[1]}


@dataclass(frozen=True)
class Row:
    """One measured figure, what it should be, and how it compares with the naive loop."""

    what: str
    seconds: float
    """CPU seconds for all of the work, scaled up where only part was done."""
    ratio: float | None = None
    """Times as fast as the naive loop of the same table."""
    goal: str = ""
    remark: str = ""


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this thread, and what the work returned."""
    start = time.thread_time()
    found = work()
    return time.thread_time() - start, found


def random_case(sizes: Sizes) -> Case:
    """Random weights of the given size; attention scores widened, as training sharpens them."""
    cameras = tuple(
        Camera(f"observation.images.{name}", sizes.height, sizes.width)
        for name in ("top", "lateral")
    )
    config = ACTConfig(
        cameras=cameras, action_dim=6, state_dim=6, n_encoder_layers=sizes.encoder_layers,
        d_model=sizes.d_model, d_mlp=sizes.d_mlp, chunk=sizes.chunk, n_action_steps=sizes.chunk,
        use_vae=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = HookedACT(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("in_proj_weight"):
                parameter[: config.d_model] *= 3
    scenes = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        scene = {c.key: torch.rand(3, c.height, c.width, generator=generator) for c in cameras}
        scenes.append(scene | {STATE_KEY: torch.randn(6, generator=generator)})
    return Case(model, scenes[0], scenes[1], sizes.every)


def peak_gflops() -> float:
    """The fastest large product of this machine's one thread, in GFLOP/s."""
    best = 0.0
    for rows, d_in, d_out in ((1806, 512, 3200), (1806, 3200, 512), (1806, 512, 512)):
        x, weight, bias = torch.randn(rows, d_in), torch.randn(d_out, d_in), torch.randn(d_out)
        product = partial(F.linear, x, weight, bias)
        seconds = min(cpu_seconds(product)[0] for _ in range(12))
        best = max(best, 2 * rows * d_in * d_out / seconds / 1e9)
    return best


# ── the naive loops ──────────────────────────────────────────────────────────────────────────────


class _TheirNames:
    """A HookedACT whose hook points TransformerLens' patching loop finds by its own names."""

    def __init__(self, case: Case):
        self.case = case
        self.names = {f"blocks.{i}.hook_resid_pre": name for i, name in enumerate(case.streams)}
        self.cfg = SimpleNamespace(device=torch.device("cpu"))

    def run_with_hooks(self, _tokens: Tensor, fwd_hooks: Sequence[tuple[str, Callable]]) -> Tensor:
        """One whole forward of the corrupt scene with their hooks."""
        ours = [(self.names[name], hook) for name, hook in fwd_hooks]
        return self.case.model.run_with_hooks(self.case.corrupt, fwd_hooks=ours)


@torch.no_grad()
def transformer_lens_loop(case: Case, n: int) -> float:
    """CPU seconds a patch of TransformerLens' `generic_activation_patch`."""
    from transformer_lens import patching

    model: Any = _TheirNames(case)
    cache: Any = {theirs: case.runs[1][ours] for theirs, ours in model.names.items()}
    layers = range(len(case.streams))
    rows = [(layers[i % len(layers)], (7 * i) % len(case.model.tokens)) for i in range(n)]

    def put(activation: Tensor, index: Sequence[int], clean: Any) -> Tensor:
        activation[:, index[1]] = clean[:, index[1]]
        return activation

    def patch(chosen: Sequence[tuple[int, int]]) -> Tensor:
        return patching.generic_activation_patch(
            model, torch.zeros(1, len(case.model.tokens), dtype=torch.long), cache,
            lambda actions: actions.sum(), put, "resid_pre",
            index_df=pd.DataFrame(chosen, columns=["layer", "pos"]),
        )  # fmt: skip

    patch(rows[:1])
    return cpu_seconds(lambda: patch(rows))[0] / n


@torch.no_grad()
def nnsight_loop(case: Case, n: int) -> float:
    """CPU seconds a patch of a loop of nnsight traces."""
    from nnsight import save

    from actlens.interop.nnsight import ACTNNsight

    traced = ACTNNsight(case.model)
    seconds = []
    for i in range(n + 1):
        stream = case.streams[i % len(case.streams)]
        token = (7 * i) % len(case.model.tokens)
        clean = case.runs[1][stream][:, token]

        def patch(stream=stream, token=token, clean=clean) -> Tensor:
            with traced.trace(case.corrupt):
                point = traced.point(stream)
                activation = point.output.clone()
                activation[:, token] = clean
                point.output = activation
                actions = save(traced.hook_actions.output)
            return actions  # noqa: RET504  a value exists only after the trace

        seconds.append(cpu_seconds(patch)[0])
    return statistics.mean(seconds[1:])


# ── the engine ───────────────────────────────────────────────────────────────────────────────────


def sweep(case: Case, **options: Any) -> tuple[float, Effects]:
    """CPU seconds of the sweep, and what it found."""
    run(case.model, case.runs[0], case.sweep[:1], case.donors, **options)
    return cpu_seconds(lambda: run(case.model, case.runs[0], case.sweep, case.donors, **options))


def flops(case: Case) -> tuple[float, float]:
    """Floating-point operations of the whole sweep: one forward a patch, and the engine."""
    for stream in case.streams:  # what belongs to the scene, and not to a patch, is made once
        run(case.model, case.runs[0], case.patches(stream)[:1], case.donors)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        case.model(case.corrupt)
    naive = counter.get_total_flops() * len(case.streams) * len(case.model.tokens)
    engine = 0
    for stream in case.streams:
        with FlopCounterMode(display=False) as counter:
            run(case.model, case.runs[0], case.patches(stream)[1:2], case.donors)
        engine += counter.get_total_flops() * len(case.model.tokens)
    return naive, engine


def effect_norms(case: Case, effects: Effects) -> Tensor:
    """How far each patch moved the actions."""
    return (effects.actions - case.runs[0].actions).flatten(1).norm(dim=1)


def compared(case: Case, exact: Effects, other: Effects) -> str:
    """How well a faster sweep agrees with the exact one, over patches that have an effect."""
    norms = effect_norms(case, exact)
    some = norms > 1e-6 * case.runs[0].actions.norm()
    error = (other.actions - exact.actions).flatten(1).norm(dim=1)[some] / norms[some]
    others = effect_norms(case, other)
    rank = float(spearmanr(norms[some], others[some]).statistic)
    best = [set(x.topk(20).indices.tolist()) for x in (norms, others)]
    return (
        f"effect error median {float(error.median()):.2%}, Spearman {rank:.5f}, "
        f"{len(best[0] & best[1])} of the top 20"
    )


def sweeps(sizes: Sizes, case: Case, peak: float) -> tuple[list[Row], float]:
    """The token sweep at the seed's size; and CPU seconds of one naive patch."""
    seconds = {
        "TransformerLens' loop": transformer_lens_loop(case, sizes.naive),
        "nnsight's loop": nnsight_loop(case, sizes.naive),
    }
    n_all = len(case.streams) * len(case.model.tokens)
    naive = min(seconds.values())
    timed = f"ms a patch, {sizes.naive} of {n_all:,} timed"
    rows = [
        Row(name, one * n_all, naive / one, remark=f"{one * 1e3:.0f} {timed}")
        for name, one in seconds.items()
    ]
    scale = n_all / len(case.sweep)
    naive_flops, engine_flops = flops(case)
    with fastest_float32_matmul():
        peak = max(peak, peak_gflops())
        exact_seconds, exact = sweep(case)
        half_seconds, half = sweep(case, precision=Precision.HALF)
    rate = engine_flops / scale / exact_seconds / 1e9
    rows.append(
        Row(
            f"exact sweep, {n_all:,} patches",
            exact_seconds * scale,
            naive * n_all / (exact_seconds * scale),
            ">= 12, FLOP >= 7, >= 75% of peak",
            f"FLOP ratio {naive_flops / engine_flops:.2f}; {rate:.0f} GFLOP/s, {rate / peak:.0%} "
            f"of the fastest product ({peak:.0f})",
        )
    )
    rows.append(
        Row(
            "half precision",
            half_seconds * scale,
            naive * n_all / (half_seconds * scale),
            ">= 20, error <= 1%, Spearman >= .999",
            compared(case, exact, half),
        )
    )
    return rows, naive


def neurons(case: Case, naive: float) -> list[Row]:
    """Each neuron of the decoder MLP ablated by itself."""
    n = case.model.config.d_mlp
    base = case.runs[0]
    site = lambda i: Site(last_neurons(case.model), {"neuron": i})
    ablations = [Intervention.at(site(i), Constant(0.0)) for i in range(n)]
    run(case.model, base, ablations[:2])
    one_by_one, effects = cpu_seconds(lambda: run(case.model, base, ablations))
    at_once = min(
        cpu_seconds(lambda: each_neuron_alone(case.model, base, Constant(0.0)))[0] for _ in range(5)
    )
    error, sample = 0.0, range(0, n, max(1, n // 5))
    for i in sample:

        def silence(post: Tensor, hook: Any, i: int = i) -> None:
            post[..., i] = 0

        with torch.no_grad(), case.model.hooks([(last_neurons(case.model), silence)]):
            _, cache = case.model.run_with_cache(
                case.corrupt, names_filter="hook_actions_normalized"
            )
        expected = cache["hook_actions_normalized"][0]
        error = max(error, float((effects.actions[i] - expected).abs().max()))
    remark = f"largest error {error:.1e} over {len(sample)} whole forwards"
    goal = ">= 10,000, exact to 1e-5"
    return [
        Row(f"ablate each of {n:,} neurons, as interventions", one_by_one, naive * n / one_by_one,
            remark=remark),
        Row(f"ablate each of {n:,} neurons, at once", at_once, naive * n / at_once, goal, remark),
    ]  # fmt: skip


def within(sizes: Sizes) -> list[Row]:
    """A trained policy, tokens left out within an allowed error."""
    pair = load_pairs("so101-cube-moved")[0]
    case = Case(
        HookedACT.from_pretrained(sizes.trained), pair.corrupt.observation, pair.clean.observation
    )
    naive = transformer_lens_loop(case, sizes.naive) * len(case.sweep)
    rows = []
    with fastest_float32_matmul():
        exact_seconds, exact = sweep(case)
        rows.append(Row(f"{sizes.trained}: exact", exact_seconds, naive / exact_seconds))
        for precision in Precision:
            # A first, smaller run finds a tolerance, as the sweeps over pairs do.
            some = case.sweep[:: max(1, len(case.sweep) // 64)]
            _, first = run_within(
                case.model, case.runs[0], some, case.donors,
                max_error=sizes.max_error / 2, precision=precision,
            )  # fmt: skip
            work = lambda p=precision, t=first.tolerance: run_within(
                case.model, case.runs[0], case.sweep, case.donors,
                max_error=sizes.max_error, tolerance=t, precision=p,
            )  # fmt: skip
            seconds, (effects, audit) = cpu_seconds(work)
            gap = (effects.actions - exact.actions).flatten(1).norm(dim=1)
            rows.append(
                Row(
                    f"{sizes.trained}: within {sizes.max_error:.1%}, {precision.value} precision",
                    seconds,
                    naive / seconds,
                    ">= 30 at 602 tokens",
                    f"audit of {audit.n_random + audit.n_suspect}: {audit.largest:.2%}; over all "
                    f"{len(case.sweep)}: {float(gap.max() / case.runs[0].actions.norm()):.2%}",
                )
            )
    return rows


def attributions(case: Case, naive: float) -> list[Row]:
    """Every site estimated from one forward and one backward, against the transformer's forward."""
    model, (corrupt, clean) = case.model, case.runs
    cuts = cuts_of(model)
    goal = clean.actions - corrupt.actions
    share = lambda actions: ((actions - corrupt.actions) * goal).sum() / goal.square().sum()
    forward = lambda: model.resume_normalized(corrupt[START], corrupt[TOKEN_POS][0], layer=0)
    n_all = len(case.streams) * len(model.tokens)
    rows = []
    for qk_fix, goal_text in ((False, "<= 2.2 forwards"), (True, "")):
        work = lambda fix=qk_fix: attribute(model, corrupt, clean, cuts, share, qk_fix=fix)
        with torch.no_grad():
            plain = min(cpu_seconds(forward)[0] for _ in range(3))
        seconds = min(cpu_seconds(work)[0] for _ in range(3))
        count = cost_in_forwards(model, corrupt, work)
        rows.append(
            Row(
                f"all sites{', softmax exact' if qk_fix else ''}",
                seconds,
                naive * n_all / seconds,
                goal_text,
                f"{count:.2f} forwards of the transformer in FLOP, {seconds / plain:.2f} in time",
            )
        )
    return rows


def caches(case: Case) -> list[Row]:
    """What keeping activations costs, in turn with plain forwards."""
    residual = [name for name in case.model.hook_dict if "hook_resid" in name]
    model, scene = case.model, case.corrupt
    works = {
        "forward": lambda: model(scene),
        "cache of everything": lambda: model.run_with_cache(scene),
        "cache of residual sites": lambda: model.run_with_cache(scene, names_filter=residual),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    with torch.no_grad():
        for _ in range(9):
            for name, work in works.items():
                seconds[name].append(cpu_seconds(work)[0])
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    goals = {"cache of everything": "<= 1.08", "cache of residual sites": "<= 1.04"}
    return [
        Row(name, one, goal=goals.get(name, ""), remark=f"{one / medians['forward']:.3f} forwards")
        for name, one in medians.items()
    ]


def peak_memory(sizes: Sizes) -> Row:
    """The exact sweep in a process of its own: how much memory it takes at most."""
    options = [f"--{f.name.replace('_', '-')}={getattr(sizes, f.name)}" for f in
               dataclasses.fields(sizes) if f.type is int and f.name != "every"]  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.patching", "--only-sweep", "--every=20", *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    return Row(
        "memory of the exact sweep",
        found["seconds"],
        goal="<= 1.5 GiB",
        remark=f"{found['peak_gib']:.2f} GiB at most, of which {found['before_gib']:.2f} before it",
    )


def resident_gib() -> float:
    """The largest resident memory of this process so far (`ru_maxrss` would be its parent's)."""
    status = Path("/proc/self/status").read_text()
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kib) / 2**20


def measure(sizes: Sizes) -> dict[str, list[Row]]:
    """All tables."""
    case = random_case(sizes)
    peak = peak_gflops()
    table, naive = sweeps(sizes, case, peak)
    return {
        "Every token at every depth, 602 tokens": table,
        "Every neuron of the decoder MLP": neurons(case, naive),
        "Attribution patching": attributions(case, naive),
        "A trained policy, 162 tokens": within(sizes),
        "Caches": caches(case),
        "Memory": [peak_memory(sizes)],
    }


def main(sizes: Sizes) -> None:
    """Measure, and print tables or JSON."""
    torch.set_num_threads(1)
    keep_freed_memory()
    if sizes.only_sweep:
        case = random_case(sizes)
        before = resident_gib()
        with fastest_float32_matmul():
            seconds, _ = sweep(case)
        figures = {"seconds": seconds, "before_gib": before, "peak_gib": resident_gib()}
        sys.stdout.write(json.dumps(figures) + "\n")
        return
    tables = measure(sizes)
    load = np.mean(os.getloadavg())
    if sizes.json:
        rows = {
            title: [dataclasses.asdict(row) for row in found] for title, found in tables.items()
        }
        report = {"sizes": dataclasses.asdict(sizes), "tables": rows, "load_average": load}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
        return
    console = Console()
    for title, found in tables.items():
        table = Table("", "CPU s", "x naive", "goal", "", title=title, title_justify="left")
        for row in found:
            ratio = "" if row.ratio is None else f"{row.ratio:,.1f}"
            table.add_row(row.what, f"{row.seconds:.3g}", ratio, row.goal, row.remark)
        console.print(table)
    console.print(f"One thread; load average of the machine {load:.1f}.")


if __name__ == "__main__":
    main(tyro.cli(Sizes, description=__doc__))
