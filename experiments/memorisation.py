"""What has the decoder learnt by heart, and does generalisation arrive late? Its end, retrained.

Encoder and cross-attention stay frozen; the last MLP, the norms and the head are trained again and
again on the cached action vectors: with and without each demonstration (counterfactual
memorisation), beside shuffled demonstrations and a linear read-out; then for long, on few and on
all of them. Options are those of the other experiments:

    python -m experiments.memorisation --policy.path=you/act_so101 --dataset.root=data/so101
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
from actlens.planted import Stored
from actlens.provenance import provenance, write_json
from actlens.report.memorisation import render_memorisation
from actlens.report.memorisation_picture import save_curves
from actlens.retraining import (
    Decoders,
    Entries,
    Isolation,
    LateGeneralisation,
    LateOptions,
    MemorisationOptions,
    MemorisationStudy,
    Start,
    cached,
    isolation,
    late_generalisation,
    study_memorisation,
)
from actlens.scene import Scene
from actlens.tails import Shape
from experiments.command import rows, run_command, with_page, write_report, write_tables
from experiments.retrieval_scenes import Sources
from experiments.scene_choice import Data, Policy, describe

_REGIONS = {"train": "new places", "held_out": "held-out cells"}
_PLACE = ("cube_x", "cube_y")


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    policy: Policy = field(default_factory=Policy)
    dataset: Data = field(default_factory=Data)
    """Demonstrations; the bundled policy's own if not given."""
    unseen: Data = field(default_factory=Data)
    """Scenes that the policy was not trained on, by the region that their episodes are labelled
    with; the bundled so101-pick-cube-unseen for a bundled policy."""
    moments: int = 4
    """Frames of every episode, at the same shares of the shortest."""
    positions: int = 10
    """Positions of the action chunk, evenly apart."""
    decoders: int = 20
    """Decoders at most that are retrained to estimate memorisation."""
    stops: tuple[int, ...] = (50, 100, 200, 400, 800)
    """Steps of training after which they are asked."""
    steps: int = 1000
    """Of the long trainings; 0 leaves them out. 20000 take an hour or two."""
    sizes: tuple[int, ...] = (5, 20)
    """Numbers of demonstrations of the long trainings, beside all."""
    weight_decay: tuple[float, ...] = (0.0, 1.0)
    """Of the long trainings."""
    trainings: int = 2
    """Long trainings of each kind, on other demonstrations."""
    quick: bool = False
    """A first look: two moments, few decoders, short trainings."""
    seed: int = 0
    """Of all that is drawn."""
    output_dir: Path | None = None
    """Where files go; runs/memorisation-DATE-TIME if not given."""
    json: bool = False
    """Print one JSON object instead of the report."""


@dataclass(frozen=True)
class Done:
    """What a run found."""

    study: MemorisationStudy
    lonely: Isolation | None
    late: LateGeneralisation | None
    model: HookedACT
    origin: dict

    @property
    def frames(self) -> dict[str, pd.DataFrame]:
        """All tables."""
        tables = {"memorisation": self.study.by_step(), "episodes": self.study.by_episode()}
        if self.late is not None:
            tables |= {"curves": self.late.frame(), "late": self.late.falls_frame()}
        return tables


def shortened(config: Config) -> Config:
    """The options of a first look."""
    return dataclasses.replace(
        config,
        moments=min(config.moments, 2),
        decoders=min(config.decoders, 10),
        stops=tuple(step for step in config.stops if step <= 200) or config.stops[:1],
        steps=min(config.steps, 300),
        sizes=config.sizes[:1],
        trainings=1,
    )


@dataclass(frozen=True)
class Given:
    """What the decoder's end is given of all scenes."""

    shown: Stored
    elsewhere: dict[str, Stored]
    """By region."""
    places: dict[int, tuple[float, ...]]
    """Where the object lies, metres, by demonstrated episode, as far as it is known."""


def run_scenes(
    model: HookedACT, sources: Sources, frames: list[int], progress: Callable[[int], None]
) -> Given:
    """Run the policy once on every scene."""
    chunk = model.config.chunk
    places: dict[int, tuple[float, ...]] = {}

    def noted(scenes: Iterator[Scene]) -> Iterator[Scene]:
        for scene in scenes:
            if all(name in scene.labels for name in _PLACE):
                places.setdefault(scene.episode, tuple(scene.labels[name] for name in _PLACE))
            yield scene

    elsewhere: dict[str, Stored] = {}
    with fastest_float32_matmul():
        scenes = noted(sources.demonstrations.scenes(chunk=chunk, frames=frames))
        shown = cached(model, scenes, progress=progress)
        if sources.unseen is not None:
            scenes = sources.unseen_scenes(chunk, frames, quick=False)
            stored = cached(model, scenes, progress=progress)
            regions = {
                e.index: str(e.labels.get("region", "unseen")) for e in sources.unseen.episodes
            }
            of = np.array([regions[int(index)] for index in stored.episode])
            for region in dict.fromkeys(of.tolist()):
                part = stored.of_scenes(np.flatnonzero(of == region).tolist())
                elsewhere[_REGIONS.get(region, region)] = part
    return Given(shown, elsewhere, places)


