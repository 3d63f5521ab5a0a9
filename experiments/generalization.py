"""How far beyond its demonstrations does a policy reach? Errors over a map of cube places.

Offline at seen and unseen places, beside the nearest demonstration, drawn over the table; in closed
loop too with `--rollout`. Beside it, what policies do that were shown more and less: results of
`python -m experiments.series`, which are shipped.

    python -m experiments.generalization --rollout 2
"""

import json
import re
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
from actlens.model.act import HookedACT
from actlens.provenance import provenance, write_json
from actlens.report.generalization import Dose, render_generalization
from actlens.report.generalization_pictures import save_dose_curves, save_table_maps
from actlens.retrieval import TIP
from actlens.scenes.dataset import open_dataset
from actlens.sim.series import (
    ALL,
    DEGREES,
    FIRST,
    bundled_series,
    finished,
    offline,
    reference_of,
    success_by_distance,
    success_summary,
    verdicts_along,
)
from actlens.sim.table_map import success_by_cell
from experiments.command import rows, run_command, with_page, write_report, write_tables
from experiments.generalization_panels import doses_of, maps_of, panels_of
from experiments.scene_choice import Data, Policy, describe, open_demonstrations

UNSEEN = "so101-pick-cube-unseen"
DISTANCES = (5.0, 10.0, 20.0, 40.0)
"""Millimetres to the nearest demonstration, between which success is shown."""


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    policy: Policy = field(default_factory=Policy)
    dataset: Data = field(default_factory=Data)
    """Demonstrations; the bundled policy's own if not given."""
    unseen: Data = field(default_factory=Data)
    """Scenes to test on; the bundled so101-pick-cube-unseen if not given."""
    frames: tuple[int, ...] = (0, 25, 50)
    """Of every episode; the first is 0."""
    rollout: int = 0
    """Closed-loop episodes in each of the table's 44 cells."""
    seed: int = 0
    """Of their starts."""
    series: Path | None = None
    """The folder of a series (`python -m experiments.series`); the shipped results if not given."""
    output_dir: Path | None = None
    """Where files go; runs/generalization-DATE-TIME if not given."""
    json: bool = False
    """Print one JSON object instead of the report."""


@dataclass(frozen=True)
class Done:
    """What a run found."""

    tables: dict[str, pd.DataFrame]
    """Of the policy: those of `Offline`, by episode, and `rollouts` if there were any."""
    doses: tuple[Dose, ...]
    """Over training seeds; none without a series."""
    by_distance: pd.DataFrame
    """Success of the series' policies; empty without a series."""
    verdicts: dict[str, pd.DataFrame]
    """On the series' policies, by the frames that they are about."""
    demonstrated: np.ndarray
    model: HookedACT
    origin: dict


def run(config: Config, console: Console) -> Done:
    """Load, run, roll out, and say what it took; `console` shows progress."""
    began = time.monotonic()
    keep_freed_memory()
    if 0 not in config.frames:
        raise SceneError("Frame 0 is needed: add it to --frames.")
    records = bundled_series() if config.series is None else finished(config.series)
    model = config.policy.files.load()
    demonstrations = open_demonstrations(config.dataset, config.policy.path)
    given = config.unseen.root is not None or config.unseen.repo_id is not None
    unseen = open_demonstrations(config.unseen, "") if given else open_dataset(UNSEEN)
    for dataset in (demonstrations, unseen):
        missing = {"cube_x", "cube_y"} - set(dataset.label_names)
        if missing:
            raise SceneError(
                f"{dataset.name} does not say where the cube is: it has no label {min(missing)}. "
                "A map needs recordings of `python -m actlens.sim.record`, or labels as these have."
            )
    frames = sorted(config.frames)
    scenes = len(frames) * (len(demonstrations.episodes) + len(unseen.episodes))
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar = Progress(TextColumn("{task.description}"), *columns, console=console, transient=True)
    with bar:
        task = bar.add_task("running", total=scenes)
        reference = reference_of(demonstrations, model.config.chunk, frames)
        found = offline(
            model,
            demonstrations,
            [episode.index for episode in demonstrations.episodes],
            unseen,
            reference,
            frames=frames,
            progress=lambda n: bar.advance(task, n),
        )
        tables = found.frames()
        tables["unseen_episodes"] = found.episodes()
        tables["demonstrated_episodes"] = found.demonstrated()
        if config.rollout:
            task = bar.add_task("rolling out", total=44 * config.rollout)
            tables["rollouts"] = success_by_cell(
                model, config.rollout, seed=config.seed, progress=lambda n: bar.advance(task, n)
            )
    trained = found.trained.at(found.trained.frames == 0)
    demonstrated = np.stack([trained.labels["cube_x"], trained.labels["cube_y"]], 1)
    facts = {"dataset": demonstrations.name, "unseen": unseen.name, "series": len(records)}
    origin = provenance(model, config, seconds=time.monotonic() - began, facts=facts)
    by_distance = success_by_distance(records, DISTANCES) if records else pd.DataFrame()
    verdicts = {frames: verdicts_along(records, frames) for frames in (FIRST, ALL)}
    return Done(tables, doses_of(records), by_distance, verdicts, demonstrated, model, origin)


def write_files(done: Done, folder: Path) -> tuple[Path, ...]:
    """Tables, pictures and provenance of a run."""
    files = write_tables(done.tables, folder)
    files.append(folder / "map.png")
    save_table_maps(maps_of(done.tables), done.demonstrated, files[-1])
    if done.doses:
        files.append(folder / "doses.png")
        save_dose_curves(panels_of(done.doses), files[-1])
        slug = lambda title: re.sub(r"\W+", "-", title.lower())
        doses = {f"doses-{slug(dose.title)}": dose.found for dose in done.doses}
        doses["doses-by-distance"] = done.by_distance
        doses |= {f"doses-verdict-{slug(name)}": table for name, table in done.verdicts.items()}
        files += write_tables(doses, folder)
    files.append(folder / "provenance.json")
    write_json(files[-1], done.origin)
    return tuple(files)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, write, show."""
    return run_command(Config, "generalization", __doc__, _carry_out, argv)


def _carry_out(config: Config, folder: Path, progress: Console) -> None:
    done = run(config, progress)
    files = with_page(folder, write_files(done, folder))
    rollouts = done.tables.get("rollouts", pd.DataFrame())
    success = success_summary(rollouts) if len(rollouts) else rollouts
    indices = done.tables["indices"]
    took = f"{done.origin['seconds']:.0f} s, {done.origin['threads']} threads"
    data = f"{done.origin['dataset']}, {done.origin['unseen']}"
    next_steps = [
        "python -m experiments.generalization --rollout 2   closed loop in every cell",
        "python -m experiments.series --workers 2   train the series anew",
    ]
    report = render_generalization(
        indices[indices.measure.isin([DEGREES, TIP])],
        success,
        done.doses,
        done.by_distance,
        done.verdicts,
        policy=describe(done.model, config.policy.path),
        facts=[("data", data), ("run", took)],
        files=files,
        next_steps=next_steps,
    )
    write_report(report, files, origin=done.origin, tables=done.tables)
    if config.json:
        content: dict = {name: rows(table) for name, table in done.tables.items()}
        content["success"] = rows(success)
        content["verdicts"] = {name: rows(found) for name, found in done.verdicts.items()}
        content["by_distance"] = rows(done.by_distance)
        content["doses"] = {dose.title: rows(dose.found) for dose in done.doses}
        sys.stdout.write(json.dumps(content | {"provenance": done.origin}) + "\n")
        return
    Console().print(report)


if __name__ == "__main__":
    raise SystemExit(main())
