"""Is this policy a lookup table? Two axes, the evidence for each, and a verdict.

Function: does it do better where nothing was demonstrated than its nearest demonstration would?
Mechanism: does it tell neighbouring scenes apart by jumps, as a table does? Beside both: retrieval
at every site, surrogates in the MLP's place, a table's size, and when a monitor would warn.

    python -m experiments.retrieval --policy.path=you/act_so101 --dataset.root=data/so101 \\
        --unseen.root=data/so101_new_places
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from actlens.allocator import keep_freed_memory
from actlens.matmul import fastest_float32_matmul
from actlens.metrics import Positions
from actlens.model.act import HookedACT
from actlens.provenance import provenance, scenes_hash, write_json
from actlens.report.retrieval import render_retrieval
from actlens.report.retrieval_picture import save_picture
from actlens.verdict import Verdict
from experiments.command import rows, run_command, with_page, write_report, write_tables
from experiments.retrieval_battery import Battery, measure
from experiments.retrieval_rollouts import RetrievalRollouts, roll_out
from experiments.retrieval_scenes import Known, Sources, check_apart, regions_of
from experiments.retrieval_tables import Options, Unseen
from experiments.scene_choice import Data, Policy, describe


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    policy: Policy = field(default_factory=Policy)
    dataset: Data = field(default_factory=Data)
    """What the policy was trained on; the bundled policy's own if not given."""
    unseen: Data = field(default_factory=Data)
    """Demonstrations that it was not trained on; so101-pick-cube-unseen for a bundled policy. With
    --unseen.episodes alone, these episodes of the dataset, which must not have been trained on."""
    moments: int = 3
    """Scenes of every episode, evenly apart; the first is frame 0."""
    positions: Positions = Positions.WHOLE
    """Which positions of the action chunk are compared."""
    place: tuple[str, ...] = ("cube_x", "cube_y")
    """Labels that say where the object is."""
    tolerances: tuple[float, ...] = (1.0, 2.0, 5.0)
    """Of a table's cells, in dataset units (degrees)."""
    false_alarms: float = 0.05
    """What a monitor's threshold promises at most, by episode."""
    quick: bool = False
    """Two moments of every episode, fewer unseen episodes, one distance, no trained memoriser."""
    rollout: int = 0
    """Starts in every region from which surrogates act in the policy's place, and a monitor watches
    it, in the simulator: about 70 s each. An interrupted run goes on if given its --output-dir."""
    seed: int = 0
    """Of draws, bootstraps and the trained memoriser."""
    output_dir: Path | None = None
    """Where files go; runs/retrieval-DATE-TIME if not given."""
    json: bool = False
    """Print one JSON object instead of the report."""


@dataclass(frozen=True)
class Done:
    """What a run found."""

    battery: Battery
    model: HookedACT
    known: Known
    unseen: Unseen | None
    origin: dict


def run(config: Config, console: Console) -> Done:
    """Load, run every scene once, measure, and say what it took; `console` shows progress."""
    began = time.monotonic()
    keep_freed_memory()
    model = config.policy.files.load()
    sources = Sources.of(config.policy, config.dataset, config.unseen)
    frames = sources.frames(min(2, config.moments) if config.quick else config.moments)
    chunk = model.config.chunk
    shown = list(sources.demonstrations.scenes(chunk=chunk, frames=frames))
    new = list(sources.unseen_scenes(chunk, frames, quick=config.quick))
    check_apart(shown, new)
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar = Progress(TextColumn("{task.description}"), *columns, console=console, transient=True)
    with bar, fastest_float32_matmul():
        task = bar.add_task("running", total=len(shown) + len(new))
        cut = model.config.n_action_steps if config.positions is Positions.EXECUTED else chunk
        made = lambda scenes: Known.of(model, scenes, lambda n: bar.advance(task, n)).first(cut)
        known, unseen = made(shown), None
        if new and sources.unseen is not None:
            asked = made(new)
            regions, beyond = regions_of(sources.unseen, known.ran, asked, config.place)
            unseen = Unseen(asked, regions, beyond)
        bar.update(task, total=None)
        options = Options(
            config.place, config.tolerances, config.false_alarms, config.quick, config.seed
        )
        battery = measure(
            model,
            sources.demonstrations,
            known,
            unseen,
            options,
            lambda what: bar.update(task, description=what),
        )
    facts = {
        "dataset": sources.demonstrations.name,
        "unseen": sources.unseen.name if sources.unseen is not None else None,
        "scenes": {"demonstrations": len(shown), "unseen": len(new), "frames": frames},
        "scenes_sha256": scenes_hash([scene.observation for scene in (*shown, *new)]),
    }
    origin = provenance(model, config, seconds=time.monotonic() - began, facts=facts)
    return Done(battery, model, known, unseen, origin)


