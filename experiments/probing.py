"""What can be read off each site of a policy, also where nobody was shown, and is it used?

Linear probes for all that a dataset labels, at frame 0, where the arm says nothing yet, and over
whole episodes; beside pixels, state, the predicted chunk, an untrained policy and control tasks.

    python -m experiments.probing --policy.path=you/act_so101 --dataset.root=data/so101
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from actlens.allocator import keep_freed_memory
from actlens.errors import SceneError
from actlens.matmul import fastest_float32_matmul
from actlens.model.act import HookedACT
from actlens.probing import (
    Feature,
    follow_up,
    held_out_frame,
    input_features,
    probe,
    probe_held_out,
    site_features,
    targets_of,
    untrained,
)
from actlens.provenance import provenance, scenes_hash, write_json
from actlens.report.probing import render_probing, used_frame
from actlens.scene import Scene, episode_numbers
from actlens.scenes.dataset import Dataset, open_dataset
from experiments.command import rows, run_command, with_page, write_report, write_tables
from experiments.keyvalue import chosen_scenes
from experiments.scene_choice import BUNDLED_DATA, Data, Policy, describe, open_demonstrations

UNSEEN = "so101-pick-cube-unseen"


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    policy: Policy = field(default_factory=Policy)
    dataset: Data = field(default_factory=Data)
    """Demonstrations; the bundled policy's own if not given."""
    unseen: Data = field(default_factory=Data)
    """Scenes to test on, by the region that their episodes are labelled with; the bundled
    so101-pick-cube-unseen for a bundled policy."""
    frames: int = 2
    """How many frames of every episode are read, beside frame 0."""
    query: int = 0
    """The chunk position that is read in the decoder."""
    controls: int = 39
    """Control tasks."""
    follow: int = 6
    """Scenes of every region in which the main target is followed to the actions."""
    seed: int = 0
    """Of control tasks, splits, untrained weights and bootstraps."""
    output_dir: Path | None = None
    """Where files go; runs/probing-DATE-TIME if not given."""
    json: bool = False
    """Print one JSON object instead of the report."""


@dataclass(frozen=True)
class Done:
    """What a run found."""

    probes: pd.DataFrame
    held_out: pd.DataFrame
    used: pd.DataFrame
    main_target: str
    model: HookedACT
    origin: dict


def by_region(config: Config, chunk: int) -> dict[str, list[Scene]]:
    """Frame 0 of the scenes to test on, by region."""
    data, bundled = config.unseen, config.policy.path.startswith(BUNDLED_DATA)
    if data.root is not None or data.repo_id is not None:
        dataset: Dataset = open_demonstrations(data, "")
    elif bundled and config.dataset.root is None and config.dataset.repo_id is None:
        dataset = open_dataset(UNSEEN)
    else:
        return {}
    found: dict[str, list[Scene]] = {}
    regions = {e.index: str(e.labels.get("region", "unseen")) for e in dataset.episodes}
    names = {"train": "new places"}  # in the demonstrated cells
    for scene in dataset.scenes(chunk=chunk, frames=[0]):
        region = regions[scene.episode]
        found.setdefault(names.get(region, region), []).append(scene)
    return found


def run(config: Config, console: Console) -> Done:
    """Load, run, probe, follow, and say what it took; `console` shows progress."""
    began = time.monotonic()
    keep_freed_memory()
    model = config.policy.files.load()
    chunk = model.config.chunk
    if not 0 <= config.query < chunk:
        raise SceneError(f"There is no chunk position {config.query}: they are 0 to {chunk - 1}.")
    dataset = open_demonstrations(config.dataset, config.policy.path)
    first = list(dataset.scenes(chunk=chunk, frames=[0]))
    later = [s for s in chosen_scenes(dataset, chunk, config.frames) if s.frame]
    unseen = by_region(config, chunk)
    every = [*first, *later, *(scene for part in unseen.values() for scene in part)]
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar = Progress(TextColumn("running"), *columns, console=console, transient=True)
    with bar, fastest_float32_matmul():
        task = bar.add_task("running", total=2 * len(every))
        advance = lambda n: bar.advance(task, n)
        features = [*input_features(model, every)]
        features += site_features(model, every, query=config.query, progress=advance)
        fresh = untrained(model, seed=config.seed)
        features += [
            Feature(f"{one.name}, untrained", one.values, is_baseline=True)
            for one in site_features(fresh, every, query=config.query, progress=advance)
        ]
    n, m = len(first), len(first) + len(later)
    parts = (
        {"frame 0": slice(0, n), "all frames": slice(0, m)} if later else {"frame 0": slice(0, n)}
    )
    tables = []
    for name, part in parts.items():
        some = every[part]
        table = probe(
            [Feature(f.name, f.values[part], f.is_baseline) for f in features],
            targets_of(some, model.config.joints),
            episode_numbers(some),
            n_controls=config.controls,
            seed=config.seed,
        ).frame()
        tables.append(table.assign(frames=name))
    targets = targets_of(first, model.config.joints)
    main = targets[0]
    held, used = [], []
    if unseen:
        asked = [*first, *(scene for part in unseen.values() for scene in part)]
        rows = np.r_[np.arange(n), np.arange(m, len(every))]
        starts = np.cumsum([n, *map(len, unseen.values())])
        sets = {"demonstrations": np.arange(n)} | {
            name: np.arange(a, b) for name, a, b in zip(unseen, starts, starts[1:], strict=False)
        }
        held = probe_held_out(
            [Feature(f.name, f.values[rows], f.is_baseline) for f in features],
            [t for t in targets_of(asked, model.config.joints) if t.name == main.name],
            episode_numbers(asked),
            sets,
            fitted="demonstrations",
            seed=config.seed,
        )
    for name, scenes in unseen.items():
        some = scenes[: config.follow]
        found = follow_up(model, first, main, some, episode_numbers(some), seed=config.seed)
        used += [(name, one) for one in found]
    facts = {
        "dataset": dataset.name,
        "scenes": len(every),
        "scenes_sha256": scenes_hash([scene.observation for scene in every]),
    }
    origin = provenance(model, config, seconds=time.monotonic() - began, facts=facts)
    probes = pd.concat(tables, ignore_index=True)
    return Done(probes, held_out_frame(held), used_frame(used), main.name, model, origin)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, write, show."""
    return run_command(Config, "probing", __doc__, _carry_out, argv)


def _carry_out(config: Config, folder: Path, progress: Console) -> None:
    done = run(config, progress)
    tables = {"probes": done.probes, "held_out": done.held_out, "used": done.used}
    files = write_tables({name: table for name, table in tables.items() if len(table)}, folder)
    files.append(folder / "provenance.json")
    write_json(files[-1], done.origin)
    files = with_page(folder, files)
    took = f"{done.origin['seconds']:.0f} s, {done.origin['threads']} threads"
    report = render_probing(
        done.probes,
        done.held_out,
        done.used,
        policy=describe(done.model, config.policy.path),
        main_target=done.main_target,
        facts=[
            ("data", f"{done.origin['dataset']}, {done.origin['scenes']} scenes"),
            ("run", took),
        ],
        files=files,
        next_steps=[
            "python -m experiments.probing --query 20   a later action's vector",
            "python -m experiments.keyvalue   what the MLP makes of it",
        ],
    )
    write_report(report, files, origin=done.origin, tables=tables)
    if config.json:
        content = {name: rows(table) for name, table in tables.items()}
        sys.stdout.write(json.dumps(content | {"provenance": done.origin}) + "\n")
        return
    Console().print(report)


if __name__ == "__main__":
    raise SystemExit(main())
