"""What the policy attends to, or acts on, as a film over an episode of a dataset.

A word says what: `attention` (the decoder's cross-attention to the tokens), `encoder-attention`
(tokens to tokens), or `patching` (how much of the action each token brings back when it alone is
put into another scene). Every picture has the map over all cameras, its one scale, the tokens that
are no pixels as bars, and the action beside the demonstrated one:

    python -m experiments.film attention --episode 3
    python -m experiments.film attention --head 2 --positions 0
    python -m experiments.film patching --episode 3 --every 3 --donor 50
    python -m experiments.film attention --policy.path=you/act_so101 --dataset.root=data/so101
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from actlens.allocator import keep_freed_memory
from actlens.errors import SceneError
from actlens.model.act import HookedACT
from actlens.page import write_page
from actlens.provenance import provenance, write_json
from actlens.report.layout import facts_header
from actlens.report.map_film import MapFilm, save_map_film
from actlens.report.map_page import looked_into, map_page
from actlens.report.map_rerun import require_rerun, rerun_file
from actlens.report.map_table import map_table
from actlens.report.plain import plain
from actlens.scenes.dataset import Dataset
from experiments.command import attempt, run_folder, write_tables
from experiments.film_maps import Attention, EncoderAttention, Patching
from experiments.rollouts import STEPS, require_simulator
from experiments.scene_choice import describe, open_demonstrations

Config = Attention | EncoderAttention | Patching
_WORDS = (
    Annotated[Attention, tyro.conf.subcommand("attention")]
    | Annotated[EncoderAttention, tyro.conf.subcommand("encoder-attention")]
    | Annotated[Patching, tyro.conf.subcommand("patching")]
)


@dataclass(frozen=True)
class Done:
    """What a run made."""

    film: MapFilm
    facts: tuple[tuple[str, str], ...]
    files: tuple[Path, ...]
    origin: dict


def run(config: Config, folder: Path, console: Console) -> Done:
    """Make the maps, then the film, the table and whatever else was asked for."""
    began = time.monotonic()
    keep_freed_memory()
    if config.every < 1 or not config.slower > 0:
        raise SceneError(
            f"--every is at least 1 and --slower above 0; got {config.every} and {config.slower:g}."
        )
    if config.rerun is not None:
        require_rerun()
    model = config.policy.files.load()
    dataset = open_demonstrations(config.dataset, config.policy.path)
    _check(model, dataset)
    episode, name, recorded = config.episode, f"episode {config.episode}", "demonstrated"
    if config.rollout is not None:
        dataset, episode, name = rolled_out(model, dataset, config.rollout)
        recorded = "carried out"
    frames = list(range(0, dataset.episode(episode).length, config.every))
    scenes = lambda wanted: dataset.scenes(
        chunk=model.config.chunk, episodes=[episode], frames=wanted
    )
    kind = config.map_of(model, dataset, episode)
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    words = TextColumn("{task.description}")
    with Progress(words, *columns, console=console, transient=True) as bar:
        making = bar.add_task("maps", total=len(frames))
        drawing = bar.add_task("film", total=len(frames))
        maps = []
        for scene in scenes(frames):
            maps.append(kind.frame(scene))
            bar.advance(making)
        film = MapFilm(
            title=f"{config.policy.path}: {kind.title}",
            label=kind.label,
            frames=tuple(maps),
            tokens=model.tokens,
            demonstrated=dataset.actions(episode),
            joints=model.config.joints,
            fps=dataset.fps,
            diverging=kind.diverging,
            recorded_words=recorded,
            bars_label=kind.bars_label,
        )
        files = [folder / "film.mp4"]
        advance = lambda n: bar.advance(drawing, n)
        save_map_film(files[0], film, scenes(frames), slower=config.slower, advance=advance)
    if config.rerun is not None:
        with rerun_file(config.rerun, film) as log:
            for one, scene in zip(film.frames, scenes(frames), strict=True):
                log(one, scene)
        files.append(config.rerun)
    files += write_tables({"values": map_table(film)}, folder)
    facts = {"dataset": dataset.name, "title": kind.title}
    origin = provenance(model, config, seconds=time.monotonic() - began, facts=facts)
    files.append(folder / "provenance.json")
    write_json(files[-1], origin)
    length = f"{name}, {len(frames)} pictures; {dataset.name}"
    took = f"{origin['seconds']:.0f} s, {origin['threads']} threads"
    lines = (
        ("policy", describe(model, config.policy.path)), ("data", length),
        *kind.facts, ("run", took),
    )  # fmt: skip
    chosen = [film.frames[at].frame for at in looked_into(film)]
    page = map_page(film, files[0].read_bytes(), scenes(chosen), facts=lines, origin=origin)
    files.append(write_page(folder / "report.html", page))
    return Done(film, lines, tuple(files), origin)


def rolled_out(model: HookedACT, dataset: Dataset, number: int) -> tuple[Dataset, int, str]:
    """The dataset with a rollout of the policy behind it, the rollout's index, and its outcome.

    Raises:
        SceneError: if there is no simulator, the policy does not fit it, or there is no such start.
    """
    require_simulator()
    from actlens.sim.as_episode import with_rollout
    from actlens.sim.conditions import draw_starts
    from actlens.sim.controlled import roll_out, simulator_for

    if number < 0:
        raise SceneError(f"--rollout numbers starts from 0; got {number}.")
    start = draw_starts(number + 1)[number]
    env = simulator_for(model)
    try:
        result = roll_out(model, env, start, steps=STEPS, keep_frames=True).result
    finally:
        env.close()
    dataset, index = with_rollout(dataset, result)
    return dataset, index, f"rollout {number}, {'lifted' if result.success else 'not lifted'}"


def _check(model: HookedACT, dataset: Dataset) -> None:
    """Raise if the dataset lacks a camera that the policy sees."""
    missing = {c.key for c in model.config.cameras} - {c.key for c in dataset.cameras}
    if missing:
        raise SceneError(
            f"The policy sees {', '.join(sorted(missing))}, which {dataset.name} does not have. "
            "Give its own demonstrations: --dataset.root=… or --dataset.repo_id=…"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, make the maps, film them, say what there is."""
    config = tyro.cli(
        _WORDS,  # pyrefly: ignore
        prog="python -m experiments.film",
        description=__doc__,
        args=argv,
        config=(tyro.conf.EnumChoicesFromValues,),
    )
    console = Console(stderr=True)
    folder = run_folder("film", config.output_dir)
    return attempt(lambda: _carry_out(config, folder, console), folder, console)


def _carry_out(config: Config, folder: Path, console: Console) -> None:
    done = run(config, folder, console)
    if config.json:
        content = {
            "title": done.film.title,
            "frames": [one.frame for one in done.film.frames],
            "scale": done.film.scale.limit,
            "bars": [dict(one.bars) for one in done.film.frames],
            "files": [str(file) for file in done.files],
            "provenance": done.origin,
        }
        sys.stdout.write(json.dumps(content) + "\n")
        return
    end = ("scale", f"{done.film.label}, to {done.film.scale.limit:.3g} in every picture")
    header = facts_header("film", done.film.title, [*done.facts, end])
    written = [Text(plain(f"wrote {file}"), style="dim") for file in done.files]
    Console().print(Group(header, Text(), *written))


if __name__ == "__main__":
    raise SystemExit(main())
