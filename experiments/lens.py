"""What would the policy do if its network ended here? Every state decoded as a motion.

The action lens: encoder layers, the decoder's stream, single heads and groups of tokens, read by
the rest of the network (raw), through the last norm (renorm), through a map fitted on
demonstrations (tuned) and through its control (shuffled). How far off is the motion, does it reach
the cube, and from which layer on?

    python -m experiments.lens --policy.path=you/act_so101 --dataset.root=data/so101 \\
        --unseen.root=data/so101_new_places
"""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from actlens.allocator import keep_freed_memory
from actlens.errors import SceneError
from actlens.kinematics import known_arm
from actlens.lens import Asking, LensOptions, LensStudy, study_lenses
from actlens.metrics import Positions
from actlens.model.act import HookedACT
from actlens.page import Section
from actlens.provenance import provenance, scenes_hash, write_json
from actlens.report.lens import render_lens
from actlens.report.lens_picture import save_depths
from actlens.scene import Scene, episode_numbers
from actlens.scenes.dataset import Dataset
from experiments.command import rows, run_command, with_page, write_report, write_tables
from experiments.lens_films import LensFilms, film_unfitted
from experiments.lens_rollouts import roll_out
from experiments.retrieval_scenes import REGION_NAMES, Sources, check_apart
from experiments.rollouts import require_simulator
from experiments.scene_choice import Data, Policy, describe

DEMONSTRATIONS, UNSEEN = "demonstrations", "unseen"
"""Sets of scenes: demonstrations that no lens was fitted on, and others without a region."""


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
    fitted: float = 0.7
    """Share of the demonstrations that lenses are tuned on; the others are asked about."""
    within: float = 20.0
    """Millimetres from the expert's gripper that count as reaching the cube."""
    among: int = 10
    """Scenes that a decoded motion is told from."""
    positions: Positions = Positions.WHOLE
    """Which positions of the action chunk count."""
    film: int = 0
    """Also draw and film what so many episodes are decoded into (ten seconds each)."""
    quick: bool = False
    """Two moments, every second unseen episode, neither heads nor groups of tokens."""
    rollout: int = 0
    """Starts in every region from which the arm does what lenses show, in the simulator: about 60 s
    each. An interrupted run goes on if given its --output-dir."""
    seed: int = 0
    """Of the split, folds, the control and bootstraps."""
    output_dir: Path | None = None
    """Where files go; runs/lens-DATE-TIME if not given."""
    json: bool = False
    """Print one JSON object instead of the report."""


@dataclass(frozen=True)
class Done:
    """What a run found."""

    study: LensStudy
    model: HookedACT
    fitted: Dataset
    """The demonstrations that lenses were tuned on."""
    origin: dict


def split(scenes: Sequence[Scene], share: float, seed: int) -> tuple[list[Scene], list[Scene]]:
    """Whole episodes to fit on, and the others.

    Raises:
        SceneError: if the share is none, or leaves no episode to ask about.
    """
    episodes = episode_numbers(scenes)
    order = np.random.default_rng(seed).permutation(int(episodes.max()) + 1)
    n = round(share * len(order))
    if not 0 < share < 1 or n == len(order):
        raise SceneError(f"--fitted={share:g} of {len(order)} episodes leaves none to ask about.")
    chosen = np.isin(episodes, order[:n])
    pick = lambda mask: [scene for scene, kept in zip(scenes, mask, strict=True) if kept]
    return pick(chosen), pick(~chosen)


def regions(sources: Sources, scenes: Sequence[Scene]) -> dict[str, list[Scene]]:
    """Unseen scenes by the region that their episodes are labelled with."""
    if sources.unseen is None:
        return {}
    labels = {e.index: e.labels.get("region") for e in sources.unseen.episodes}
    sets: dict[str, list[Scene]] = {}
    for scene in scenes:
        region = labels[scene.episode]
        name = UNSEEN if region is None else REGION_NAMES.get(str(region), str(region))
        sets.setdefault(name, []).append(scene)
    return sets