def run(config: Config, console: Console) -> Done:
    """Load, cache, retrain, and say what it took; `console` shows progress."""
    began = time.monotonic()
    keep_freed_memory()
    config = shortened(config) if config.quick else config
    if config.positions < 1 or config.decoders < 4:
        raise SceneError(
            "Retraining needs a chunk position and 4 decoders at least: got --positions "
            f"{config.positions} --decoders {config.decoders}."
        )
    options = MemorisationOptions(
        at_once=min(10, config.decoders), most=config.decoders, seed=config.seed
    )
    late_options = None
    if config.steps:
        late_options = LateOptions(
            config.steps,
            config.sizes,
            config.weight_decay,
            starts=(Start.ANEW,) if config.quick else tuple(Start),
            seeds=config.trainings,
            seed=config.seed,
        )
    model = config.policy.files.load()
    chunk = model.config.chunk
    decoders = Decoders(Shape.of(model.config), config.stops)
    sources = Sources.of(config.policy, config.dataset, config.unseen)
    frames = sources.frames(config.moments)
    n_positions = min(config.positions, chunk)
    positions = tuple(range(0, chunk, chunk // n_positions))[:n_positions]
    known = sources.demonstrations
    n_scenes = len(frames) * sum(len(d.episodes) for d in (known, sources.unseen) if d is not None)
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    text = TextColumn("{task.description}")
    with Progress(text, *columns, console=console, transient=True) as bar:
        task = bar.add_task("running scenes", total=n_scenes)
        given = run_scenes(model, sources, frames, lambda n: bar.advance(task, n))
        shown, elsewhere = given.shown, given.elsewhere
        bar.remove_task(task)
        training = bar.add_task("retraining decoders", total=config.decoders + options.at_once)
        study = study_memorisation(
            model,
            shown,
            elsewhere,
            positions=positions,
            decoders=decoders,
            options=options,
            progress=lambda n: bar.advance(training, n),
        )
        bar.remove_task(training)
        late = None
        if late_options is not None and elsewhere:
            n = late_options.n_trainings(len(known.episodes))
            long = bar.add_task("training for long", total=n * late_options.steps)
            late = late_generalisation(
                model,
                Entries.of(model, shown, positions),
                {name: Entries.of(model, one, positions) for name, one in elsewhere.items()},
                late_options,
                progress=lambda n: bar.advance(long, n),
            )
    trained, lonely = study.own[max(study.own)], None
    if set(trained.indices) <= set(given.places) and len(trained.indices) > 3:
        lonely = isolation(trained, np.array([given.places[i] for i in trained.indices]))
    facts = {
        "dataset": known.name,
        "unseen": None if sources.unseen is None else sources.unseen.name,
        "scenes": n_scenes,
        "frames": frames,
        "positions": positions,
    }
    origin = provenance(model, config, seconds=time.monotonic() - began, facts=facts)
    return Done(study, lonely, late, model, origin)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, write, show."""
    return run_command(Config, "memorisation", __doc__, _carry_out, argv)


def _carry_out(config: Config, folder: Path, progress: Console) -> None:
    done = run(config, progress)
    tables = done.frames
    files = write_tables(tables, folder)
    files.append(folder / "curves.png")
    save_curves(done.study, done.late, files[-1])
    files.append(folder / "provenance.json")
    write_json(files[-1], done.origin)
    files = with_page(folder, files)
    took = f"{done.origin['seconds']:.0f} s, {done.origin['threads']} threads"
    data = f"{done.origin['dataset']}, {done.origin['scenes']} scenes"
    report = render_memorisation(
        done.study,
        done.lonely,
        done.late,
        policy=describe(done.model, config.policy.path),
        facts=[("data", data), ("run", took)],
        files=files,
        next_steps=[
            "python -m experiments.memorisation --steps 20000   watch for twenty times as long",
            "python -m experiments.retrieval   is the policy better than a neighbour?",
        ],
    )
    write_report(report, files, origin=done.origin, tables=tables)
    if config.json:
        content = {name: rows(table) for name, table in tables.items() if name != "curves"}
        extra = {"matched_steps": done.study.matched, "provenance": done.origin}
        sys.stdout.write(json.dumps(content | extra) + "\n")
        return
    Console().print(report)


if __name__ == "__main__":
    raise SystemExit(main())