def write_files(done: Done, folder: Path) -> tuple[Path, ...]:
    """Tables, picture and provenance of a run."""
    files = write_tables(done.battery.tables, folder, parquet=True)
    if {"scenes", "mechanism"} <= done.battery.tables.keys():
        files.append(folder / "axes.png")
        save_picture(done.battery.tables, files[-1])
    files.append(folder / "provenance.json")
    write_json(files[-1], done.origin)
    return tuple(files)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, write, show."""
    return run_command(Config, "retrieval", __doc__, _carry_out, argv)


def _carry_out(config: Config, folder: Path, progress: Console) -> None:
    done = run(config, progress)
    files = with_page(folder, write_files(done, folder))
    closed_loop = _rolled_out(config, done, folder / "closed_loop", progress)
    origin = done.origin
    scenes = origin["scenes"]
    frames = ", ".join(map(str, scenes["frames"]))
    unseen = f", {scenes['unseen']} unseen of {origin['unseen']}" if scenes["unseen"] else ""
    report = render_retrieval(
        done.battery.tables,
        done.battery.verdict,
        done.battery.missing,
        at_start=done.battery.at_start,
        policy=describe(done.model, config.policy.path),
        facts=[
            (
                "data",
                f"{scenes['demonstrations']} scenes of {origin['dataset']}{unseen}; "
                f"frames {frames}; {config.positions} chunk",
            ),
            ("run", f"{origin['seconds']:.0f} s, {origin['threads']} threads"),
        ],
        files=files,
        next_steps=[
            "python -m experiments.retrieval --rollout 20   with surrogates that act",
            "python -m experiments.probing   is the place there to be read, where it fails?",
            "python -m experiments.retrieval --positions=executed   what is carried out",
        ],
    )
    if closed_loop is not None:
        report = Group(report, Text(), closed_loop.report(describe(done.model, config.policy.path)))
    shown = [*files, *(() if closed_loop is None else closed_loop.files)]
    tables = _shown(done.battery.tables)
    write_report(report, files, origin=done.origin, tables=tables, shown=shown)
    if config.json:
        content = as_json(done)
        if closed_loop is not None:
            content["closed_loop"] = closed_loop.rows()
        sys.stdout.write(json.dumps(content) + "\n")
        return
    Console().print(report)


def _rolled_out(
    config: Config, done: Done, folder: Path, progress: Console
) -> RetrievalRollouts | None:
    """What comes of it when it acts; None if that was not asked for."""
    if not config.rollout:
        return None
    sources = Sources.of(config.policy, config.dataset, config.unseen)
    return roll_out(
        done.model,
        sources.demonstrations,
        folder,
        progress,
        n=config.rollout,
        seed=config.seed,
        false_alarms=config.false_alarms,
    )


def as_json(done: Done) -> dict:
    """What a run found, as one object."""
    tables = {name: rows(table) for name, table in _shown(done.battery.tables).items()}
    return {
        "answer": said(done.battery.verdict),
        "answer_at_frame_0": said(done.battery.at_start),
        "missing": list(done.battery.missing),
        **tables,
        "provenance": done.origin,
    }


def said(verdict: Verdict | None) -> dict | None:
    """The answer for JSON; None if there is none."""
    if verdict is None:
        return None
    return {
        "answer": verdict.answer.value,
        "candidates": [answer.value for answer in verdict.candidates],
        "site": None if verdict.site is None else verdict.site.value,
        "missing": list(verdict.missing),
    }


def _shown(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """All but the scenes one by one, which are in their file."""
    return {name: table for name, table in tables.items() if name != "scenes"}


if __name__ == "__main__":
    raise SystemExit(main())
