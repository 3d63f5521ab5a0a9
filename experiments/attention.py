"""Which tokens does the policy attend to, and is that what it acts on? The claims, tested.

How many tokens get attention, beside random logits of the same spread; how much the arm state, the
latent and each camera get, along the action chunk; whether other scenes have other tokens; and by
exact interventions whether the attended tokens suffice, and where the arm state is when the decoder
looks. Options are those of the other experiments:

    python -m experiments.attention --policy.path=you/act_so101 --dataset.root=data/so101
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from actlens.allocator import keep_freed_memory
from actlens.attention import (
    AttentionAnalysis,
    AttentionOptions,
    analyse_attention,
    attention,
)
from actlens.errors import SceneError
from actlens.interventions import run_scene
from actlens.metrics import Positions, position_weights
from actlens.model.act import HookedACT
from actlens.page import Section
from actlens.provenance import provenance, write_json
from actlens.report.attention import render_attention
from actlens.report.attention_maps import save_attention_maps
from actlens.report.attention_overlays import (
    decoder_overlays,
    effect_overlays,
    encoder_overlays,
)
from actlens.scene import Scene
from actlens.scenes.dataset import Dataset
from experiments.command import rows, run_command, with_page, write_report, write_tables
from experiments.scene_choice import Data, Policy, describe, open_demonstrations


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    policy: Policy = field(default_factory=Policy)
    dataset: Data = field(default_factory=Data)
    """Demonstrations; the bundled policy's own if not given."""
    episodes: int = 40
    """How many episodes are looked at, spread over the dataset; two by two tokens are swapped."""
    moments: int = 4
    """Scenes of every episode, evenly apart."""
    top: tuple[int, ...] = (1, 5, 10, 20, 50)
    """Numbers of tokens that are kept to see whether they suffice."""
    random: int = 5
    """Draws of as many random tokens."""
    positions: Positions = Positions.WHOLE
    """Which positions of the action chunk count."""
    seed: int = 0
    """Of random tokens, nulls and bootstraps."""
    output_dir: Path | None = None
    """Where files go; runs/attention-DATE-TIME if not given."""
    json: bool = False
    """Print one JSON object instead of the report."""


@dataclass(frozen=True)
class Done:
    """What a run found."""

    result: AttentionAnalysis
    model: HookedACT
    positions: Positions
    origin: dict


