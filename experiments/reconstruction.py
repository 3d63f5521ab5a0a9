"""What does the action vector hold? Scenes decoded from it: the cube, the arm, both pictures.

From the action vector after cross-attention, and from every site before and behind it, small
decoders draw the scene again: where the cube is and how it lies, where the arm is, and what both
cameras see. Each figure stands beside what needs no action vector: the mean picture, the nearest
demonstration, the joint state alone, an untrained policy, decoders of shuffled scenes, and the most
that a decoder of this kind can draw. At frame 0 and later, on demonstrations that were held out and
on places that nobody demonstrated.

    python -m experiments.reconstruction --policy.path=you/act_so101 --dataset.root=data/so101
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from actlens.allocator import keep_freed_memory
from actlens.errors import SceneError
from actlens.matmul import fastest_float32_matmul
from actlens.model.act import HookedACT
from actlens.page import write_page
from actlens.probing import untrained
from actlens.provenance import provenance, scenes_hash, write_json
from actlens.reconstruction import Moment, Reconstruction, ReconstructionOptions, Watch, reconstruct
from actlens.report.reconstruction import render_reconstruction
from actlens.report.reconstruction_page import reconstruction_page
from actlens.report.reconstruction_picture import save_reconstructions
from actlens.scene import Scene
from actlens.scenes.dataset import Dataset, open_dataset
from experiments.command import rows, run_command, write_tables
from experiments.probing import UNSEEN
from experiments.scene_choice import BUNDLED_DATA, Data, Policy, describe, open_demonstrations

NAMES = {"train": "new places", "held_out": "held-out cells", "strip": "strip beyond"}
"""Of the bundled unseen dataset's regions."""
_QUICK_DEMONSTRATIONS, _QUICK_UNSEEN = 32, 8


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    policy: Policy = field(default_factory=Policy)
    dataset: Data = field(default_factory=Data)
    """Demonstrations; the bundled policy's own if not given."""
    unseen: Data = field(default_factory=Data)
    """Episodes to test on, by the region that they are labelled with; the bundled
    so101-pick-cube-unseen for a bundled policy."""
    later: tuple[float, ...] = (0.4,)
    """Moments beside frame 0, as shares of every episode's length."""
    query: int = 0
    """The chunk position whose action vector is read by itself."""
    size: tuple[int, int] = (60, 80)
    """Rows and columns that pictures are shrunk to."""
    quick: bool = False
    """Frame 0 of a third of the episodes: a look in less than a minute, with wide intervals."""
    seed: int = 0
    """Of untrained weights, shuffles and bootstraps."""
    output_dir: Path | None = None
    """Where files go; runs/reconstruction-DATE-TIME if not given."""
    json: bool = False
    """Print one JSON object instead of the report."""


@dataclass(frozen=True)
class Done:
    """What a run found."""

    result: Reconstruction
    model: HookedACT
    origin: dict


def unseen_dataset(config: Config) -> Dataset | None:
    """The episodes to test on; None if there are none for this policy."""
    data = config.unseen
    if data.root is not None or data.repo_id is not None:
        return open_demonstrations(data, "")
    bundled = config.policy.path.startswith(BUNDLED_DATA)
    own = config.dataset.root is None and config.dataset.repo_id is None
    return open_dataset(UNSEEN) if bundled and own else None


