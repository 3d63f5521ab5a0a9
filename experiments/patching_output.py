"""What a patching run leaves: tables, pictures, the page, and the report or the JSON."""

import itertools
import json
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console, Group
from rich.text import Text

from actlens.model.act import HookedACT
from actlens.page import Section
from actlens.patching import Direction, PatchingResult
from actlens.patching.large import per_pair_blocks
from actlens.provenance import write_json
from actlens.report.heatmaps import save_heatmaps
from actlens.report.patching import render_patching
from actlens.report.patching_overlays import patching_overlays
from experiments.command import with_page, write_report
from experiments.patching_options import Config
from experiments.rollouts import RolledOut
from experiments.scene_choice import describe


def write_files(
    result: PatchingResult,
    table: pd.DataFrame,
    joints: pd.DataFrame,
    model: HookedACT,
    origin: dict,
    folder: Path,
) -> tuple[Path, ...]:
    """Tables (`result.frame()` and `joints()` among them), pictures and provenance of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "sites.csv", index=False)
    table.to_parquet(folder / "sites.parquet", index=False)
    write_per_pair(result, folder / "per_pair.parquet")
    written = ["sites.csv", "sites.parquet", "per_pair.parquet", "joints.parquet"]
    joints.to_parquet(folder / "joints.parquet", index=False)
    if result.options.by_position:
        result.chunk_positions().to_parquet(folder / "chunk_positions.parquet", index=False)
        written.append("chunk_positions.parquet")
    for direction in Direction:
        for name, pair in (("first_pair", 0), ("pooled", None)):
            file = f"{direction.value}_{name}.png"
            save_heatmaps(result, model.config, folder / file, direction=direction, pair=pair)
            written.append(file)
    write_json(folder / "provenance.json", origin)
    return tuple(folder / name for name in [*written, "provenance.json"])


def write_per_pair(result: PatchingResult, path: Path) -> None:
    """The table of `result.per_pair()`, some pairs at a time: whole, it can outgrow the memory."""
    blocks = (pa.Table.from_pandas(rows, preserve_index=False) for rows in per_pair_blocks(result))
    first = next(blocks)
    with pq.ParquetWriter(path, first.schema) as file:
        for rows in itertools.chain((first,), blocks):
            file.write_table(rows)


def show(
    result: PatchingResult,
    model: HookedACT,
    origin: dict,
    config: Config,
    folder: Path,
    rolled: RolledOut | None = None,
) -> None:
    """Write a run's files and its page, and print the report or the JSON."""
    frame, joints = result.frame(), result.joints()
    files = with_page(folder, write_files(result, frame, joints, model, origin, folder))
    policy = describe(model, config.policy.path)
    took = (
        f"{origin['patches']:,} patches in {origin['seconds']:.0f} s, {origin['threads']} threads"
    )
    report = render_patching(
        result,
        frame,
        joints=joints,
        policy=policy,
        facts=[("run", took)],
        files=files,
        next_steps=[
            "python -m experiments.patching --policy.path=so101-pick-cube-5pos",
            "python -m experiments.patching --policy.path=… --dataset.root=…   your own policy",
        ],
    )
    if rolled is not None:
        report = Group(report, Text(), rolled.report(policy))
    maps = patching_overlays(result, model.tokens)
    write_report(
        report,
        files,
        origin=origin,
        blocks=[] if maps is None else [Section("Look into it", (maps,))],
        tables={"sites": frame, "joints": joints},
        shown=() if rolled is None else rolled.files,
    )
    if config.json:
        rows = json.loads(frame.to_json(orient="records"))
        content = {"sites": rows, "provenance": origin} | (rolled.rows() if rolled else {})
        sys.stdout.write(json.dumps(content) + "\n")
        return
    Console().print(report)


def show_shard(facts: dict[str, object], config: Config) -> None:
    """Print how far a sharded run is, and what comes next."""
    if config.json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    Console().print(
        Text(
            f"shard {facts['shard']}: its {facts['pairs']} pairs are stored in {facts['folder']}, "
            f"{facts['stored']} of {facts['total']} in all\n"
            f"when all shards are done: python -m experiments.merge {facts['folder']}"
        )
    )