def chosen_frames(length: int, moments: int) -> list[int]:
    """Frames at the same shares of every episode's length; the first is 0, the last none."""
    return [length * moment // moments for moment in range(moments)]


def chosen_episodes(dataset: Dataset, chunk: int, n: int, moments: int) -> Iterator[list[Scene]]:
    """The scenes of each of some episodes, spread over the dataset; an even number of episodes."""
    n = min(n, len(dataset.episodes)) // 2 * 2
    for i in range(n):
        episode = dataset.episodes[i * len(dataset.episodes) // n]
        frames = chosen_frames(episode.length, moments)
        yield list(dataset.scenes(chunk=chunk, episodes=[episode.index], frames=frames))


def shown_positions(model: HookedACT, positions: Positions) -> tuple[int, ...]:
    """Of those that count: the first, the last that is executed, the middle, the last."""
    counted = position_weights(model.config, positions).nonzero().flatten().tolist()
    executed = min(model.config.n_action_steps, len(counted)) - 1
    return tuple(sorted({counted[i] for i in (0, executed, len(counted) // 2, -1)}))


def run(config: Config, console: Console) -> Done:
    """Load, read, intervene, and say what it took; `console` shows progress."""
    began = time.monotonic()
    reuses_memory = keep_freed_memory()
    if config.episodes < 2 or config.moments < 1:
        raise SceneError(
            "Look at two episodes at least, and at one moment of each: got --episodes "
            f"{config.episodes} --moments {config.moments}."
        )
    options = AttentionOptions(
        positions=config.positions, tops=config.top, random=config.random, seed=config.seed
    )
    model = config.policy.files.load()
    dataset = open_demonstrations(config.dataset, config.policy.path)
    shortest = min((e.length for e in dataset.episodes), default=0)
    if len(dataset.episodes) < 2 or shortest < config.moments:
        raise SceneError(
            f"{dataset.name} has {len(dataset.episodes)} episodes, the shortest of {shortest} "
            f"frames: two are needed, of {config.moments} frames (--moments) at least."
        )
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar = Progress(TextColumn("looking"), *columns, console=console, transient=True)
    episodes = chosen_episodes(dataset, model.config.chunk, config.episodes, config.moments)
    with bar:
        task = bar.add_task("looking", total=min(config.episodes, len(dataset.episodes)) // 2 * 2)
        result = analyse_attention(
            model, episodes, options=options, progress=lambda n: bar.advance(task, n)
        )
    facts = {
        "dataset": dataset.name,
        "scenes": [[*scene.episode, scene.frame] for scene in result.survey.scenes],
        "keeps_freed_memory": reuses_memory,
    }
    origin = provenance(model, config, seconds=time.monotonic() - began, facts=facts)
    return Done(result, model, config.positions, origin)


def write_files(done: Done, frames: dict[str, pd.DataFrame], folder: Path) -> tuple[Path, ...]:
    """Tables, picture and provenance of a run."""
    files = write_tables(frames, folder, parquet=True)
    if done.model.config.cameras:
        files.append(folder / "maps.png")
        positions = shown_positions(done.model, done.positions)
        save_attention_maps(done.result, done.model.config, files[-1], positions=positions)
    files.append(folder / "provenance.json")
    write_json(files[-1], done.origin)
    return tuple(files)


def maps_of(done: Done) -> list[Section]:
    """One scene's attention to look into: of the decoder, what it is worth, of the encoder."""
    model, scene, tokens = done.model, done.result.shown, done.result.tokens
    effects = done.result.effects.scenes[0]
    run = run_scene(model, scene)
    blocks = range(model.config.n_encoder_layers)
    encoder = np.stack([run[f"encoder.{i}.attn.hook_pattern"][0].numpy(force=True) for i in blocks])
    address = f"episode {scene.episode}, frame {scene.frame}"
    return [
        Section(
            f"Look into it: {address}",
            (
                decoder_overlays(tokens, scene, attention(model, run).numpy(force=True), effects),
                effect_overlays(tokens, scene, effects),
                encoder_overlays(tokens, scene, encoder),
            ),
        )
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, write, show."""
    return run_command(Config, "attention", __doc__, _carry_out, argv)


def _carry_out(config: Config, folder: Path, progress: Console) -> None:
    done = run(config, progress)
    frames = done.result.frames()
    files = with_page(folder, write_files(done, frames, folder))
    took = f"{done.origin['seconds']:.0f} s, {done.origin['threads']} threads"
    report = render_attention(
        done.result,
        frames,
        policy=describe(done.model, config.policy.path),
        positions=shown_positions(done.model, done.positions),
        facts=[("data", done.origin["dataset"]), ("run", took)],
        files=files,
        next_steps=[
            "python -m experiments.patching   single tokens swapped, block by block",
            "python -m experiments.attention --positions=executed   what is carried out",
        ],
    )
    maps = maps_of(done) if done.model.config.cameras else []
    write_report(report, files, origin=done.origin, blocks=maps, tables=frames, shown=[])
    if config.json:
        shown = ("claims", "overlap", "sufficiency", "absorption", "carriers")
        content = {name: rows(frames[name]) for name in shown}
        for name in ("concentration", "shares", "rank_correlation"):
            table = frames[name]
            content[name] = rows(table[table.position == "all"])
        sys.stdout.write(json.dumps(content | {"provenance": done.origin}) + "\n")
        return
    Console().print(report)


if __name__ == "__main__":
    raise SystemExit(main())
