"""Which sites may carry what differs between two scenes? An estimate for every one, audited.

Attribution patching: all tokens, heads, queries, keys, patterns, neurons and sublayers from two
forwards and backwards of the transformer a pair, held against exact patches of a sample of them.
Options are those of experiments.patching:

    python -m experiments.attribution --policy.path=you/act_so101 --dataset.root=data/so101 \\
        --scene-a 3:0 --scene-b 7:0
"""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from actlens.allocator import keep_freed_memory
from actlens.attribution import (
    AttributionOptions,
    AttributionResult,
    Gradient,
    attribute_pairs,
    cuts_of,
)
from actlens.matmul import fastest_float32_matmul
from actlens.metrics import Positions
from actlens.model.act import HookedACT
from actlens.patching.clusters import episode_clusters
from actlens.provenance import provenance, scenes_hash, write_json
from actlens.report.attribution import render_attribution
from experiments.command import rows, run_command, with_page, write_report
from experiments.scene_choice import Choice, choose_pairs, describe, load


@dataclass(frozen=True)
class Config(Choice):
    """Options of the run."""

    hooks: tuple[str, ...] = ()
    """Only these hook points (names or globs such as 'encoder.*.hook_resid_pre'); all if empty."""
    gradient: Gradient = Gradient.BASE
    """Where it is taken: at the run that is patched, at both scenes, or on the way between them."""
    points: int = 8
    """Runs on the way, for integrated gradients."""
    qk_fix: bool = True
    """Queries, keys and scores through the softmax exactly."""
    audit: int = 8
    """Exact patches of every cut: so many of the largest estimates, and as many at random."""
    threshold: float = 0.05
    """A restored share that should not be overlooked."""
    min_effect: float = 1.0
    """Leave out pairs whose actions differ by less (root mean square, dataset units)."""
    positions: Positions = Positions.WHOLE
    """Which positions of the action chunk count."""
    seed: int = 0
    """Of the random sample and the bootstrap."""
    output_dir: Path | None = None
    """Where files go; runs/attribution-DATE-TIME if not given."""
    json: bool = False
    """Print one JSON object instead of the report."""


def run(config: Config, console: Console) -> tuple[AttributionResult, HookedACT, dict]:
    """Load, attribute, audit, and say what it took; `console` shows progress."""
    began = time.monotonic()
    reuses_memory = keep_freed_memory()
    options = AttributionOptions(
        gradient=config.gradient,
        points=config.points,
        qk_fix=config.qk_fix,
        n_audit=config.audit,
        threshold=config.threshold,
        min_effect=config.min_effect,
        positions=config.positions,
    )
    model = load(config)
    cuts = cuts_of(model, config.hooks or None)
    chosen = choose_pairs(config, model)
    pairs = tuple(chosen.source.read(what) for _, what in chosen.items)
    bar = Progress(
        TextColumn("attributing"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bar, fastest_float32_matmul() as matmul:
        task = bar.add_task("attributing")
        result = attribute_pairs(
            model,
            pairs,
            cuts,
            options=options,
            clusters=episode_clusters(pairs),
            seed=config.seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    scenes = [scene.observation for pair in result.pairs for scene in (pair.clean, pair.corrupt)]
    facts = {
        "scenes_sha256": scenes_hash(scenes),
        "pairs": [[pair.clean.address, pair.corrupt.address] for pair in result.pairs],
        "matmul": dataclasses.asdict(matmul),
        "keeps_freed_memory": reuses_memory,
        "sites": result.n_sites,
        "forwards_per_gradient": round(result.cost, 3),
        "exact_patches": 2 * len(result.pairs) * len(result.sample.sites),
    }
    return result, model, provenance(model, config, seconds=time.monotonic() - began, facts=facts)


def write_files(
    result: AttributionResult,
    frame: pd.DataFrame,
    agreement: pd.DataFrame,
    origin: dict,
    folder: Path,
) -> tuple[Path, ...]:
    """Tables and provenance of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / "sites.csv", index=False)
    frame.to_parquet(folder / "sites.parquet", index=False)
    agreement.to_csv(folder / "agreement.csv", index=False)
    result.agreement_per_pair().to_parquet(folder / "agreement_per_pair.parquet", index=False)
    result.per_pair().to_parquet(folder / "audited_per_pair.parquet", index=False)
    write_json(folder / "provenance.json", origin)
    names = ["sites.csv", "sites.parquet", "agreement.csv", "agreement_per_pair.parquet"]
    return tuple(folder / name for name in [*names, "audited_per_pair.parquet", "provenance.json"])


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, write, show."""
    return run_command(Config, "attribution", __doc__, _carry_out, argv)


def _carry_out(config: Config, folder: Path, progress: Console) -> None:
    result, model, origin = run(config, progress)
    frame, agreement = result.frame(), result.agreement()
    files = with_page(folder, write_files(result, frame, agreement, origin, folder))
    took = (
        f"{origin['exact_patches']:,} exact patches, all in {origin['seconds']:.0f} s, "
        f"{origin['threads']} thread{'s' * (origin['threads'] > 1)}"
    )
    report = render_attribution(
        result,
        frame,
        agreement,
        policy=describe(model, config.policy.path),
        facts=[("run", took)],
        files=files,
        next_steps=[
            "python -m experiments.patching   what the estimates point at, exactly",
            "python -m experiments.attribution --gradient=integrated   for tokens",
        ],
    )
    largest = frame.sort_values("denoise", ascending=False, key=abs, kind="stable")
    write_report(report, files, origin=origin, tables={"sites": largest, "agreement": agreement})
    if config.json:
        audited = frame[frame.audited != ""]
        content = {"agreement": rows(agreement), "audited": rows(audited), "provenance": origin}
        sys.stdout.write(json.dumps(content) + "\n")
        return
    Console().print(report)


if __name__ == "__main__":
    raise SystemExit(main())