def run(config: Config, console: Console) -> Done:
    """Load, tune, decode, and say what it took; `console` shows progress."""
    began = time.monotonic()
    keep_freed_memory()
    model = config.policy.files.load()
    sources = Sources.of(config.policy, config.dataset, config.unseen)
    frames = sources.frames(min(2, config.moments) if config.quick else config.moments)
    chunk = model.config.chunk
    shown = list(sources.demonstrations.scenes(chunk=chunk, frames=frames))
    new = list(sources.unseen_scenes(chunk, frames, quick=config.quick))
    check_apart(shown, new)
    fitted, held_out = split(shown, config.fitted, config.seed)
    asked = {DEMONSTRATIONS: held_out} | regions(sources, new)
    options = LensOptions(
        positions=config.positions,
        heads=not config.quick,
        tokens=not config.quick,
        asking=Asking(within_mm=config.within, among=config.among),
        seed=config.seed,
    )
    source = model.checkpoint.source if model.checkpoint else ""
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar = Progress(TextColumn("decoding"), *columns, console=console, transient=True)
    with bar:
        task = bar.add_task("decoding", total=len(shown) + len(new))
        study = study_lenses(
            model,
            fitted,
            {name: scenes for name, scenes in asked.items() if scenes},
            arm=known_arm(model.config.joints, source),
            options=options,
            progress=lambda n: bar.advance(task, n),
        )
    facts = {
        "dataset": sources.demonstrations.name,
        "unseen": sources.unseen.name if sources.unseen else None,
        "fitted": sorted({scene.episode for scene in fitted}),
        "scenes_sha256": scenes_hash([scene.observation for scene in [*shown, *new]]),
    }
    origin = provenance(model, config, seconds=time.monotonic() - began, facts=facts)
    kept = tuple(sources.demonstrations.episode(index) for index in facts["fitted"])
    return Done(study, model, dataclasses.replace(sources.demonstrations, episodes=kept), origin)


def write_files(done: Done, frames: dict[str, pd.DataFrame], folder: Path) -> tuple[Path, ...]:
    """Tables, picture and provenance of a run."""
    files = write_tables(frames, folder, parquet=True)
    files.append(folder / "depths.png")
    save_depths(frames["errors"], files[-1])
    files.append(folder / "provenance.json")
    write_json(files[-1], done.origin)
    return tuple(files)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, write, show."""
    return run_command(Config, "lens", __doc__, _carry_out, argv)


def _carry_out(config: Config, folder: Path, progress: Console) -> None:
    if config.rollout:
        require_simulator()
    done = run(config, progress)
    frames = done.study.frames()
    films, closed_loop = _filmed(config, done, folder, progress), None
    if config.rollout:
        closed_loop = roll_out(
            done.model, done.fitted, folder / "closed_loop", progress,
            n=config.rollout, seed=config.seed,
        )  # fmt: skip
    files = with_page(folder, write_files(done, frames, folder))
    policy = describe(done.model, config.policy.path)
    took = f"{done.origin['seconds']:.0f} s, {done.origin['threads']} threads"
    parts: list[RenderableType] = [
        render_lens(
            done.study,
            frames,
            policy=policy,
            facts=[("data", done.origin["dataset"]), ("run", took)],
            files=[*files, *(films.listed if films else ())],
            next_steps=[
                "python -m experiments.lens --film 9   the decoded motions, drawn and filmed",
                "python -m experiments.lens --rollout 10   what an unfinished network can do",
                "python -m experiments.probing   what a linear readout finds at every site",
            ],
        )
    ]
    if films is not None:
        parts += [Text(), films.console()]
    if closed_loop is not None:
        parts += [Text(), closed_loop.report(policy)]
    report = Group(*parts)
    tables = frames | ({} if closed_loop is None else closed_loop.frames())
    blocks = (Section("What each state would do", films.blocks()),) if films else ()
    write_report(report, files, origin=done.origin, blocks=blocks, tables=tables)
    if config.json:
        content = {name: rows(frame) for name, frame in tables.items()}
        if films is not None and films.outcomes is not None:
            content["film_outcomes"] = rows(films.outcomes)
        sys.stdout.write(json.dumps(content | {"provenance": done.origin}) + "\n")
        return
    Console().print(report)


def _filmed(config: Config, done: Done, folder: Path, progress: Console) -> LensFilms | None:
    """Pictures and films of what lenses decode; None if that was not asked for."""
    if not config.film:
        return None
    sources = Sources.of(config.policy, config.dataset, config.unseen)
    fitted = {episode.index for episode in done.fitted.episodes}
    return film_unfitted(
        done.model, sources, done.study.tuned, fitted, folder, progress, n=config.film
    )


if __name__ == "__main__":
    raise SystemExit(main())