def spread(episodes: Sequence[int], most: int | None) -> list[int]:
    """Some of the episodes, evenly apart; all without a limit."""
    if most is None or len(episodes) <= most:
        return list(episodes)
    return [episodes[i * len(episodes) // most] for i in range(most)]


def by_region(dataset: Dataset | None) -> dict[str, list[int]]:
    """Set -> its episodes."""
    found: dict[str, list[int]] = {}
    for episode in dataset.episodes if dataset is not None else ():
        region = str(episode.labels.get("region", "unseen"))
        found.setdefault(NAMES.get(region, region), []).append(episode.index)
    return found


def at(dataset: Dataset, episodes: Sequence[int], share: float, chunk: int) -> list[Scene]:
    """One scene of every episode, at a share of its length."""
    return [
        scene
        for index in episodes
        for scene in dataset.scenes(
            chunk=chunk, episodes=[index], frames=[int(share * dataset.episode(index).length)]
        )
    ]


def moments_of(config: Config, chunk: int) -> list[Moment]:
    """Frame 0 and the later moments."""
    if any(not 0 < share < 1 for share in config.later):
        raise SceneError(f"--later takes shares of an episode between 0 and 1, got {config.later}.")
    shown = open_demonstrations(config.dataset, config.policy.path)
    unseen = unseen_dataset(config)
    most = (_QUICK_DEMONSTRATIONS, _QUICK_UNSEEN) if config.quick else (None, None)
    episodes = spread([episode.index for episode in shown.episodes], most[0])
    regions = {name: spread(some, most[1]) for name, some in by_region(unseen).items()}
    return [
        Moment(
            f"{share:.0%} of the episode" if share else "frame 0",
            at(shown, episodes, share, chunk),
            {name: at(unseen, some, share, chunk) for name, some in regions.items()}
            if unseen is not None
            else {},
        )
        for share in (0.0, *(() if config.quick else config.later))
    ]


def run(config: Config, console: Console) -> Done:
    """Load, run, decode, and say what it took; `console` shows progress."""
    began = time.monotonic()
    keep_freed_memory()
    options = ReconstructionOptions(query=config.query, size=config.size, seed=config.seed)
    model = config.policy.files.load()
    moments = moments_of(config, model.config.chunk)
    n = sum(len(moment.scenes) for moment in moments)
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar = Progress(TextColumn("{task.description}"), *columns, console=console, transient=True)
    with bar, fastest_float32_matmul():
        scenes = bar.add_task("running", total=2 * n)
        watch = Watch(lambda n: bar.advance(scenes, n), lambda n: bar.advance(decoding, n))
        decoding = bar.add_task("decoding", total=None)
        fresh = untrained(model, seed=config.seed)
        result = reconstruct(model, fresh, moments, options, watch=watch)
    every = [scene for moment in moments for scene in moment.scenes]
    facts: Mapping[str, object] = {
        "dataset": ", ".join(dict.fromkeys(scene.source for scene in every)),
        "scenes": len(every),
        "scenes_sha256": scenes_hash([scene.observation for scene in every]),
    }
    origin = provenance(model, config, seconds=time.monotonic() - began, facts=facts)
    return Done(result, model, origin)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, write, show."""
    return run_command(Config, "reconstruction", __doc__, _carry_out, argv)


def _carry_out(config: Config, folder: Path, progress: Console) -> None:
    done = run(config, progress)
    tables = done.result.frames()
    files = write_tables({name: table for name, table in tables.items() if len(table)}, folder)
    picture = folder / "reconstructions.png"
    drawn = save_reconstructions(done.result, picture)
    files += [picture] if drawn else []
    files += [folder / "provenance.json", folder / "report.html"]
    write_json(files[-2], done.origin)
    took = f"{done.origin['seconds']:.0f} s, {done.origin['threads']} threads"
    report = render_reconstruction(
        done.result,
        tables,
        policy=describe(done.model, config.policy.path),
        facts=[
            ("data", f"{done.origin['dataset']}, {done.origin['scenes']} scenes"),
            ("run", took),
        ],
        files=files,
        next_steps=[
            "python -m experiments.probing   every label at every site, and whether it is used",
            "python -m experiments.reconstruction --query 9   a later action's vector",
        ],
    )
    shown = picture if drawn else None
    write_page(files[-1], reconstruction_page(report, tables, picture=shown, origin=done.origin))
    if config.json:
        content = {name: rows(table) for name, table in tables.items()}
        sys.stdout.write(json.dumps(content | {"provenance": done.origin}) + "\n")
        return
    Console().print(report)


if __name__ == "__main__":
    raise SystemExit(main())
